"""transformers' CLIP and SigLIP: tiny models saved by the library itself, with the text recipe of each."""

import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipbench.errors import CheckpointError, WeightsUnavailableError
from clipbench.models import load_encoder
from clipbench.models.device import Resources
from clipbench.models.onnx import ImageSteps
from clipbench.models.zoo import resolve

transformers = pytest.importorskip("transformers")
TOWERS = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8},
    "text_config": {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}  # fmt: skip
PICTURES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "dog", "A", "DOG", "cat"]
    unknown = words[3]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def save(folder, kind, **more):
    """A tiny model of a kind, as its maker would save it."""
    torch.manual_seed(0)
    name = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    towers = {key: {**value, "projection_dim": 24} for key, value in TOWERS.items()} if kind == "clip" else TOWERS
    config = getattr(transformers, f"{name}Config")(**towers, **({"projection_dim": 24} if kind == "clip" else {}))
    model = getattr(transformers, f"{name}Model")(config).eval()
    model.save_pretrained(folder, **more)
    tokenizer().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    crop = {"crop_size": size, "size": {"shortest_edge": 32}} if kind == "clip" else {"size": size}
    getattr(transformers, f"{name}ImageProcessor")(**crop).save_pretrained(folder)
    return model


def load(folder, **arguments):
    (spec,) = resolve([f"prod=hf:{folder}"], arguments=arguments)
    return load_encoder(spec, Resources(), True)


def features(made):
    return made if isinstance(made, torch.Tensor) else made.pooler_output


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_rows_are_the_library_s_own(tmp_path, kind):
    model = save(tmp_path, kind)
    encoder = load(tmp_path)
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path)(images=PICTURES, return_tensors="pt")
    made = tokenizer()(["a dog"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.inference_mode():
        images = features(model.get_image_features(**pixels))
        keys = ("input_ids", "attention_mask") if kind == "clip" else ("input_ids",)
        texts = features(model.get_text_features(**{key: made[key] for key in keys}))
    np.testing.assert_allclose(encoder.encode_images(PICTURES), images, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(["a dog"]), texts, rtol=1e-5, atol=1e-6)
    assert encoder.card["context_length"] == 16
    assert ("logit_bias" in encoder.observed()) is (kind == "siglip")


def test_siglip_is_given_lower_case_and_its_full_length_and_clip_the_text_as_it_is(tmp_path):
    save(tmp_path / "siglip", "siglip")
    save(tmp_path / "clip", "clip")
    siglip, clip = load(tmp_path / "siglip"), load(tmp_path / "clip")
    assert siglip.tokens(["A DOG"]).shape == (1, 16)
    np.testing.assert_array_equal(siglip.encode_texts(["A DOG"]), siglip.encode_texts(["a dog"]))
    assert not np.array_equal(clip.encode_texts(["A DOG"]), clip.encode_texts(["a dog"]))
    as_is = load(tmp_path / "siglip", lowercase=False, max_length=8)
    assert as_is.tokens(["A DOG"]).shape == (1, 8)
    assert as_is.asked() == {"tokenizer": {"lowercase": False, "max_length": 8}}
    assert as_is.observed()["tokenizer"] != siglip.observed()["tokenizer"]


def test_an_export_says_the_same_preprocessing(tmp_path):
    for kind in ("clip", "siglip"):
        save(tmp_path / kind, kind)
        steps = json.loads((tmp_path / kind / "preprocessor_config.json").read_text())
        assert load(tmp_path / kind).preprocessing == str(ImageSteps(steps, ""))


def test_long_texts_are_cut_and_counted(tmp_path):
    save(tmp_path, "siglip")
    encoder = load(tmp_path)
    assert encoder.count_truncated(["a dog", "a " * 40]) == 1
    assert encoder.encode_texts(["a " * 40]).shape[0] == 1


def test_other_kinds_of_models_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(CheckpointError, match=r"model_type 'blip'; expected clip, siglip, siglip2, or your own"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is not there; expected hf:ORG/REPO"):
        load(tmp_path)


@pytest.mark.fault("code in a checkpoint")
def test_pickled_weights_are_refused(tmp_path):
    save(tmp_path, "clip")
    state = {"any": torch.zeros(1)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        load(tmp_path)


def test_weights_that_are_incomplete_are_refused_and_not_filled_with_random_numbers(tmp_path):
    save(tmp_path, "clip")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's tensors, such as visual_projection\.weight"):
        load(tmp_path)


@pytest.mark.fault("code in a checkpoint")
def test_code_of_a_repository_is_never_run(tmp_path):
    save(tmp_path, "clip")
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    for name, key in (("config.json", "AutoModel"), ("tokenizer_config.json", "AutoTokenizer")):
        settings = json.loads((tmp_path / name).read_text())
        value = ["evil.Evil", None] if key == "AutoTokenizer" else "evil.Evil"
        (tmp_path / name).write_text(json.dumps({**settings, "auto_map": {key: value}}))
    with suppress(CheckpointError):
        load(tmp_path)
    assert not marker.exists()


def test_a_repository_that_cannot_be_had_skips():
    (spec,) = resolve(["hf:nobody/nothing@abc"])
    assert spec.name == "hf:nobody/nothing"
    with pytest.raises(WeightsUnavailableError, match="nobody/nothing@abc cannot be had from the hub"):
        load_encoder(spec, Resources(), True)
