"""ONNX graphs with their files: made here, run by onnxruntime, and refused by name where something is missing."""

import json

import numpy as np
import pytest
from PIL import Image

from clipbench.embed.trace import trace_of
from clipbench.errors import CheckpointError
from clipbench.models import load_encoder
from clipbench.models.device import Resources
from clipbench.models.onnx import ImageSteps
from clipbench.models.zoo import resolve

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE, DIM, TOKENS = 8, 6, 5
STEPS = {
    "do_resize": True, "size": {"shortest_edge": SIZE}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3],
}  # fmt: skip
RANDOM = np.random.default_rng(0)
VISION = RANDOM.normal(size=(3 * SIZE * SIZE, DIM)).astype(np.float32)
TEXT = RANDOM.normal(size=(10, DIM)).astype(np.float32)


def graph(path, nodes, inputs, output, tensors):
    helper = onnx.helper
    made = helper.make_graph(
        [helper.make_node(*node[:3], **node[3]) for node in nodes],
        "tower",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["n", DIM])],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


@pytest.fixture
def folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    pixels = ("pixel_values", onnx.TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    steps = [("Flatten", ["pixel_values"], ["flat"], {}), ("MatMul", ["flat", "weight"], ["image_embeds"], {})]
    graph(tmp_path / "vision_model.onnx", steps, [pixels], "image_embeds", {"weight": VISION})
    ids = ("input_ids", onnx.TensorProto.INT64, ["n", "length"])
    steps = [
        ("Gather", ["table", "input_ids"], ["rows"], {}),
        ("ReduceMean", ["rows"], ["text_embeds"], {"axes": [1], "keepdims": 0}),
    ]
    graph(tmp_path / "text_model.onnx", steps, [ids], "text_embeds", {"table": TEXT})
    words = ["<pad>", "<unk>", "a", "dog", "cat"]
    unknown = words[1]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config", {"pad_token": "<pad>"})
    write(tmp_path, "preprocessor_config", STEPS)
    write(
        tmp_path,
        "config",
        {"model_type": "clip", "text_config": {"max_position_embeddings": TOKENS, "hidden_act": "quick_gelu"}},
    )
    return tmp_path


def write(folder, name, settings):
    (folder / f"{name}.json").write_text(json.dumps(settings))


def load(folder):
    (spec,) = resolve([f"prod=onnx:{folder}"])
    return load_encoder(spec, Resources(), True)


def picture(width, height):
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_rows_are_those_of_the_graphs(folder):
    encoder = load(folder)
    images = [picture(20, 13), picture(9, 30)]
    pixels = np.stack([ImageSteps(STEPS, "here")(image) for image in images])
    np.testing.assert_allclose(encoder.encode_images(images), pixels.reshape(2, -1) @ VISION, rtol=1e-4, atol=1e-4)
    expected = (TEXT[2] + TEXT[3] + 3 * TEXT[0]) / TOKENS
    np.testing.assert_allclose(encoder.encode_texts(["a dog"])[0], expected, rtol=1e-5)
    assert encoder.encode_texts(["a " * 40]).shape == (1, DIM)
    assert encoder.identity.precision == "fp32"
    assert encoder.observed()["activation"] == "quickgelu"
    assert trace_of(encoder)["repeat"] == 0


def test_the_preprocessing_is_transformers_own():
    transformers = pytest.importorskip("transformers")
    own = transformers.CLIPImageProcessorPil if hasattr(transformers, "CLIPImageProcessorPil") else None
    if own is None:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as own  # noqa: N813  # one of two places
    processor = own(**STEPS)
    for image in (picture(20, 13), picture(9, 30), picture(8, 8)):
        expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ImageSteps(STEPS, "here")(image), expected, atol=1e-5)


def test_upper_case_is_siglip_s_business_alone(folder):
    assert not np.array_equal(*load(folder).encode_texts(["A DOG", "a dog"]))
    write(folder, "config", {"model_type": "siglip", "text_config": {"max_position_embeddings": TOKENS}})
    assert np.array_equal(*load(folder).encode_texts(["A DOG", "a dog"]))


def test_other_weights_are_observed(folder):
    before = load(folder).observed()["weights"]
    model = onnx.load(folder / "text_model.onnx")
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(TEXT + 1, "table"))
    onnx.save(model, folder / "text_model.onnx")
    assert load(folder).observed()["weights"] != before


def test_a_quantized_graph_says_so_by_itself(folder):
    from onnxruntime.quantization import quantize_dynamic

    (folder / "vision_model.onnx").rename(folder / "whole.onnx")
    quantize_dynamic(folder / "whole.onnx", folder / "vision_model.onnx")
    encoder = load(folder)
    assert (encoder.identity.precision, encoder.asked()) == ("int8", {"precision": "int8"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "text_model.onnx").unlink(), r"has no text_model\.onnx \(it has vision_model\.onnx\)"),
        (lambda f: (f / "vision_model.onnx").write_bytes(b"x"), "cannot be loaded: .*onnx"),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is not there"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda f: (f / "preprocessor_config.json").write_text("["), r"preprocessor_config\.json is not JSON"),
        (
            lambda f: write(f, "preprocessor_config", {**STEPS, "do_pad": True}),
            "asks for do_pad, which is not known here",
        ),
        (lambda f: write(f, "preprocessor_config", {**STEPS, "size": {"longest_edge": 8}}), "expected shortest_edge"),
        (lambda f: (f / "config.json").unlink(), "does not say how many tokens a text has"),
        (lambda f: write(f, "tokenizer_config", {"pad_token": "<nothing>"}), "has no token '<nothing>' to pad with"),
    ],
)
def test_what_is_missing_or_foreign_is_named_with_what_is_expected(folder, change, message):
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "expected onnx:FOLDER with vision_model.onnx" in str(caught.value)
