"""Cells: which are judged, what one says, what somebody accepts, and what nobody may."""

from dataclasses import replace

import pytest
from paired_runs import EYE, RIGHT, RULES, cell, compared, crops, flipped, natural, run_of, scored, trace_of

from clipbench.errors import UsageError
from clipbench.judge.compare import compare_runs, headline, with_anchor
from clipbench.types import Verdict

QUALITY = "quality[coco_crops/items/ViT-B/32]"
BASE, HEAD = [natural(), scored(RIGHT)], [natural(EYE + 0.05), scored(RIGHT)]


@pytest.mark.parametrize("pair", [crops(lost=200), crops(lost=20, gained=18, outcomes=RIGHT[2700:3300])])
def test_a_cell_that_does_not_pass_says_how_to_accept_it_and_is_then_counted_apart(pair):
    found = compared(*pair)
    (pressing,) = [one for one in found.cells if one.outcome != "pass"]
    assert pressing.way_out == f'--accept "{QUALITY}" --reason TEXT'
    accepted = compared(*pair, accepted={QUALITY: "int8 is worth it"})
    one = cell(accepted, QUALITY)
    assert (one.found, one.outcome, one.accepted, one.way_out) == (pressing.outcome, "note", "int8 is worth it", "")
    assert (accepted.outcome, accepted.exit_code) == ("pass", 0)
    assert headline(accepted) == "PASS: 4 pass, 1 accepted"


def below_a_floor():
    result = natural()
    return run_of(
        replace(result, verdicts=(Verdict(result.key, "margin_min", "floor", "fail", "below", "a floor", 0.5),))
    )


def not_repeating():
    return run_of(natural(), traces=[trace_of(natural().model, repeat=0.1)])


@pytest.mark.parametrize(
    ("head", "name"), [(below_a_floor(), "quality[natural/natural/ViT-B/32]"), (not_repeating(), "trace[ViT-B/32]")]
)
def test_nobody_accepts_a_floor_that_fails_or_rows_that_do_not_repeat(head, name):
    comparison = compare_runs(run_of(natural()), head, RULES, accepted={name: "never mind"})
    one = cell(comparison, name)
    assert (one.outcome, one.is_accepted, one.way_out, comparison.exit_code) == ("fail", False, "", 1)


def test_what_passes_is_not_accepted_beside():
    accepted = compared(*crops(), accepted={QUALITY: "anyway"})
    assert not cell(accepted, QUALITY).is_accepted
    assert "accepted" not in headline(accepted)


def test_a_cell_that_there_is_not_is_refused_with_the_likeliest():
    with pytest.raises(
        UsageError,
        match=r"--accept quality\[coco_crops\]: there is no such cell; did you mean quality\[coco_crops/items",
    ):
        compared(*crops(), accepted={"quality[coco_crops]": "x"})
    with pytest.raises(UsageError, match="--only natral: there is no such cell; did you mean natural"):
        compared(BASE, HEAD, only=["natral"])


@pytest.mark.parametrize(
    ("only", "cells", "code"),
    [
        (["coco_crops"], {QUALITY, "rows[images/items/ViT-B/32]"}, 0),
        ([QUALITY], {QUALITY}, 0),
        (["quality[*]"], {QUALITY, "quality[natural/natural/ViT-B/32]"}, 1),
        (["rows[*/natural/*]", "trace*"], {"rows[images/natural/ViT-B/32]", "rows[texts/natural/ViT-B/32]", "trace[ViT-B/32]"}, 0),
        (["natural"], {f"rows[{t}/natural/ViT-B/32]" for t in ("images", "texts")} | {"quality[natural/natural/ViT-B/32]"}, 1),
    ],
)  # fmt: skip
def test_only_names_cells_by_glob_with_the_cell_s_own_brackets_or_by_experiment(only, cells, code):
    comparison = compared(BASE, HEAD, only=only)
    assert {one.id for one in comparison.cells} == cells
    assert comparison.exit_code == code


def test_the_headline_counts_cells_and_says_how_many_of_them_were_judged():
    passing = compared(*crops())
    assert headline(passing) == "PASS: 5 pass"
    assert headline(passing, cells=5) == "PASS: 5 pass"
    assert headline(passing, cells=12) == "PASS IN PART (5 of 12 cells): 5 pass"
    assert headline(compared(*crops(lost=200)), cells=12) == "FAIL: 1 fail, 4 pass"
    assert headline(compared(BASE, [natural()])) == "INCONCLUSIVE: 1 inconclusive, 5 pass"


def test_an_anchor_s_cells_stand_beside_those_of_the_base_and_decide_as_they_do():
    head = [scored(flipped(RIGHT, 200), precision="int8", move=0.02)]
    base = compared(head, head)
    both = with_anchor(base, compared([scored(RIGHT)], head))
    assert (base.outcome, both.outcome) == ("pass", "fail")
    assert both.cells[0].id == f"anchor {QUALITY}"
    assert len(both.cells) == 2 * len(base.cells)
