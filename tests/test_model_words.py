"""From the grammar to what is loaded: kinds, aliases, lists, patterns and --model-args."""

import json

import open_clip
import pytest
import torch
from fakes import TINY_VIT
from safetensors.torch import save_file

from clipbench.errors import CheckpointError, UsageError, WeightsUnavailableError
from clipbench.models import load_encoder
from clipbench.models.device import Resources
from clipbench.models.zoo import ModelSpec, resolve, with_arguments


def only(*arguments, **more):
    (spec,) = resolve(*arguments, **more)
    return spec


@pytest.fixture
def folder(tmp_path):
    """A model as open_clip saves it: settings and safetensors in a folder."""
    made = tmp_path / "saved"
    made.mkdir()
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    settings = {"model_cfg": TINY_VIT, "preprocess_cfg": preprocess}
    (made / "open_clip_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{made}", load_weights=False)
    save_file(model.state_dict(), made / "open_clip_model.safetensors")
    return made


def test_an_alias_is_the_name_and_what_it_stands_for_stays_known():
    spec = only(["prod=ViT-B/32"])
    assert (spec.name, spec.known_as, spec.pretrained, spec.word) == (
        "prod",
        "ViT-B/32",
        "openai",
        "prod=open_clip:ViT-B/32",
    )
    spec = only(["prod=acme.clip:int8"])
    assert (spec.name, spec.location, spec.loader) == ("prod", "acme.clip:int8", "factory acme.clip:int8")
    assert only(["acme.clip:int8"]).loader == "factory"


def test_two_tags_of_one_architecture_are_two_models_with_names_of_their_own():
    specs = resolve(["open_clip:ViT-B-32@laion2b_e16", "open_clip:ViT-B-32@openai", "ViT-B/32"])
    assert [s.name for s in specs] == ["ViT-B/32@laion2b_e16", "ViT-B/32@openai", "ViT-B/32"]
    assert {s.known_as or s.name for s in specs} == {"ViT-B/32"}
    assert specs[0].activation == "gelu"


def test_a_word_means_the_same_model_again():
    for word in ("open_clip:ViT-B-32@laion2b_e16", "x=open_clip:RN50@random:3", "x=RN50", "x=a:b"):
        spec = only([word])
        assert only([spec.word]) == spec


def test_a_list_of_models_is_read(tmp_path):
    (tmp_path / "models.txt").write_text("ViT-B-32,laion2b_e16\nRN50,openai\n")
    assert [s.name for s in resolve([str(tmp_path / "models.txt")])] == ["ViT-B/32@laion2b_e16", "RN50@openai"]
    with pytest.raises(UsageError, match=r"none\.txt is not there"):
        resolve([str(tmp_path / "none.txt")])


@pytest.mark.parametrize("how", ["kind", "option"])
def test_a_pattern_of_checkpoints_is_one_model_each_in_their_natural_order(tmp_path, how):
    for epoch in (2, 10):
        (tmp_path / f"epoch_{epoch}.pt").write_bytes(b"not read while names are looked up")
    pattern = str(tmp_path / "epoch_*.pt")
    asked = ([f"run=open_clip:ViT-B-32@{pattern}"], None) if how == "kind" else (["ViT-B-32"], pattern)
    specs = resolve(*asked, "gelu")
    prefix = "run" if how == "kind" else "ViT-B/32"
    assert [s.name for s in specs] == [f"{prefix}@epoch_2", f"{prefix}@epoch_10"]
    assert [s.source for s in specs] == ["path", "path"]
    with pytest.raises(UsageError, match=r"matches no file; .* holds epoch_10\.pt, epoch_2\.pt"):
        resolve(["ViT-B-32"], str(tmp_path / "*.safetensors"), "gelu")


@pytest.mark.fault("options that cannot be meant")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ViT-B/32=lite"], "no alias"),
        (["RN50=acme:fp32"], "the name of a model that is known"),
        (["lite=acme:fp32"], "the name of a model that is known"),
        (["x=a:b", "x=a:c"], r"two models are called x \(a:b and a:c\)"),
        (["x=study"], "several"),
        (["onnx:nowhere"], "there is no folder nowhere; expected onnx:FOLDER with vision_model.onnx"),
        (["hf:nowhere"], "there is no folder nowhere; expected hf:ORG/REPO"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(words, message):
    with pytest.raises(UsageError, match=message):
        resolve(words)


def test_model_args_are_refused_where_the_loader_takes_none_or_another():
    with pytest.raises(UsageError, match=r"the loader of lite \(lite\) takes none"):
        resolve(["lite"], arguments={"force_image_size": 336})
    with pytest.raises(UsageError, match="takes force_image_size"):
        resolve(["RN50"], arguments={"force_imgsize": 336})
    with pytest.raises(UsageError, match="image_resize_mode=stretch: expected one of shortest, longest, squash"):
        resolve(["RN50"], arguments={"image_resize_mode": "stretch"})
    with pytest.raises(UsageError, match="expected a whole number above 0"):
        resolve(["RN50"], arguments={"force_image_size": "336"})


def test_a_model_whose_loader_was_told_otherwise_is_held_to_nothing_published():
    spec = only(["RN50"], arguments={"image_resize_mode": "squash"})
    assert spec.name == "RN50"
    assert spec.known_as not in ("", "RN50")


def test_model_args_reach_open_clip(tiny_models):
    asked = {"force_image_size": 48, "force_context_length": 20, "image_resize_mode": "squash"}
    spec = with_arguments(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu"), asked)
    encoder = load_encoder(spec, Resources(), True)
    assert (encoder.card["image_size"], encoder.card["context_length"]) == (48, 20)
    assert "squash to 48x48" in encoder.preprocessing
    assert encoder.asked()["preprocessing"] == {"resize_mode": "squash", "force_image_size": 48}
    assert encoder.encode_texts(["a dog " * 40]).shape == (1, 32)


def test_weights_of_another_size_are_interpolated_where_that_was_asked_for(tiny_models, folder):
    spec = only([f"m=local-dir:{folder}"], arguments={"force_image_size": 48})
    assert load_encoder(spec, Resources(), True).card["image_size"] == 48


def test_a_factory_is_called_with_the_arguments(tmp_path, monkeypatch):
    lines = ["def make(bits):", "    found = ColourEncoder()", "    found.config = {'bits': bits}", "    return found"]
    (tmp_path / "with_args.py").write_text("\n".join(["from fakes import ColourEncoder", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load_encoder(only(["prod=with_args:make"], arguments={"bits": 8}), Resources(), True)
    assert encoder.identity.name == "prod"
    assert encoder.asked() == {"config": {"bits": 8}}
    with pytest.raises(CheckpointError, match="unexpected keyword argument 'colour'"):
        load_encoder(only(["with_args:make"], arguments={"colour": 8}), Resources(), True)


def test_a_folder_of_open_clip_is_loaded_with_its_own_preprocessing(folder):
    spec = only([f"local-dir:{folder}"])
    assert spec.name == "local-dir:saved"
    encoder = load_encoder(spec, Resources(), True)
    assert "squash" in encoder.preprocessing
    assert encoder.identity.file_sha256
    assert encoder.encode_texts(["a dog"]).shape == (1, 32)


@pytest.mark.fault("code in a checkpoint")
def test_a_folder_without_safetensors_is_refused_even_where_a_pickle_lies_there(folder):
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="save the weights as safetensors"):
        load_encoder(only([f"local-dir:{folder}"]), Resources(), True)


def test_a_hub_that_cannot_be_had_skips_with_the_way_out():
    with pytest.raises(WeightsUnavailableError, match=r"offline.*connect once, or give a folder"):
        load_encoder(only(["hf-hub:nobody/nothing"]), Resources(), True)
