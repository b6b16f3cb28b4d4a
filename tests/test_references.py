"""Verdicts against the published card, the published matrices, the floors and the other activation."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import card, matching

from clipbench.judge.references import floors, judge, published_matrices
from clipbench.models.zoo import zoo

MATRICES = published_matrices()


def published(matrix):
    """The matrix as a re-run would measure it: the finer value of each cell, the middle of the range where none is."""
    n = len(matrix.names)
    cells = [[(matrix.cell(r, c) or (0.1, 0))[0] for c in range(n)] for r in range(n)]
    return np.array(cells)


def verdict_of(result, metric, kind=None):
    return [v for v in judge(result) if v.metric == metric and kind in (None, v.kind)]


@pytest.mark.parametrize("name", list(zoo()))
def test_the_published_card_passes_and_one_parameter_more_fails(name):
    values = zoo()[name].card
    assert {v.outcome for v in judge(card(name, **values))} == {"pass"}
    (params,) = verdict_of(card(name, **(values | {"params": values["params"] + 1})), "params")
    assert params.outcome == "fail"
    assert f"{values['params']:,}" in params.reason


def test_a_card_that_was_not_measured_fails():
    assert {v.outcome for v in judge(card("RN50"))} == {"fail"}


@pytest.mark.parametrize("matrix", MATRICES, ids=lambda m: f"{m.model}-{m.source[:12]}")
def test_a_published_matrix_passes_on_itself_and_fails_when_one_cell_moves(matrix):
    measured = published(matrix)
    mine = [
        v
        for v in verdict_of(matching(measured, matrix.names, matrix.model), "similarity")
        if v.reference == matrix.source
    ]
    assert [v.outcome for v in mine] == ["pass"]
    row, column = next((r, c) for r in range(8) for c in range(8) if matrix.cell(r, c) and matrix.names[c] != "camera")
    measured[row, column] += 0.02
    mine = [
        v
        for v in verdict_of(matching(measured, matrix.names, matrix.model), "similarity")
        if v.reference == matrix.source
    ]
    assert [v.outcome for v in mine] == ["fail"]
    assert matrix.names[row] in mine[0].reason


def test_cells_are_compared_by_name_whatever_the_order():
    matrix = MATRICES[0]
    order = [3, 1, 0, 7, 2, 6, 5, 4]
    shuffled = published(matrix)[np.ix_(order, order)]
    result = matching(shuffled, [matrix.names[k] for k in order], matrix.model)
    assert [v.outcome for v in verdict_of(result, "similarity") if v.reference == matrix.source] == ["pass"]


def test_the_old_camera_picture_is_left_out_of_the_comparison():
    old = next(m for m in MATRICES if m.differing_columns)
    measured = published(old)
    measured[:, old.names.index("camera")] += 0.05
    verdicts = [
        v for v in verdict_of(matching(measured, old.names, old.model), "similarity") if v.reference == old.source
    ]
    assert [v.outcome for v in verdicts] == ["pass"]


def test_a_matrix_with_items_missing_is_inconclusive():
    matrix = MATRICES[1]
    result = matching(published(matrix)[:7, :7], matrix.names[:7], matrix.model)
    assert {v.outcome for v in verdict_of(result, "similarity")} == {"inconclusive"}


def test_random_weights_are_held_to_no_floor_and_no_matrix():
    assert judge(matching(np.zeros((8, 8)), MATRICES[0].names, "ViT-B/32", "random:0")) == ()


def test_other_weights_of_the_same_model_are_held_to_nothing_published():
    verdicts = judge(matching(np.eye(8), MATRICES[0].names, "ViT-B/32", "laion2b_s34b_b79k"))
    assert {v.kind for v in verdicts} == {"contract"}


def test_an_alias_keeps_what_is_published_of_the_model_it_stands_for():
    own = judge(matching(np.eye(8), MATRICES[0].names, "ViT-B/32"))
    alias = judge(matching(np.eye(8), MATRICES[0].names, "prod", known_as="ViT-B/32"))
    assert [(v.kind, v.outcome) for v in alias] == [(v.kind, v.outcome) for v in own]
    told_otherwise = judge(matching(np.eye(8), MATRICES[0].names, "prod", known_as="ViT-B/32 with {}"))
    assert {v.kind for v in told_otherwise} == {"contract"}


@pytest.mark.parametrize(("hits", "outcome"), [(0, "inconclusive"), (3, "inconclusive"), (4, "pass"), (8, "pass")])
def test_any_trained_model_is_held_to_being_better_than_chance_both_ways(hits, outcome):
    cosines = np.eye(8)
    for k in range(hits, 8):  # to the next one, so that both ways have so many hits
        cosines[k, k], cosines[k, hits + (k - hits + 1) % (8 - hits)] = 0.0, 1.0
    verdicts = judge(matching(cosines, MATRICES[0].names, "mine:encoder", "factory"))
    assert [(v.metric, v.outcome, v.expected) for v in verdicts] == [
        ("text_to_image_top1", outcome, 0.125),
        ("image_to_text_top1", outcome, 0.125),
    ]
    # P(4 or more of 8 at one in eight) is .011, P(3 or more) .067, as a table of the binomial has it.
    assert ("4 of 8 would be" in verdicts[0].reason) == (outcome == "inconclusive")


def test_openais_own_file_is_recognised_by_its_hash_however_it_was_given():
    sha = zoo()["ViT-B/32"].openai_checkpoint_sha256
    result = matching(np.eye(8), MATRICES[0].names, "ViT-B/32", "weights/ViT-B-32.pt", file_sha256=sha)
    assert verdict_of(result, "text_to_image_top1", "floor")


def test_bf16_is_not_held_to_matrices_published_in_finer_precision():
    result = matching(np.eye(8), MATRICES[0].names, "ViT-B/32", precision="bf16")
    assert verdict_of(result, "similarity") == []
    assert verdict_of(result, "text_to_image_top1")


@pytest.mark.parametrize("model", ["RN50", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"])
def test_the_diagonal_is_a_floor_for_the_five_models_where_it_was_shown(model):
    names = MATRICES[0].names
    assert {v.outcome for v in judge(matching(np.eye(8), names, model)) if v.kind == "floor"} == {"pass"}
    tied = np.eye(8)
    tied[2, 5] = 1.0
    failed = [v for v in judge(matching(tied, names, model)) if v.kind == "floor" and v.outcome == "fail"]
    assert {v.metric for v in failed} == {"text_to_image_top1", "image_to_text_top1"}
    assert "missed: " in failed[0].reason


@pytest.mark.parametrize("model", ["RN101", "RN50x4", "RN50x16", "RN50x64"])
def test_the_other_four_openai_models_are_held_to_no_floor(model):
    assert {v.kind for v in judge(matching(np.zeros((8, 8)), MATRICES[0].names, model))} == {"contract"}


def test_every_floor_and_matrix_has_a_source():
    assert all(row.source for row in (*floors(), *MATRICES))


def with_other(gain, activation="gelu"):
    rng = np.random.default_rng(0)
    ours = np.eye(8) * 0.1 + 0.2 + rng.normal(0, 0.002, (8, 8))
    other = ours + np.eye(8) * gain
    result = matching(ours, MATRICES[0].names, "ViT-B/32", "fine_tune.pt", activation=activation)
    matrix = replace(result.matrices["similarity"], values=other)
    return replace(result, matrices={**result.matrices, "similarity_quickgelu": matrix})


def test_weights_that_do_clearly_better_with_the_other_activation_fail_and_say_so():
    (verdict,) = verdict_of(with_other(gain=0.02), "activation")
    assert verdict.outcome == "fail"
    assert "run again with --activation quickgelu" in verdict.reason


@pytest.mark.parametrize("gain", [0.0, 0.001, -0.02])
def test_the_activation_passes_when_the_other_one_is_no_better(gain):
    assert [v.outcome for v in verdict_of(with_other(gain), "activation")] == ["pass"]
