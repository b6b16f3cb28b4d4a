"""The encoder against open_clip's own calls, and the ways weights come in."""

import json
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clipbench.errors import CheckpointError
from clipbench.models.encoder import unit_rows
from clipbench.models.open_clip import load_open_clip
from clipbench.models.zoo import ModelSpec

TEXTS = ["a photo of a cat", "This is a page of text about segmentation", "", "word " * 100]
FLAVOURS = ("gelu", "quickgelu")


def spec(name, activation="gelu", source="random", pretrained="random:0"):
    return ModelSpec(name, source, pretrained, name, activation, "the test")


def images(n=3):
    rng = np.random.default_rng(0)
    sizes = [(50, 70), (64, 64), (120, 33)][:n]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def own(name, activation, seed=0):
    """open_clip called as its README does, with the same seeded initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, _, preprocess = open_clip.create_model_and_transforms(name, force_quick_gelu=activation == "quickgelu")
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@pytest.mark.parametrize("activation", FLAVOURS)
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_rows_are_those_of_open_clips_own_calls_one_by_one(tiny_models, name, activation):
    encoder = load_open_clip(spec(name, activation), "cpu", "fp32", offline=True)
    model, preprocess, tokenizer = own(name, activation)
    with torch.no_grad():
        image_rows = torch.cat([model.encode_image(preprocess(i)[None]) for i in images()]).numpy()
        text_rows = torch.cat([model.encode_text(tokenizer([t])) for t in TEXTS]).numpy()
    np.testing.assert_allclose(encoder.encode_images(images()), image_rows, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), text_rows, atol=1e-5)


def test_the_two_activations_give_different_rows(tiny_models):
    rows = [load_open_clip(spec("tiny-vit", a), "cpu", "fp32", offline=True).encode_images(images()) for a in FLAVOURS]
    assert np.abs(rows[0] - rows[1]).max() > 1e-4


def test_the_model_is_in_eval_mode_without_gradients(tiny_models):
    encoder = load_open_clip(spec("tiny-rn"), "cpu", "fp32", offline=True)
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_random_weights_depend_on_the_seed_alone(tiny_models):
    def digest(seed):
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        return load_open_clip(
            spec("tiny-vit", pretrained=f"random:{seed}"), "cpu", "fp32", True
        ).identity.weights_sha256

    assert digest(0) == digest(0) != digest(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("source", ["random", "path"])
def test_loading_leaves_the_global_generator_alone(tiny_models, tmp_path, source, precision):
    chosen = spec("tiny-vit")
    if source == "path":
        torch.save(own("tiny-vit", "gelu")[0].state_dict(), tmp_path / "weights.pt")
        chosen = spec("tiny-vit", source="path", pretrained=str(tmp_path / "weights.pt"))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_open_clip(chosen, "cpu", precision, offline=True)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_lower_precision_keeps_the_weights_hash_and_nearly_the_rows(tiny_models, name, precision):
    full = load_open_clip(spec(name), "cpu", "fp32", offline=True)
    low = load_open_clip(spec(name), "cpu", precision, offline=True)
    assert low.identity.weights_sha256 == full.identity.weights_sha256
    assert low.identity.precision == precision
    for a, b in (
        (full.encode_images(images()), low.encode_images(images())),
        (full.encode_texts(TEXTS), low.encode_texts(TEXTS)),
    ):
        assert 1e-6 < np.abs(unit_rows(a) - unit_rows(b)).max() < 0.05


@pytest.mark.parametrize("source", ["random", "path"])
def test_tf32_has_the_weights_of_fp32_as_they_are_and_rows_that_no_cache_takes_for_them(tiny_models, tmp_path, source):
    chosen = spec("tiny-vit", source="path", pretrained=str(saved(tmp_path))) if source == "path" else spec("tiny-vit")
    full, found = (load_open_clip(chosen, "cpu", precision, offline=True) for precision in ("fp32", "tf32"))
    assert found.model.state_dict()["logit_scale"].dtype == torch.float32
    np.testing.assert_array_equal(found.encode_texts(TEXTS), full.encode_texts(TEXTS))
    np.testing.assert_array_equal(found.encode_images(images()), full.encode_images(images()))
    assert (found.identity.precision, found.depends_on()["precision"]) == ("tf32", "tf32")


def saved(tmp_path, name="tiny-vit", seed=3, **container):
    model, _, _ = own(name, "gelu", seed)
    path = tmp_path / container.get("file", "w.safetensors")
    tensors = {container.get("prefix", "") + k: v.contiguous() for k, v in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"epoch": 1, "state_dict": tensors}, path)
    return path


@pytest.mark.parametrize(
    "container", [{}, {"file": "w.pt"}, {"file": "w.pt", "prefix": "module."}, {"prefix": "_orig_mod."}]
)
def test_a_local_checkpoint_gives_the_rows_of_its_weights(tiny_models, tmp_path, container):
    path = saved(tmp_path, **container)
    encoder = load_open_clip(spec("tiny-vit", "gelu", "path", str(path)), "cpu", "fp32", offline=True)
    same = load_open_clip(spec("tiny-vit", "gelu", "random", "random:3"), "cpu", "fp32", offline=True)
    np.testing.assert_array_equal(encoder.encode_images(images()), same.encode_images(images()))
    assert encoder.identity.weights_sha256 == same.identity.weights_sha256
    assert len(encoder.identity.file_sha256) == 64


def test_a_checkpoint_of_another_architecture_is_refused_with_its_first_keys(tiny_models, tmp_path):
    path = saved(tmp_path, name="tiny-rn")
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        load_open_clip(spec("tiny-vit", "gelu", "path", str(path)), "cpu", "fp32", offline=True)


def test_the_preprocessing_beside_a_checkpoint_is_used(tiny_models, tmp_path):
    path = saved(tmp_path)
    text = {
        "model_cfg": {"quick_gelu": False},
        "preprocess_cfg": {"interpolation": "bilinear", "mean": [0.5, 0.5, 0.5]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(text))
    encoder = load_open_clip(spec("tiny-vit", "gelu", "path", str(path)), "cpu", "fp32", offline=True)
    assert "bilinear" in encoder.preprocessing
    assert "mean 0.5,0.5,0.5" in encoder.preprocessing
    assert encoder.asked() == {"preprocessing": text["preprocess_cfg"]}


def test_the_other_activation_is_that_of_a_model_loaded_with_it_and_is_put_back(tiny_models, tmp_path):
    path = saved(tmp_path)
    ours = load_open_clip(spec("tiny-vit", "gelu", "path", str(path)), "cpu", "fp32", offline=True)
    quick = load_open_clip(
        replace(spec("tiny-vit", "quickgelu", "path"), pretrained=str(path)), "cpu", "fp32", offline=True
    )
    before = ours.encode_images(images())
    with ours.other_activation() as other:
        assert other == "quickgelu"
        np.testing.assert_array_equal(ours.encode_images(images()), quick.encode_images(images()))
        np.testing.assert_array_equal(ours.encode_texts(TEXTS), quick.encode_texts(TEXTS))
    np.testing.assert_array_equal(ours.encode_images(images()), before)


def test_the_other_activation_is_not_asked_for_where_nobody_can_be_wrong(tiny_models):
    assert load_open_clip(spec("tiny-vit"), "cpu", "fp32", offline=True).other_activation() is None


def test_the_card_is_counted_on_the_model(tiny_models):
    encoder = load_open_clip(spec("tiny-vit"), "cpu", "fp32", offline=True)
    model, _, _ = own("tiny-vit", "gelu")
    image = sum(p.numel() for p in model.visual.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert dict(encoder.card) == {
        "params": total,
        "params_image": image,
        "params_text": total - image - 1,
        "image_size": 32,
        "context_length": 77,
        "vocab_size": 49408,
        "embed_dim": 32,
    }


def observed(*arguments, precision="fp32"):
    return load_open_clip(spec(*arguments), "cpu", precision, offline=True).observed()


def test_what_is_observed_says_which_tensors_changed_whatever_the_precision(tiny_models, tmp_path):
    path = saved(tmp_path)
    before = observed("tiny-vit", "gelu", "path", str(path))
    assert before == {**observed("tiny-vit", "gelu", "path", str(path), precision="bf16"), "logit_scale": ANY}
    model, _, _ = own("tiny-vit", "gelu", 3)
    with torch.no_grad():
        model.ln_final.bias += 1
    torch.save(model.state_dict(), tmp_path / "changed.pt")
    after = observed("tiny-vit", "gelu", "path", str(tmp_path / "changed.pt"))
    assert {name for name, sha in after["tensors"].items() if sha != before["tensors"][name]} == {"ln_final.bias"}
    assert after["weights"] != before["weights"]
    assert (after["dim"], after["activation"]) == (32, "gelu")
    assert after["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)


def test_the_tokenizers_fingerprint_is_of_what_it_does(tiny_models):
    encoder = load_open_clip(spec("tiny-vit"), "cpu", "fp32", offline=True)
    before = encoder.tokenizer_sha256()
    assert before == load_open_clip(spec("tiny-rn"), "cpu", "fp32", offline=True).tokenizer_sha256()
    tokenizer = encoder.tokenizer
    encoder.tokenizer = lambda texts: tokenizer([text.upper().replace("É", "E") for text in texts])
    assert encoder.tokenizer_sha256() != before


@pytest.mark.parametrize("change", ["heads", "activation"])
def test_what_rows_depend_on_holds_what_no_tensor_does(tiny_models, change):
    encoder = load_open_clip(spec("tiny-vit"), "cpu", "fp32", offline=True)
    before = encoder.depends_on()["architecture"]
    assert before == load_open_clip(spec("tiny-vit"), "cpu", "fp32", offline=True).depends_on()["architecture"]
    block = encoder.model.visual.transformer.resblocks[0]
    if change == "heads":
        block.attn.num_heads *= 2
    else:
        block.mlp.gelu = torch.nn.ReLU()
    assert encoder.depends_on()["architecture"] != before


def test_nothing_is_left_of_a_closed_model(tiny_models):
    encoder = load_open_clip(spec("tiny-vit"), "cpu", "fp32", offline=True)
    encoder.close()
    assert sum(p.numel() for p in encoder.model.parameters()) == 0
