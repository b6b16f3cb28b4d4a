"""What changed, item by item, and what the two runs do not share beside."""

from dataclasses import replace

import numpy as np
from paired_runs import (
    CLASSES,
    EYE,
    INT8,
    NAMES,
    RIGHT,
    RULES,
    compared,
    crops,
    moved,
    natural,
    run_of,
    scored,
    several,
)

from clipbench.judge.compare import compare_runs
from clipbench.types import Answers, Protocol


def test_changed_items_carry_their_margins_and_best_five_before_and_after():
    comparison = compared([natural()], [natural(moved(EYE, 2, 5, 0.5))])
    lost = [c for c in comparison.items if c.metric == "text_to_image_top1"]
    assert [(c.item, c.direction) for c in lost] == [("astronaut", "lost")]
    assert (lost[0].margin_before, lost[0].margin_after) == (0.2, -0.2)
    assert lost[0].top_before[0] == ("astronaut", 0.3)
    assert lost[0].top_after[:2] == (("camera", 0.5), ("astronaut", 0.3))
    assert len(lost[0].top_after) == 5
    other_way = [c for c in comparison.items if c.metric == "image_to_text_top1"]
    assert [(c.item, c.top_after[0][0]) for c in other_way] == [("camera", "astronaut")]


def test_the_item_that_fell_furthest_comes_first_and_gains_stand_beside_losses():
    before = moved(moved(EYE, 1, 0, 0.35), 4, 0, 0.31)
    after = moved(moved(EYE, 3, 0, 0.31), 5, 0, 0.6)
    comparison = compared([natural(before)], [natural(after)])
    told = [(c.direction, c.item) for c in comparison.items if c.metric == "text_to_image_top1"]
    assert told == [("lost", "camera"), ("lost", "rocket"), ("gained", "chelsea"), ("gained", NAMES[4])]


def test_without_a_matrix_an_item_lost_in_more_metrics_comes_first():
    before = {"acc1": [1] * 600, "acc5": [1] * 600}
    after = {"acc1": [0] * 3 + [1] * 597, "acc5": [1, 1, 0] + [1] * 597}
    comparison = compared([several(before)], [several(after)])
    assert [c.item for c in comparison.items if c.metric == "acc1"] == ["i2", "i0", "i1"]


def test_every_loss_and_every_gain_is_there():
    items = compared(*crops(lost=50, gained=40)).items
    assert [c.direction for c in items] == ["lost"] * 50 + ["gained"] * 40


def test_weights_software_and_machine_that_differ_are_told_and_equal_weights_too():
    before = run_of(scored(RIGHT, weights_sha256="a" * 64), software={"torch": "2.6"})
    after = run_of(scored(RIGHT, weights_sha256="b" * 64, precision="bf16"), software={"torch": "2.14"})
    told = {d.what: (d.base, d.head) for d in compare_runs(before, after, RULES).differences}
    assert told == {
        "weights of ViT-B/32": ("a" * 12, "b" * 12),
        "precision of ViT-B/32": ("fp32", "bf16"),
        "torch": ("2.6", "2.14"),
    }
    (same,) = compare_runs(before, before, RULES).differences
    assert not same.is_change


def test_an_item_says_what_is_right_for_it_and_which_slice_it_is_in():
    lost = compared(*labelled(lost=3)).items[0]
    assert (lost.label, lost.group, lost.direction) == ("class 0", "dark", "lost")


def test_pairs_of_classes_that_are_confused_more_often_are_named_with_both_counts():
    base, head = labelled(lost=3)
    (pair,) = compared(base, head).confusions
    assert (pair.right, pair.picked, pair.before, pair.after) == ("class 0", "class 1", 0, 3)
    assert compared(head, head).confusions == ()


def labelled(lost):
    """A pair of results of 600 items of 100 classes: of class 0 so many are taken for class 1 in head."""

    def result(wrong, **more):
        hits = [k >= wrong for k in range(600)]
        labels = [0 if k < 6 else 2 + k % 98 for k in range(600)]
        picked = [[label if hit else 1] for label, hit in zip(labels, hits, strict=True)]
        one = scored([float(hit) for hit in hits], protocol=Protocol(("a photo of a {}.",), classes=CLASSES), **more)
        margins = np.where(hits, 0.1, -0.1).astype(np.float32)
        answers = Answers(
            tuple(f"i{k}" for k in range(600)), CLASSES, np.array(picked, np.int32), np.zeros((600, 1), np.float32),
            margins, np.array(labels, np.int32), ("dark",) * 600,
        )  # fmt: skip
        return replace(one, answers={one.scores["acc1"].spec.answers: answers})

    return [result(0)], [result(lost, **INT8)]
