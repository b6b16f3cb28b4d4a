"""Baselines and anchors: verdicts beside the others, updates on purpose, and nothing else touched."""

import json

import numpy as np
import pytest
from paired_runs import EYE, RIGHT, RULES, flipped, natural, run_of, scored

from clipbench.errors import UsageError
from clipbench.judge.baseline import judge_against, update_baseline
from clipbench.storage import RunFormatError, dump_json, read_run, run_to_json

WORSE = flipped(RIGHT, lost=200)


def document(*results):
    return {"benchmarks": [], "clipbench": run_to_json(run_of(*results))}


def stored(path, *results):
    path.write_text(dump_json(document(*results)))
    return path


def update(path, *results, reason="because", **more):
    return update_baseline(path, document(*results), reason, "me", "2026-01-02", RULES, **more)


def history_of(path):
    return json.loads(path.read_text())["clipbench_baseline"]["history"]


@pytest.mark.parametrize("kind", ["baseline", "anchor"])
@pytest.mark.parametrize(("outcomes", "word"), [(RIGHT, "pass"), (WORSE, "fail")])
def test_each_result_gets_its_verdicts_of_this_kind(tmp_path, kind, outcomes, word):
    path = stored(tmp_path / "base.json", scored(RIGHT))
    judged = judge_against(run_of(scored(outcomes)), path, kind, RULES)
    (verdict,) = judged.run.results[0].verdicts
    assert (verdict.metric, verdict.kind, verdict.outcome) == ("acc1", kind, word)
    assert (verdict.reference, verdict.expected) == (f"{kind} base.json", 0.6)
    run_to_json(judged.run)


def test_a_change_on_a_small_set_is_an_inconclusive_verdict_on_its_outcomes(tmp_path):
    path = stored(tmp_path / "base.json", natural())
    judged = judge_against(run_of(natural(EYE + 0.01)), path, "baseline", RULES)
    (verdict,) = judged.run.results[0].verdicts
    assert (verdict.metric, verdict.outcome, verdict.expected) == ("outcomes", "inconclusive", "the same")


def test_what_no_result_can_carry_is_in_the_comparison(tmp_path):
    path = stored(tmp_path / "base.json", natural(), scored(RIGHT))
    judged = judge_against(run_of(scored(RIGHT)), path, "baseline", RULES)
    assert judged.comparison.outcome == "inconclusive"
    assert [v.key.experiment for v in judged.comparison.of("inconclusive")] == ["natural"]


def test_small_accepted_drops_are_seen_together_by_the_anchor(tmp_path):
    anchor = stored(tmp_path / "anchor.json", scored(RIGHT))
    outcomes, words = RIGHT, []
    for release in range(4):
        previous = stored(tmp_path / f"{release}.json", scored(outcomes))
        outcomes = flipped(outcomes, lost=30)
        head = run_of(scored(outcomes))
        words.append([judge_against(head, p, "anchor", RULES).comparison.outcome for p in (previous, anchor)])
    assert [step for step, _ in words] == ["pass"] * 4
    assert words[-1][1] == "fail"


def test_a_first_baseline_says_so_and_is_a_run_file(tmp_path):
    path = tmp_path / "deep" / "baseline.json"
    done = update(path, natural())
    assert (done.is_first, done.changed) == (True, ("the first baseline",))
    assert read_run(path).results[0].experiment == "natural"
    assert [entry["reason"] for entry in history_of(path)] == ["because"]


def test_an_update_reports_what_changed_and_keeps_every_reason(tmp_path):
    path = tmp_path / "baseline.json"
    update(path, scored(RIGHT), reason="first")
    done = update(path, scored(WORSE, precision="bf16"), reason="bf16 is worth it")
    assert not done.is_first
    assert any("acc1" in line and "0.6 -> 0.56" in line for line in done.changed)
    assert "precision of ViT-B/32: fp32 -> bf16" in done.changed
    history = history_of(path)
    assert [entry["reason"] for entry in history] == ["first", "bf16 is worth it"]
    assert history[1] | {"changed": 0} == {
        "reason": "bf16 is worth it",
        "author": "me",
        "date": "2026-01-02",
        "changed": 0,
    }
    assert judge_against(run_of(scored(WORSE)), path, "baseline", RULES).comparison.outcome == "pass"


def test_an_update_that_changes_nothing_says_so(tmp_path):
    path = tmp_path / "baseline.json"
    update(path, scored(RIGHT))
    assert update(path, scored(RIGHT)).changed == ("nothing",)


def test_what_an_update_would_lose_is_reported(tmp_path):
    path = tmp_path / "baseline.json"
    update(path, natural(), scored(RIGHT))
    assert any("natural of ViT-B/32: vanished" in line for line in update(path, scored(RIGHT)).changed)


@pytest.mark.parametrize(
    ("name", "content", "more", "words"),
    [
        ("floors.toml", "x", {}, "expected a .json file"),
        ("base.json", None, {"reason": "  "}, "needs --reason"),
        ("base.json", None, {"protected": "base.json"}, "is also the anchor"),
        ("base.json", "{}", {}, "is no run"),
    ],
)
def test_an_update_touches_nothing_but_a_baseline(tmp_path, name, content, more, words):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    if "protected" in more:
        more = {"protected": [tmp_path / more["protected"]]}
    with pytest.raises((UsageError, RunFormatError), match=words):
        update(path, natural(), **more)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == ([(name, content)] if content else [])


def test_a_run_without_results_is_no_baseline(tmp_path):
    with pytest.raises(UsageError, match="has no results"):
        update(tmp_path / "base.json")
    assert not list(tmp_path.iterdir())


def test_a_document_that_is_no_run_is_never_written(tmp_path):
    with pytest.raises(RunFormatError):
        update_baseline(tmp_path / "base.json", {"clipbench": {"schema": 1}}, "r", "a", "d", RULES)
    assert not list(tmp_path.iterdir())


def test_an_update_that_cannot_be_written_leaves_the_old_baseline(tmp_path, monkeypatch):
    path = tmp_path / "base.json"
    update(path, natural())
    before = path.read_text()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        update(path, natural(np.eye(8)))
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_history_that_somebody_broke_starts_anew(tmp_path):
    path = tmp_path / "base.json"
    path.write_text(json.dumps(document(natural()) | {"clipbench_baseline": "x"}))
    update(path, natural(), reason="again")
    assert [entry["reason"] for entry in history_of(path)] == ["again"]
