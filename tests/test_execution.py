"""How rows were made, judged: nothing unconfirmed passes, a dropped shortcut is a note, rows of a wrong one are in doubt."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import matching

from clipbench.judge.references import UNCONFIRMED, confirmed_only, doubtful, dropped_shortcuts, is_unconfirmed, judged
from clipbench.result import Run, Verdict

PERFECT = np.eye(8)
NAMES = tuple("abcdefgh")


def made(execution, shortcuts=(), name="natural", model="ViT-B/32"):
    result = matching(PERFECT, NAMES, model)
    protocol = {**result.protocol, "shortcuts": list(shortcuts), "execution": execution}
    return replace(result, experiment=name, protocol=protocol)


@pytest.mark.parametrize(
    ("execution", "expected"),
    [
        ({"images": {"n": 8, "checked": 0}}, False),
        ({"images": {"n": 8, "cached": 8, "checked": 4}}, False),
        ({"images": {"n": 8, "cached": 8, "checked": 4, "unconfirmed": 3}}, True),
        ({"images": {"n": 8}, "texts": {"n": 8, "cached": 8, "unconfirmed": 8}}, True),
        ("no counts", False),
    ],
)
def test_rows_are_unconfirmed_where_a_part_of_them_says_so(execution, expected):
    assert is_unconfirmed(made(execution)) == expected


def test_unconfirmed_rows_pass_nothing_and_still_fail():
    verdicts = tuple(Verdict("acc1", "source", "floor", 0.5, word, word) for word in ("pass", "fail", "inconclusive"))
    unconfirmed = made({"images": {"n": 8, "cached": 8, "unconfirmed": 8}})
    found = confirmed_only(unconfirmed, verdicts)
    assert [v.verdict for v in found] == ["inconclusive", "fail", "inconclusive"]
    assert found[0].reason == f"pass; {UNCONFIRMED}"
    assert found[1:] == verdicts[1:]
    assert confirmed_only(made({"images": {"n": 8, "cached": 8, "checked": 4}}), verdicts) == verdicts


def test_a_floor_is_not_passed_by_rows_from_the_cache_alone():
    confirmed, unconfirmed = made({}), made({"images": {"n": 8, "cached": 8, "unconfirmed": 8}})
    before, after = (
        {v.metric: v.verdict for v in judged(result) if v.kind == "floor"} for result in (confirmed, unconfirmed)
    )
    assert set(before.values()) == {"pass"}
    assert before.keys() == after.keys()
    assert set(after.values()) == {"inconclusive"}


def test_rows_that_were_all_made_plainly_after_a_disagreement_are_not_doubted():
    images = {"n": 5000, "checked": 0, "dropped": "with shared_rows a sampled row is away"}
    dropped = made({"images": images, "texts": {"n": 8, "checked": 4}}, ["cut_texts"], "coco_retrieval")
    crops = made({"texts": {"n": 8, "checked": 4}}, ["cut_texts"], "coco_crops")
    plain = made({}, (), "natural")
    run = Run({}, (crops, plain, dropped))
    assert not list(doubtful(run))
    what, others = dropped_shortcuts(run)
    assert what.startswith(
        "shortcut dropped: coco_retrieval of ViT-B/32, 5,000 images made again: with shared_rows a sampled row"
    )
    assert others.endswith("whose own sample agreed with the plain call: coco_crops (cut_texts)")


@pytest.mark.parametrize("kept", [{"checked": 4}, {"checked": 0, "unconfirmed": 3}])
def test_rows_of_a_shortcut_beside_others_where_it_disagreed_are_doubted(kept):
    mixed = made({"texts": {"n": 8, "dropped": "a row is away"} | kept}, ["cut_texts"], "zero_shot")
    (line,) = doubtful(Run({}, (mixed,)))
    assert "some texts of zero_shot of ViT-B/32 were made by shortcuts (cut_texts)" in line
    assert "run again with --no-optimizations" in line


def test_another_models_dropped_shortcut_is_not_noted_for_this_one():
    crops = made({"texts": {"n": 8, "checked": 4}}, ["cut_texts"], "coco_crops")
    other = made({"texts": {"n": 8, "dropped": "a row is away"}}, (), "coco_retrieval", "RN50")
    (line,) = dropped_shortcuts(Run({}, (crops, other)))
    assert "coco_retrieval of RN50, 8 texts" in line
    assert not list(dropped_shortcuts(Run({}, (crops,))))
