"""Two traces compared: the first stage that moved is named, rounding is not a move, and damage is never "the same"."""

import base64
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset, custom, matching
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from clipbench.embed.embedder import Embedder
from clipbench.embed.trace import read_sample, sample, trace_of
from clipbench.experiments.matching import matched
from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import read_rules
from clipbench.judge.trace import STAGES, compare_traces, first_moved, other_winners, rank_flips, rows_moved, sentence
from clipbench.models.device import Resources
from clipbench.models.zoo import ModelSpec
from clipbench.report.comparison import to_github, to_json, to_pull_request, to_text
from clipbench.types import Run

BUDGET = read_rules().budget("fp32")
INPUTS = ("decoded_pixels", "preprocessed_tensor", "tokens")
SAMPLED = (*INPUTS, "image_rows", "text_rows", "similarities")


@pytest.fixture(scope="module")
def trace(tiny_models, tmp_path_factory):
    from clipbench.models.open_clip import load_open_clip

    encoder = load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu"), "cpu", "fp32", True)
    dataset = colour_dataset(tmp_path_factory.mktemp("colours"))
    return traced(encoder, dataset)


def traced(encoder, dataset):
    return trace_of(encoder, dataset, *matched(Embedder(encoder, Resources()), dataset))


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
    assert first_moved(findings) == {}
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
    assert first_moved(findings)["tiny-vit"].stage == stage
    assert {f.state for f in findings} == {"same", "moved"}


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("texts", {"texts": ["a photo of red"] * 4}),
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
        "preprocessing changed (mean abs 0.012, max 0.012, 1 of 4 pictures); decoding, prompts, tokens, weights"
    )
    assert "activation did not" in words


def test_the_first_stage_that_moved_comes_before_its_consequences(trace):
    head = shifted(shifted(trace, "image_rows", 0.01), "preprocessed_tensor", 0.5)
    findings = compare_traces([trace], [head])
    assert [f.stage for f in findings if f.moved] == ["preprocessed_tensor", "image_rows"]
    assert first_moved(findings)["tiny-vit"].numbers["mean_abs"] == pytest.approx(0.5)


@pytest.mark.parametrize(("stage", "by"), [("preprocessed_tensor", 2e-6), ("image_rows", 1e-6), ("similarities", 2e-5)])
def test_rounding_within_the_budget_is_no_move(trace, stage, by):
    assert states(trace, shifted(trace, stage, by))[stage] == "same"
    assert states(trace, shifted(trace, stage, 200 * by))[stage] == "moved"


def test_the_budget_is_that_of_the_coarser_precision_only_when_both_have_it(trace):
    coarse, moved = (copy.deepcopy(p) for p in (trace, shifted(trace, "similarities", 0.002)))
    moved["model"]["precision"] = "bf16"
    assert states(trace, moved)["similarities"] == "moved"
    coarse["model"]["precision"] = "bf16"
    assert states(coarse, moved)["similarities"] == "same"


def test_another_hash_with_equal_samples_is_a_change_elsewhere_not_the_same(trace):
    head = copy.deepcopy(trace)
    head["stages"]["preprocessed_tensor"][0]["sha256"] = "f" * 64
    finding = next(f for f in compare_traces([trace], [head]) if f.stage == "preprocessed_tensor")
    assert finding.moved
    assert "not at the sampled positions" in finding.details


def test_another_resolution_or_context_or_dim_is_a_move(trace):
    head = copy.deepcopy(trace)
    head["stages"]["preprocessed_tensor"] = [sample(np.zeros((3, 64, 64), np.float32)) for _ in range(4)]
    head["stages"]["tokens"] = [sample(np.ones(32, np.int64)) for _ in range(4)]
    head["stages"]["image_rows"] = [sample(np.ones(64)) for _ in range(4)]
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
def test_a_damaged_or_missing_stage_cannot_be_told_and_spoils_no_other(trace, stage, damage, side):
    broken = copy.deepcopy(trace)
    DAMAGE[damage](broken["stages"], stage)
    found = states(*((broken, trace) if side == "base" else (trace, broken)))
    assert found[stage] == "cannot tell"
    assert {s for name, s in found.items() if name != stage} == {"same"}


def test_a_live_model_that_does_not_show_its_activations_cannot_be_told(trace):
    silent = {key: value for key, value in trace.items() if key != "activations"}
    findings = compare_traces([trace], [silent])
    assert [(f.stage, f.details) for f in findings if f.state != "same"] == [("activation", "not shown by the encoder")]
    assert "activation: cannot tell" in sentence(findings, "tiny-vit")


def test_a_missing_trace_cannot_be_told(trace):
    findings = compare_traces([trace], [])
    assert {f.state for f in findings} == {"cannot tell"}
    assert sentence(findings, "tiny-vit").startswith("cannot tell")


def test_two_traces_of_one_model_or_of_other_versions_or_items_cannot_be_told(trace):
    assert {f.state for f in compare_traces([trace, trace], [trace])} == {"cannot tell"}
    assert {f.state for f in compare_traces([trace], [{**trace, "version": 1}])} == {"cannot tell"}
    other = {**trace, "dataset": {**trace["dataset"], "fingerprint": "f" * 64}}
    found = states(trace, other)
    assert {found[s] for s in SAMPLED} == {"cannot tell"}
    assert found["weights"] == "same"


def test_an_encoder_that_is_not_ours_is_compared_by_its_rows_alone(tmp_path):
    dataset = colour_dataset(tmp_path)

    class Swapped(ColourEncoder):
        def encode_images(self, images):
            return super().encode_images([Image.merge("RGB", image.split()[::-1]) for image in images])

    base, head = (traced(custom(e), dataset) for e in (ColourEncoder(), Swapped()))
    findings = compare_traces([base], [head])
    assert first_moved(findings)["fake"].stage == "image_rows"
    assert {f.stage for f in findings if f.state == "cannot tell"} == {
        "preprocessed_tensor",
        "tokens",
        "weights",
        "activation",
    }
    assert "preprocessing: cannot tell" in sentence(findings, "fake")


def test_rank_flips_by_hand():
    base = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3], [0.1, 0.2, 0.7]])
    head = base.copy()
    assert rank_flips(base, head, 0.0) == (0, 18)
    head[0] = [0.4, 0.5, 0.1]  # the text's first two swap; column 0 keeps its order
    assert rank_flips(base, head, 0.0) == (1, 18)
    assert rank_flips(base, head, 0.5) == (0, 18)
    assert other_winners(base, head, 0.0) == 1
    assert other_winners(base, head, 0.5) == 0


@given(arrays(np.float64, (4, 4), elements=st.floats(-1, 1)), arrays(np.float64, (4, 4), elements=st.floats(-1, 1)))
def test_rank_flips_agree_with_counting_and_do_not_depend_on_the_direction(base, head):
    def order(a, b):
        return int(a > b) - int(a < b)

    slow = sum(
        order(m[r, i], m[r, j]) != order(n[r, i], n[r, j])
        for m, n in ((base, head), (base.T, head.T))
        for r in range(4)
        for i in range(4)
        for j in range(i)
        if not (m[r, i] == m[r, j] and n[r, i] == n[r, j])
    )
    assert rank_flips(base, head, 0.0)[0] == rank_flips(base.T, head.T, 0.0)[0] == slow


def test_rows_too_long_to_keep_whole_are_compared_at_their_positions():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(4, 5000))
    base = [sample(row, 2048) for row in rows]
    for scale, state in ((1e-7, "same"), (1e-2, "moved")):
        head = [sample(row + scale * generator.normal(size=5000), 2048) for row in rows]
        assert rows_moved([read_sample(s) for s in base], [read_sample(s) for s in head], BUDGET)[0] == state


def test_every_format_of_a_comparison_names_the_first_stage_and_the_verdict_does_not_hang_on_it(trace):
    results = (replace(matching(np.eye(4), ["a", "b", "c", "d"], "tiny-vit"), experiment="medical"),)
    environment = {"machine": {}, "software": {}}
    base = Run(environment, results, traces=(trace,))
    for head_trace, word in (
        (trace, "no stage moved"),
        (shifted(trace, "preprocessed_tensor", 0.012), "preprocessing changed"),
    ):
        comparison = compare_runs(base, Run(environment, results, traces=(head_trace,)), read_rules())
        assert comparison.exit_code == 0
        assert f"first stage that moved\n  tiny-vit: {word}" in to_text(comparison, "command")
        assert f"| tiny-vit | {word}" in to_pull_request(comparison, "command")
        assert (f"tiny-vit: {word}" in to_github(comparison)) is (word != "no stage moved")
        stages = json.loads(to_json(comparison, "command"))["stages"]
        assert [s["stage"] for s in stages if s["state"] == "moved"] == [f.stage for f in comparison.stages if f.moved]


def test_runs_without_traces_say_nothing_of_stages(trace):
    results = (replace(matching(np.eye(4), ["a", "b", "c", "d"], "tiny-vit"), experiment="medical"),)
    base = Run({"machine": {}, "software": {}}, results)
    assert "first stage" not in to_text(compare_runs(base, base, read_rules()), "command")
    assert "cannot tell" in to_text(compare_runs(base, replace(base, traces=(trace,)), read_rules()), "command")
