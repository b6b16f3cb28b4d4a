"""Baselines and anchors: verdicts beside the others, updates on purpose, and small losses that are seen together."""

import json
from dataclasses import replace

import numpy as np
import pytest
from paired_runs import EYE, INT8, RIGHT, RULES, cell, flipped, natural, run_of, scored, trace_of

from clipbench.errors import UsageError
from clipbench.judge.baseline import (
    accepted_entry,
    compare_with,
    not_a_baseline,
    read_base,
    update_baseline,
    with_verdicts,
)
from clipbench.storage import RunFormatError, dump_json, read_run, run_to_json
from clipbench.types import Key

WORSE = flipped(RIGHT, lost=200)
QUALITY = "quality[coco_crops/items/ViT-B/32]"


def document(*results):
    return {"benchmarks": [], "clipbench": run_to_json(run_of(*results))}


def stored(path, *results):
    path.write_text(dump_json(document(*results)))
    return path


def update(path, *results, reason="because", accepted=(), **more):
    """Make these results the baseline, compared with the one that is there, these cells accepted."""
    head, comparison = run_of(*results), None
    if path.exists() and "comparison" not in more:
        accepted = dict.fromkeys(accepted, reason)
        comparison = compare_with(read_base(path, "baseline"), head, RULES, accepted=accepted)
    return update_baseline(path, document(*results), reason, "me", "2026-01-02", **{"comparison": comparison, **more})


def history_of(path):
    return json.loads(path.read_text())["clipbench_baseline"]["history"]


@pytest.mark.parametrize("kind", ["baseline", "anchor"])
@pytest.mark.parametrize(("outcomes", "word"), [(RIGHT, "pass"), (WORSE, "fail")])
def test_each_result_gets_its_verdicts_of_this_kind(tmp_path, kind, outcomes, word):
    base = read_base(stored(tmp_path / "base.json", scored(RIGHT)), kind)
    head = run_of(scored(outcomes, **INT8))
    judged = with_verdicts(head, base, compare_with(base, head, RULES))
    (verdict,) = [v for v in judged.results[0].verdicts if v.metric == "acc1"]
    assert (verdict.kind, verdict.outcome) == (kind, word)
    assert (verdict.reference, verdict.expected) == (f"{kind} base.json", 0.6)
    run_to_json(judged)


def test_a_verdict_on_a_whole_result_is_one_on_its_outcomes_and_what_was_accepted_is_a_note(tmp_path):
    base = read_base(stored(tmp_path / "base.json", scored(RIGHT)), "baseline")
    head = run_of(scored(WORSE, move=0.4))
    rows = "rows[images/items/ViT-B/32]"
    for accepted, word in (((), "fail"), ((rows,), "note")):
        comparison = compare_with(base, head, RULES, accepted=dict.fromkeys(accepted, "moved on purpose"))
        (found,) = [v for v in with_verdicts(head, base, comparison).results[0].verdicts if v.cell == rows]
        assert (found.metric, found.expected, found.outcome) == ("outcomes", "the same", word)


def test_a_first_baseline_says_so_and_is_a_run_file(tmp_path):
    path = tmp_path / "deep" / "baseline.json"
    assert update(path, natural()) == ("the first baseline",)
    assert read_run(path).results[0].experiment == "natural"
    assert [entry["reason"] for entry in history_of(path)] == ["because"]


def test_an_update_reports_what_changed_and_keeps_every_reason_and_what_was_accepted(tmp_path):
    path = tmp_path / "baseline.json"
    update(path, scored(RIGHT), reason="first")
    changed = update(path, scored(WORSE, **INT8), reason="int8 is worth it", accepted=[QUALITY])
    assert changed[0].startswith(f"accepted: {QUALITY}: acc1 0.6 -> 0.56: fell by 0.04")
    assert "precision of ViT-B/32: fp32 -> int8" in changed
    history = history_of(path)
    assert [entry["reason"] for entry in history] == ["first", "int8 is worth it"]
    assert history[1].keys() == {"reason", "author", "date", "changed", "accepted"}
    again = compare_with(read_base(path, "baseline"), run_of(scored(WORSE, **INT8)), RULES)
    assert again.outcome == "pass"


def test_what_is_kept_of_an_accepted_cell_has_its_numbers_reason_author_and_date(tmp_path):
    base = read_base(stored(tmp_path / "base.json", scored(RIGHT)), "baseline")
    comparison = compare_with(base, run_of(scored(WORSE, **INT8)), RULES, accepted={QUALITY: "worth it"})
    entry = accepted_entry(cell(comparison, QUALITY), "me", "2026-01-02")
    assert entry.pop("because")[0].startswith("acc1 0.6 -> 0.56: fell")
    assert entry == {
        "cell": QUALITY,
        "outcome": "fail",
        "numbers": {"acc1": {"base": 0.6, "head": 0.56, "lost": 200, "gained": 0}},
        "reason": "worth it",
        "author": "me",
        "date": "2026-01-02",
    }


def test_an_update_that_changes_nothing_says_so(tmp_path):
    path = tmp_path / "baseline.json"
    update(path, scored(RIGHT))
    assert update(path, scored(RIGHT)) == ("nothing",)


def test_losses_that_pass_one_by_one_are_caught_by_the_first_outcomes_until_somebody_accepts_them(tmp_path):
    path, outcomes, words = tmp_path / "baseline.json", RIGHT, []
    update(path, scored(RIGHT))
    for release in (1, 2):
        outcomes = flipped(outcomes, lost=30)
        head = scored(outcomes, move=0.02 * release, weights_sha256=f"{release}" * 64, pretrained=f"r{release}")
        comparison = compare_with(read_base(path, "baseline"), run_of(head), RULES)
        step, whole = (
            [v.outcome for v in comparison.verdicts if v.kind == kind] for kind in ("quality", "creeping loss")
        )
        words.append((step, whole, comparison.outcome))
        if comparison.outcome == "pass":
            update(path, head)
    assert words == [(["pass"], [], "pass"), (["pass"], ["fail"], "fail")]
    update(path, head, accepted=[QUALITY])
    (note,) = [one for one in compare_with(read_base(path, "baseline"), run_of(head), RULES).cells if one.id == QUALITY]
    assert note.outcome == "pass"
    assert json.loads(path.read_text())["clipbench_baseline"]["anchors"] == []


def test_a_loss_of_less_than_the_tolerance_since_the_first_outcomes_is_none(tmp_path):
    path = tmp_path / "baseline.json"
    for step in range(4):
        release = {"pretrained": f"r{step}", "weights_sha256": f"{step}" * 64, "move": 0.02 * step}
        head = scored(flipped(RIGHT, lost=10 * step), **release)
        if step:
            assert compare_with(read_base(path, "baseline"), run_of(head), RULES).outcome == "pass"
        update(path, head)


@pytest.mark.parametrize(
    ("name", "content", "more", "words"),
    [
        ("floors.toml", "x", {"comparison": None}, "expected a .json file"),
        ("base.json", None, {"reason": "  "}, "needs --reason"),
        ("base.json", None, {"protected": "base.json"}, "is also the anchor"),
        ("base.json", "{}", {"comparison": None}, "is no run"),
        ("base.json", dump_json(document(natural())), {"comparison": None}, "appeared meanwhile"),
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
    kept = [(p.name, p.read_text()) for p in tmp_path.iterdir() if p.suffix != ".lock"]
    assert kept == ([(name, content)] if content else [])


@pytest.mark.fault("two sessions at once")
def test_two_sessions_do_not_write_one_baseline_at_once(tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr("clipbench.judge.baseline.LOCK_SECONDS", 0)
    with FileLock(tmp_path / ".base.json.lock"), pytest.raises(UsageError, match="is being written by another session"):
        update(tmp_path / "base.json", natural())


def twice(run):
    return replace(run, results=run.results * 2)


@pytest.mark.fault("a run file that lies")
@pytest.mark.parametrize(
    ("run", "words"), [(run_of(), "has no results"), (twice(run_of(natural())), "two results of natural of ViT-B/32")]
)
def test_a_run_that_judges_nothing_or_twice_is_no_base(tmp_path, run, words):
    path = tmp_path / "base.json"
    path.write_text(dump_json({"clipbench": run_to_json(run)}))
    with pytest.raises(RunFormatError, match=words):
        read_base(path, "baseline")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (run_of(natural()), ""),
        (run_of(), "the run has no results"),
        (
            run_of(natural(), plan=(natural().key, Key("zero_shot", "ViT-B/32", "dogs"))),
            "was asked for and not measured",
        ),
        (
            run_of(natural(), traces=[trace_of(natural().model, repeat=0.1)]),
            "the same batch twice gives rows 0.1 apart",
        ),
    ],
)
def test_a_first_baseline_measured_all_that_was_asked_for_and_repeats(head, words):
    found = not_a_baseline(head, RULES)
    assert len(found) == bool(words)
    assert all(words in line for line in found)


@pytest.mark.fault("two sessions at once")
def test_a_baseline_that_is_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    shared, link = tmp_path / "shared/base.json", tmp_path / "here.json"
    link.symlink_to(shared)
    update(link, natural())
    update(link, natural(), reason="again")
    assert link.is_symlink()
    assert [entry["reason"] for entry in history_of(shared)] == ["because", "again"]


@pytest.mark.fault("what is no file")
def test_a_baseline_larger_than_is_read_is_neither_read_nor_replaced(tmp_path):
    path = tmp_path / "base.json"
    update(path, natural())
    before = path.read_text()
    with pytest.raises(RunFormatError, match="--max-file-size MB raises that"):
        update(
            path,
            natural(),
            comparison=compare_with(read_base(path, "baseline"), read_run(path), RULES),
            largest_bytes=99,
        )
    assert path.read_text() == before


def test_a_document_that_is_no_run_is_never_written(tmp_path):
    with pytest.raises(RunFormatError):
        update_baseline(tmp_path / "base.json", {"clipbench": {"schema": 1}}, "r", "a", "d", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("files that cannot be written")
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
    assert {p.name for p in tmp_path.iterdir()} <= {"base.json", ".base.json.lock"}


@pytest.mark.parametrize(("kept", "words"), [("x", ""), ({"anchors": [{"experiment": 3}]}, "the file is damaged")])
def test_a_history_that_somebody_broke_starts_anew_and_broken_anchors_are_refused(tmp_path, kept, words):
    path = tmp_path / "base.json"
    path.write_text(json.dumps(document(natural()) | {"clipbench_baseline": kept}))
    if words:
        with pytest.raises(RunFormatError, match=words):
            update(path, natural(), reason="again")
    else:
        update(path, natural(EYE), reason="again")
        assert [entry["reason"] for entry in history_of(path)] == ["again"]
