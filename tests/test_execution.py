"""How rows were made, judged: nothing unconfirmed passes, and a shortcut found wrong casts doubt on the model's other results."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import matching

from clipbench.judge.execution import UNCONFIRMED, confirmed_only, doubtful, is_unconfirmed
from clipbench.judge.verdict import judged
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


def test_what_took_shortcuts_is_doubted_where_one_was_dropped_in_another_result_of_the_model():
    crops = made({"texts": {"n": 8, "checked": 4}}, ["cut_texts"], "coco_crops")
    plain = made({}, (), "natural")
    retrieval = made({"texts": {"n": 8, "dropped": "a row is away"}}, (), "coco_retrieval")
    (line,) = doubtful(Run({}, (crops, plain, retrieval)))
    assert "coco_crops of ViT-B/32 took shortcuts (cut_texts)" in line
    assert "in coco_retrieval; run again with --plain" in line


def test_another_models_dropped_shortcut_casts_no_doubt():
    crops = made({"texts": {"n": 8, "checked": 4}}, ["cut_texts"], "coco_crops")
    other = made({"texts": {"n": 8, "dropped": "a row is away"}}, (), "coco_retrieval", "RN50")
    assert not list(doubtful(Run({}, (crops, other))))
    assert not list(doubtful(Run({}, (crops,))))
