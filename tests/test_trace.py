"""Two traces compared: the first stage that moved is named, rounding is not a move, and damage is never "the same"."""

import base64
import copy
import json

import numpy as np
import pytest
from fakes import ColourEncoder, custom
from paired_runs import RULES, cell, natural, run_of
from paired_runs import trace_of as stated
from PIL import Image

from clipbench.embed.trace import read_sample, sample, trace_of
from clipbench.judge.compare import compare_runs
from clipbench.judge.trace import STAGES, compare_traces, rows_moved, sentence
from clipbench.models.zoo import ModelSpec
from clipbench.report.comparison import to_github, to_json, to_pull_request, to_text

BUDGET = RULES.budget("fp32")
SAMPLED = ("decoded_pixels", "preprocessed_tensor", "tokens", "image_rows", "text_rows")


@pytest.fixture(scope="module")
def trace(tiny_models):
    from clipbench.models.open_clip import load_open_clip

    return trace_of(
        load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu"), "cpu", "fp32", True)
    )


def values_of(entry):
    dtype = np.dtype(entry["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(entry["values"]), dtype=dtype)


def shifted(trace, stage, by, sampled=False):
    """The trace with every value of the first sample of a stage moved: whole samples get their new hash."""
    head = copy.deepcopy(trace)
    entry = head["stages"][stage][0]
    moved = values_of(entry) + np.asarray(by, dtype=values_of(entry).dtype)
    if moved.size == np.prod(entry["shape"]):
        entry |= sample(moved, whole=moved.size)
    else:
        entry |= {"values": base64.b64encode(moved.tobytes()).decode(), "sha256": "f" * 64}
    return head


def states(base, head):
    return {f.stage: f.state for f in compare_traces([base], [head])}


def test_a_trace_against_itself_moved_nowhere_and_every_stage_is_said(trace):
    findings = compare_traces([trace], [copy.deepcopy(trace)])
    assert [f.stage for f in findings] == list(STAGES)
    assert {f.state for f in findings} == {"same"}
    assert sentence(findings, "tiny-vit").startswith(
        "no stage moved; image rows: cosine to base min 1.00000, mean 1.00000"
    )


@pytest.mark.parametrize(
    ("stage", "by"),
    [("decoded_pixels", 1), ("preprocessed_tensor", 0.012), ("tokens", 1), ("image_rows", 0.01), ("text_rows", 0.01)],
)
def test_a_stage_that_moved_is_named_and_no_other(trace, stage, by):
    findings = compare_traces([trace], [shifted(trace, stage, by)])
    assert [f.stage for f in findings if f.moved] == [stage]
    assert {f.state for f in findings} == {"same", "moved"}


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("weights", {"model": {"weights_sha256": "0" * 64}}),
        ("precision", {"model": {"precision": "bf16"}}),
        ("activation", {"activations": {"QuickGELU": 4}}),
    ],
)
def test_what_is_stated_moves_too(trace, stage, change):
    head = copy.deepcopy(trace)
    for key, value in change.items():
        head[key] = {**head[key], **value} if key == "model" else value
    assert [f.stage for f in compare_traces([trace], [head]) if f.moved] == [stage]


def test_the_sentence_says_what_moved_by_how_much_and_what_did_not(trace):
    findings = compare_traces([trace], [shifted(trace, "preprocessed_tensor", 0.012)])
    words = sentence(findings, "tiny-vit")
    assert words.startswith(
        "preprocessing changed (mean abs 0.012, max 0.012, 1 of 8 pictures); decoding, tokens, weights"
    )
    assert "activation did not" in words


def test_the_first_stage_that_moved_comes_before_its_consequences(trace):
    head = shifted(shifted(trace, "image_rows", 0.01), "preprocessed_tensor", 0.5)
    findings = compare_traces([trace], [head])
    assert [f.stage for f in findings if f.moved] == ["preprocessed_tensor", "image_rows"]
    assert next(f for f in findings if f.moved).numbers["mean_abs"] == pytest.approx(0.5)
    words = sentence(findings, "tiny-vit")
    assert words.index("preprocessing changed") < words.index("image rows changed")


@pytest.mark.parametrize(("stage", "by"), [("preprocessed_tensor", 2e-6), ("image_rows", 1e-6), ("text_rows", 1e-6)])
def test_rounding_within_the_budget_is_no_move(trace, stage, by):
    assert states(trace, shifted(trace, stage, by))[stage] == "same"
    assert states(trace, shifted(trace, stage, 200 * by))[stage] == "moved"


def test_the_budget_is_that_of_the_coarser_precision_only_when_both_have_it(trace):
    coarse, moved = (copy.deepcopy(p) for p in (trace, shifted(trace, "image_rows", 0.0004)))
    moved["model"]["precision"] = "bf16"
    assert states(trace, moved)["image_rows"] == "moved"
    coarse["model"]["precision"] = "bf16"
    assert states(coarse, moved)["image_rows"] == "same"


def test_another_hash_with_equal_samples_is_a_change_elsewhere_not_the_same(trace):
    head = copy.deepcopy(trace)
    head["stages"]["preprocessed_tensor"][0]["sha256"] = "f" * 64
    finding = next(f for f in compare_traces([trace], [head]) if f.stage == "preprocessed_tensor")
    assert finding.moved
    assert "not at the sampled positions" in finding.details


def test_another_resolution_or_context_or_dim_is_a_move(trace):
    head = copy.deepcopy(trace)
    head["stages"]["preprocessed_tensor"] = [sample(np.zeros((3, 64, 64), np.float32)) for _ in range(8)]
    head["stages"]["tokens"] = [sample(np.ones(32, np.int64)) for _ in range(8)]
    head["stages"]["image_rows"] = [sample(np.ones(64)) for _ in range(8)]
    found = {f.stage: f.details for f in compare_traces([trace], [head]) if f.moved}
    assert found["preprocessed_tensor"] == "shape (3, 32, 32) -> (3, 64, 64)"
    assert "context length 77 -> 32" in found["tokens"]
    assert found["image_rows"] == "dim 32 -> 64"


DAMAGE = {
    "no base64": lambda stages, s: stages[s][0].update(values="@@@"),
    "cut short": lambda stages, s: stages[s][0].update(values=stages[s][0]["values"][:8]),
    "no values": lambda stages, s: stages[s][0].update(values=""),
    "one item fewer": lambda stages, s: stages[s].pop(),
    "no items": lambda stages, s: stages[s].clear(),
    "no stage": lambda stages, s: stages.pop(s),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("stage", SAMPLED)
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_damaged_or_missing_stage_is_unknown_and_spoils_no_other(trace, stage, damage, side):
    broken = copy.deepcopy(trace)
    DAMAGE[damage](broken["stages"], stage)
    found = states(*((broken, trace) if side == "base" else (trace, broken)))
    assert found[stage] == "unknown"
    assert {s for name, s in found.items() if name != stage} == {"same"}


def test_a_live_model_that_does_not_show_its_activations_is_unknown(trace):
    silent = {key: value for key, value in trace.items() if key != "activations"}
    findings = compare_traces([trace], [silent])
    assert [(f.stage, f.details) for f in findings if f.state != "same"] == [("activation", "not shown by the encoder")]
    assert "activation: unknown (not shown by the encoder)" in sentence(findings, "tiny-vit")


def test_a_missing_trace_two_of_one_model_or_another_version_are_unknown(trace):
    for base, head in (([trace], []), ([trace, trace], [trace]), ([trace], [{**trace, "version": 1}])):
        findings = compare_traces(base, head)
        assert {f.state for f in findings} == {"unknown"}
        assert sentence(findings, "tiny-vit").startswith("nothing is known")


class Any(ColourEncoder):
    """Sees colours, and reads any text."""

    def encode_texts(self, texts):
        return np.array([[len(text), 1.0, 99.0] for text in texts])


class Swapped(Any):
    def encode_images(self, images):
        return super().encode_images([Image.merge("RGB", image.split()[::-1]) for image in images])


def test_an_encoder_that_is_not_ours_is_compared_by_its_rows_alone():
    findings = compare_traces(*([trace_of(custom(e))] for e in (Any(), Swapped())))
    assert [f.stage for f in findings if f.moved] == ["image_rows"]
    unknown = {"preprocessed_tensor", "tokens", "weights", "activation"}
    assert {f.stage for f in findings if f.state == "unknown"} == unknown
    assert "preprocessing: unknown (not in the trace of base)" in sentence(findings, "fake")


def test_rows_too_long_to_keep_whole_are_compared_at_their_positions():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(4, 5000))
    base = [sample(row, 2048) for row in rows]
    for scale, state in ((1e-7, "same"), (1e-2, "moved")):
        head = [sample(row + scale * generator.normal(size=5000), 2048) for row in rows]
        assert rows_moved([read_sample(s) for s in base], [read_sample(s) for s in head], BUDGET)[0] == state


def test_every_format_of_a_comparison_names_the_first_stage_and_the_verdict_does_not_hang_on_it(trace):
    result = natural(model="tiny-vit")
    base = run_of(result, traces=[trace])
    for head_trace, word in (
        (trace, "no stage moved"),
        (shifted(trace, "preprocessed_tensor", 0.012), "preprocessing changed"),
    ):
        comparison = compare_runs(base, run_of(result, traces=[head_trace]), RULES)
        assert comparison.exit_code == 0
        assert f"first stage that moved\n  tiny-vit: {word}" in to_text(comparison, "command")
        assert f"| tiny-vit | {word}" in to_pull_request(comparison, "command")
        assert (f"tiny-vit: {word}" in to_github(comparison)) is (word != "no stage moved")
        stages = json.loads(to_json(comparison, "command"))["stages"]
        assert [s["stage"] for s in stages if s["state"] == "moved"] == [f.stage for f in comparison.stages if f.moved]


def test_runs_without_traces_say_nothing_of_stages():
    base = run_of(natural(), traces=[])
    assert "first stage" not in to_text(compare_runs(base, base, RULES), "command")


# What a trace decides: whether the head gives the same rows again.

TWICE = {"images": {"n": 299, "largest": 0.0, "items": []}}
BROKEN = {"images": {"n": 299, "largest": 0.2, "items": ["i7"]}}


@pytest.mark.parametrize(
    ("base", "head", "precision", "outcome", "words"),
    [
        ({}, {"repeat": 9e-4}, "fp32", "pass", "repeats: 0.0009 in the same batch"),
        ({}, {"repeat": 2e-3}, "fp32", "fail", "the same batch twice gives rows 0.002 apart, allowed 0.001"),
        ({"batches": 5e-4}, {"batches": 9e-4}, "fp32", "pass", "0.0009 in others"),
        ({}, {"batches": 9e-4}, "fp32", "inconclusive", "rows depend on their batch more than base's"),
        ({}, {"batches": 9e-4}, "bf16", "pass", "0.0009 in others"),
        ({}, {"batches": 5e-3}, "fp32", "fail", "another batch size moves a row by 0.005, allowed 0.001 in fp32"),
        ({}, {"again": TWICE}, "fp32", "pass", "repeats"),
        ({}, {"again": BROKEN}, "fp32", "fail", "299 images encoded twice: one is 0.2 away from its own row, allowed 0.001: i7"),
        ({}, {"error": "KeyError: page"}, "fp32", "fail", "the trace could not be made: KeyError: page"),
        ({"error": "KeyError: page"}, {"error": "KeyError: page"}, "fp32", "note", "takes its own items alone"),
        ({"error": "KeyError: page"}, {"error": "KeyError: page", "again": TWICE}, "fp32", "pass", "takes its own items alone"),
        ({"error": "KeyError: page"}, {"error": "KeyError: page", "again": BROKEN}, "fp32", "fail", "away from its own row"),
    ],
)  # fmt: skip
def test_a_head_that_does_not_give_the_same_rows_again_fails(base, head, precision, outcome, words):
    result = natural(precision=precision)
    runs = [run_of(result, traces=[stated(result.model, **one)]) for one in (base, head)]
    found = cell(compare_runs(*runs, RULES), "trace")
    assert found.outcome == outcome
    assert words in found.verdicts[0].reason
