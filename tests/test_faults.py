"""The faults: each changes the stage that it names first, and nothing before it; the gate lets none of them pass."""

from dataclasses import replace

import faults
import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset, custom
from faults import FAULTS, NOISE, degraded_run, fault, fault_row, fault_table, main
from PIL import Image

from clipbench.embed.embedder import Embedder
from clipbench.embed.trace import trace_of
from clipbench.errors import UsageError
from clipbench.experiments.matching import matched
from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import read_rules
from clipbench.judge.trace import OUTCOMES, STAGES, compare_traces, first_moved
from clipbench.models.device import Resources
from clipbench.models.zoo import ModelSpec
from clipbench.session import Session
from clipbench.storage import read_run

QUICK = ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "quickgelu")
GELU = ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu")
PLAIN = ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "")
CONSEQUENCES = {"texts": {"tokens"}}
MOVES = {
    "bf16": {"image_rows", "text_rows"},
    "int8_mlps": {"image_rows", "text_rows"},
    "other_activation": {"image_rows", "text_rows"},
    "bilinear": {"image_rows"},
    "bilinear_undeclared": {"image_rows"},
    "swapped_channels": {"image_rows"},
    "noise": {"image_rows", "text_rows"},
    "another_prompt": {"text_rows"},
    "forgotten_prefix": {"text_rows"},
}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory, tiny_models):
    """Four pictures of noise: a resize or a swapped channel shows on them, on one colour it would not."""
    dataset = colour_dataset(tmp_path_factory.mktemp("noise"))
    generator = np.random.default_rng(0)
    for item in dataset.items:
        picture = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(picture).save(item.image.path)
    return dataset


@pytest.fixture(scope="module")
def on_noise(noisy):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "dataset", lambda self, one, name: noisy)
        yield noisy


@pytest.fixture(scope="module")
def runs(on_noise):
    """The run without a fault, under "base", and the run with each."""
    return {"base": run_of(QUICK, None)} | {f.name: run_of(QUICK, f) for f in FAULTS}


def load(spec, precision="fp32"):
    from clipbench.models.open_clip import load_open_clip

    return load_open_clip(spec, "cpu", precision, True)


def run_of(spec, chosen):
    run, why = degraded_run(spec, chosen, ["natural"])
    assert why == ""
    return run


@pytest.mark.parametrize("name", [f.name for f in FAULTS])
def test_a_fault_changes_the_stage_it_names_first_and_no_other_input(runs, name):
    chosen = fault(name)
    findings = compare_traces(runs["base"].traces, runs[name].traces)
    assert first_moved(findings)["tiny-vit"].stage == chosen.stage
    moved = {f.stage for f in findings if f.moved}
    assert moved - set(OUTCOMES) == {chosen.stage} | CONSEQUENCES.get(chosen.stage, set())
    assert moved & {"image_rows", "text_rows"} == MOVES[name]
    assert {f.state for f in findings} == {"same", "moved"}


@pytest.mark.parametrize("name", [f.name for f in FAULTS])
def test_the_gate_lets_no_fault_pass(runs, name):
    assert compare_runs(runs["base"], runs[name], read_rules()).exit_code in (1, 3)


def test_the_gate_passes_the_same_model_and_its_row_says_that_no_stage_moved(runs, on_noise):
    none = replace(fault("noise"), degrade=lambda encoder, seed: "")
    row = fault_row(none, runs["base"], run_of(QUICK, none))
    assert row[2:6] == ("none", "1.00000", "pass", "0")


def test_a_degraded_run_is_the_same_every_time_and_depends_on_the_seed(runs, on_noise):
    assert run_of(QUICK, fault("noise")).traces == runs["noise"].traces
    other, _ = degraded_run(QUICK, fault("noise"), ["natural"], seed=1)
    assert other.traces != runs["noise"].traces


def test_noise_is_one_percent_of_each_tensor_s_own_spread(tiny_models):
    import torch

    clean, noisy = load(QUICK), load(QUICK)
    fault("noise").degrade(noisy, 0)
    weights = dict(clean.model.named_parameters())
    for name, tensor in noisy.model.named_parameters():
        before = weights[name]
        if tensor.numel() > 1000 and before.std() > 0:
            assert (tensor - before).std() / before.std() == pytest.approx(NOISE, rel=0.15)
    assert torch.equal(noisy.model.logit_scale, clean.model.logit_scale)
    assert noisy.identity.weights_sha256 != clean.identity.weights_sha256


def test_int8_leaves_255_levels_a_row_in_the_mlps_and_every_other_weight_alone(tiny_models):
    import torch

    clean, rounded = load(QUICK), load(QUICK)
    fault("int8_mlps").degrade(rounded, 0)
    before = dict(clean.model.named_parameters())
    for name, tensor in rounded.model.named_parameters():
        if ".mlp." in name and name.endswith("weight"):
            assert not torch.equal(tensor, before[name])
            step = before[name].abs().amax(1, keepdim=True) / 127
            levels = tensor / step
            assert torch.allclose(levels, levels.round(), atol=1e-3)
            assert (tensor - before[name]).abs().max() <= step.max() / 2 + 1e-7
        else:
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("spec", "kinds"), [(QUICK, {"GELU": 4}), (GELU, {"QuickGELU": 4})])
def test_the_activation_is_swapped_either_way_without_a_word_in_the_identity(noisy, spec, kinds):
    encoder = load(spec)
    assert fault("other_activation").degrade(encoder, 0) == ""
    assert trace_of(encoder, noisy, *matched(Embedder(encoder, Resources()), noisy))["activations"] == kinds
    assert encoder.identity.activation == spec.activation


def test_where_there_is_no_choice_the_fault_does_not_apply_and_the_table_says_so(on_noise):
    _, table = fault_table(PLAIN, [fault("other_activation")], ["natural"])
    assert table.rows[0][4:] == ("does not apply", "-", "the architecture has one activation")


def test_bilinear_needs_a_bicubic_resize(noisy):
    encoder = load(QUICK)
    encoder.model.visual.preprocess_cfg["interpolation"] = "bilinear"
    assert "already" in fault("bilinear").degrade(encoder, 0)


def test_only_a_declared_fault_is_stated_in_the_result(runs):
    said = {name: (run.results[0].protocol, run.results[0].model.preprocessing) for name, run in runs.items()}
    assert {name for name, stated in said.items() if stated != said["base"]} == {"bilinear", "another_prompt"}
    assert "bilinear" in said["bilinear"][1]
    assert said["another_prompt"][0].prompts == ("a photo of {caption}",)


def test_the_runs_are_kept_and_can_be_read_again(on_noise, tmp_path):
    fault_table(QUICK, [fault("bf16")], ["natural"], tmp_path)
    base, head = read_run(tmp_path / "tiny-vit-base.json"), read_run(tmp_path / "tiny-vit-bf16.json")
    assert first_moved(compare_traces(base.traces, head.traces))["tiny-vit"].stage == "precision"


def test_every_fault_names_a_stage_of_the_trace():
    assert {f.stage for f in FAULTS} <= set(STAGES)
    assert len({f.name for f in FAULTS}) == len(FAULTS)


def test_an_unknown_fault_or_an_encoder_that_is_not_ours_is_refused_in_one_line(monkeypatch, capsys):
    assert main(["--model", "lite", "--fault", "bf61"]) == 2
    assert "closest: bf16" in capsys.readouterr().err
    assert main(["--pretrained", "openai"]) == 2
    assert "--pretrained needs --model" in capsys.readouterr().err
    monkeypatch.setattr(faults, "load_encoder", lambda spec, resources, offline: custom(ColourEncoder()))
    with pytest.raises(UsageError, match="your own"):
        degraded_run(QUICK, None)


def test_the_command_prints_the_table_and_keeps_it(on_noise, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(faults, "resolve", lambda names, weights: [QUICK])
    arguments = ["--model", "x", "--fault", "swapped_channels", "--experiment", "natural", "--results", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| swapped_channels | BGR in place of RGB, undeclared | preprocessing (mean abs" in printed
    assert (tmp_path / "faults.md").read_text() == printed
