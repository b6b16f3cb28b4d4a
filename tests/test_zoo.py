"""Names on the command line."""

import json
import zipfile

import pytest

from clipbench.errors import UnknownModelError, UsageError
from clipbench.models.zoo import expand, is_torchscript, open_clip_configs, resolve, zoo


def only(*arguments):
    (spec,) = resolve(*arguments)
    return spec


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not read while names are looked up")
    return path


def test_both_spellings_are_one_model_run_once():
    assert [s.name for s in resolve(["ViT-B-16", "ViT-B/16,ViT-B-16-quickgelu"])] == ["ViT-B/16"]


def test_study_is_three_models_and_all_is_nine():
    assert [s.name for s in resolve(["study"])] == ["RN50", "ViT-B/16", "ViT-L/14"]
    assert [s.name for s in resolve(["all"], "random")] == list(zoo())
    assert len(zoo()) == 9


def test_every_zoo_row_names_an_architecture_that_open_clip_has_with_both_activations():
    for row in zoo().values():
        assert {row.open_clip, row.open_clip + "-quickgelu"} <= open_clip_configs().keys()


def test_an_unknown_name_lists_the_closest_first():
    with pytest.raises(UnknownModelError, match=r"unknown model 'ViT-B/61'; closest: ViT-B/16"):
        resolve(["ViT-B/61"])


def test_an_empty_name_is_refused():
    with pytest.raises(UsageError, match="empty name"):
        expand(["ViT-B/16,,RN50"])


@pytest.mark.parametrize(("option", "arguments"), [("--pretrained", ("random",)), ("--activation", (None, "gelu"))])
@pytest.mark.parametrize("name", ["lite", "package.module:factory"])
def test_models_that_bring_their_weights_take_no_weight_options(name, option, arguments):
    with pytest.raises(UsageError, match=option):
        resolve([name], *arguments)


def test_one_checkpoint_cannot_be_several_models(checkpoint):
    with pytest.raises(UsageError, match="one checkpoint, but 2 models"):
        resolve(["ViT-B/16", "RN50"], str(checkpoint))


@pytest.mark.parametrize("path", ["missing.pt", "/no/such/file.safetensors"])
def test_a_missing_checkpoint_is_a_usage_error_that_names_it(path):
    with pytest.raises(UsageError, match=path):
        resolve(["ViT-B/16"], path)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(UsageError, match="a folder, not a file"):
        resolve(["ViT-B/16"], str(tmp_path))


def test_openai_models_default_to_openai_weights_with_quickgelu():
    spec = only(["ViT-B-16"])
    assert (spec.source, spec.pretrained, spec.activation) == ("tag", "openai", "quickgelu")


@pytest.mark.parametrize(
    ("name", "tag", "activation"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k", "gelu"),
        ("ViT-B-16", "datacomp_xl_s13b_b90k", "gelu"),
        ("ViT-B-16", "metaclip_400m", "quickgelu"),
        ("ViT-B-16", "dfn2b", "quickgelu"),
        ("ViT-B-16-SigLIP", "webli", ""),
    ],
)
def test_the_activation_of_a_known_tag_is_open_clips_own(name, tag, activation):
    assert only([name], tag).activation == activation


def test_a_known_tag_cannot_be_given_the_wrong_activation():
    with pytest.raises(UsageError, match="trained with quickgelu"):
        resolve(["ViT-B/16"], "openai", "gelu")


def test_an_unknown_tag_lists_the_closest():
    with pytest.raises(UsageError, match=r"no such weights; closest: laion2b_e16"):
        resolve(["ViT-B-32"], "laion2b_e17")


def test_a_model_with_several_tags_and_no_default_asks_for_one():
    with pytest.raises(UsageError, match="needs --pretrained: one of laion2b_s32b_b79k"):
        resolve(["ViT-H-14"])


def test_openais_spelling_and_the_suffix_mean_quickgelu_for_a_path(checkpoint):
    assert only(["ViT-B/16"], str(checkpoint)).activation == "quickgelu"
    assert only(["ViT-B-16-quickgelu"], str(checkpoint)).activation == "quickgelu"


def test_a_bare_open_clip_name_with_a_path_demands_the_activation(checkpoint):
    with pytest.raises(UsageError, match="add --activation quickgelu"):
        resolve(["ViT-B-16"], str(checkpoint))
    assert only(["ViT-B-16"], str(checkpoint), "gelu").activation == "gelu"


@pytest.mark.parametrize(("quick_gelu", "activation"), [(True, "quickgelu"), (False, "gelu")])
def test_the_configuration_beside_a_checkpoint_says_the_activation(checkpoint, quick_gelu, activation):
    (checkpoint.parent / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": quick_gelu}}))
    assert only(["ViT-B-16"], str(checkpoint)).activation == activation


@pytest.mark.fault("JSON and TOML made to harm")
@pytest.mark.parametrize("text", ["{", "[]", '{"model_cfg": 3}'])
def test_a_broken_configuration_beside_a_checkpoint_is_named(checkpoint, text):
    (checkpoint.parent / "open_clip_config.json").write_text(text)
    with pytest.raises(UsageError, match=r"open_clip_config\.json"):
        resolve(["ViT-B-16"], str(checkpoint))


def test_an_openai_archive_is_quickgelu_whatever_it_is_called(tmp_path):
    path = tmp_path / "archive.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x/constants.pkl", "x/data.pkl", "x/code/__torch__.py"):
            archive.writestr(name, b"")
    assert is_torchscript(path)
    assert only(["ViT-B-16"], str(path)).activation == "quickgelu"
    with pytest.raises(UsageError, match="OpenAI archive"):
        resolve(["ViT-B/16"], str(path), "gelu")


def test_an_architecture_with_one_activation_takes_no_option(checkpoint):
    with pytest.raises(UsageError, match="only one activation"):
        resolve(["ViT-B-16-SigLIP"], str(checkpoint), "gelu")


@pytest.mark.parametrize(("given", "meant"), [("random", "random:0"), ("random:7", "random:7")])
def test_random_weights_carry_their_seed(given, meant):
    assert only(["RN50"], given).pretrained == meant
