"""The faults: each changes what it says and nothing else, at the dose that stands in its table."""

from dataclasses import replace

import injections
import numpy as np
import pytest
import tiny_clip
import torch
from faults import FAULTS, compared, damaged, fault, main, measured, moves, run_of, written
from PIL import Image
from safetensors.torch import load_file

from clipbench.errors import UsageError
from clipbench.types import Key

PICTURES, COCO_PICTURES = 160, 70
SHAPES, CAPTIONS = Key("zero_shot", "tiny", "shapes"), Key("coco_retrieval", "tiny", "coco_val2017")
# fmt: off
SOME = ("upright", "black_decoded", "black_prepared", "upside_down", "portrait_turned", "cut_long", "no_stops", "capitals_kept",
        "first_of_batch", "partial_batch", "threads_crossed", "stale_buffer", "constant_rows", "hubs")
STILL = ("again", "scale_doubled", "large_batch", "rank_at_most_k", "rank_in_retrieval", "labels_off_by_one", "ties_win", "wrong_boxes",
         "resaved")
PRECISIONS = [("bf16_unasked", 1e-3, 0.1), ("tf32_unasked", 5e-5, 5e-3), ("int8_unasked", 1e-3, 0.1), ("jitter", 2e-3, 5e-3)]
# fmt: on
SMALL = {"stale_buffer": 2, "threads_crossed": 1.0}
"""Doses that show on sets so small; of all other faults of some items, a tenth of them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return written(tmp_path_factory.mktemp("sets"), PICTURES, COCO_PICTURES)


@pytest.fixture(scope="module")
def base(data):
    return run_of(None, data)


def larger(name):
    """The fault at a dose that shows on sets so small."""
    chosen = fault(name)
    return replace(chosen, dose=SMALL.get(name, max(chosen.dose, 0.1)))


def far(base, head, key, tower, least=1e-4):
    """The ids of the items whose rows moved."""
    ids, distances = moves(base, head)[key, tower]
    return {name for name, distance in zip(ids, distances, strict=True) if distance > least}


def values(run, key):
    return {name: score.value for name, score in next(r for r in run.results if r.key == key).scores.items()}


def test_the_table_holds_what_it_promises():
    harmful = [f for f in FAULTS if f.expected != "green"]
    assert len(harmful) >= 45
    assert len(FAULTS) - len(harmful) >= 14
    assert len({f.name for f in FAULTS}) == len(FAULTS)
    assert len({f.line for f in FAULTS}) == len(FAULTS), "two faults read alike"
    assert {f.stage for f in harmful} >= {
        "data",
        "pixels",
        "tensor",
        "tokens",
        "prompts",
        "weights",
        "activation",
        "rows",
        "batching",
    }
    assert {f.stage for f in FAULTS if f.expected == "green"} == {"none"}


def test_two_runs_of_the_same_agree(base, data):
    head = run_of(None, data)
    assert head.id != base.id
    assert all(distances.max() == 0 for _, distances in moves(base, head).values())
    assert [r.scores for r in head.results] != []
    assert [values(head, r.key) for r in base.results] == [values(base, r.key) for r in base.results]


@pytest.mark.parametrize("name", SOME)
def test_a_fault_of_some_items_moves_those_and_no_others(base, data, name):
    head, marks = measured(larger(name), data)
    found = damaged(base, marks)
    assert found, "nothing was damaged: the dose is too small for these sets"
    for result in base.results:
        for tower in result.evidence:
            if tower == "texts" and result.key != CAPTIONS:
                continue  # a class row is made of many texts
            moved, expected = far(base, head, result.key, tower), found.get((result.key, tower), frozenset())
            assert moved <= expected
            assert len(moved) >= (0.9 if tower == "images" else 0.7) * len(expected), "equal captions carry one mark"
            assert len(expected) < len(result.evidence[tower].ids), "all of them: nothing is said of the others"


@pytest.mark.parametrize("name", STILL)
def test_a_fault_behind_the_rows_moves_none(base, data, name):
    head = run_of(larger(name), data)
    assert all(distances.max() < 1e-3 for _, distances in moves(base, head).values())


@pytest.mark.parametrize("name", ["rank_at_most_k", "labels_off_by_one", "rank_in_retrieval", "wrong_boxes"])
def test_a_fault_of_scoring_changes_a_score_all_the_same(base, data, name):
    head = run_of(larger(name), data)
    assert any(values(head, result.key) != values(base, result.key) for result in base.results)


def test_the_damaged_are_about_as_many_as_the_dose_says(data, base):
    for name in ("black_decoded", "black_prepared", "constant_rows"):
        _, marks = measured(replace(fault(name), dose=0.2), data)
        share = len(damaged(base, marks)[SHAPES, "images"]) / PICTURES
        assert 0.1 < share < 0.3


def test_damage_on_disk_is_done_to_copies(data):
    before = {path: path.read_bytes() for path in data.pictures}
    annotations = {path: path.read_bytes() for path in data.coco.glob("annotations/*")}
    for name in ("black_files", "exchanged_files", "recompressed", "wrong_boxes", "resaved"):
        _, marks = measured(larger(name), data, ["coco_crops"])
        assert bool(marks) == (name != "wrong_boxes")
    assert before == {path: path.read_bytes() for path in data.pictures}
    assert annotations == {path: path.read_bytes() for path in annotations}


def test_files_that_end_halfway_and_rows_of_zeros_are_missing_not_passed_over(base, data):
    head = run_of(larger("cut_files"), data)
    short = next(r for r in head.results if r.key == SHAPES)
    assert 0 < short.dataset.n < PICTURES
    assert short.provenance.exclusions["broken_images"] == PICTURES - short.dataset.n
    skipped = run_of(larger("zero_rows"), data, ["zero_shot"]).skipped
    assert "zero row" in skipped[0].reason


def test_what_was_not_asked_is_not_said_and_what_was_is(base, data):
    subject = base.subjects[0]
    for name in ("bf16_unasked", "gelu", "int8_unasked", "noise_5", "bilinear"):
        assert run_of(fault(name), data, ["model_card"]).subjects[0].asked == subject.asked
    for name in ("bf16_asked", "int8_asked", "dims_cut_asked", "pruned_50_asked", "pt_container", "other_loader"):
        assert fault(name).is_asked
        assert run_of(fault(name), data, ["model_card"]).subjects[0].asked != subject.asked


def test_only_changes_of_the_file_change_the_weights_hash(base, data):
    weights = base.subjects[0].observed["weights"]
    same = ("gelu", "int8_unasked", "vision_block_skipped", "pt_container", "bf16_asked")
    other = ("noise_1", "layer_zero", "scale_doubled", "fp32_container")
    for name in same + other:
        found = run_of(fault(name), data, ["model_card"]).subjects[0].observed["weights"]
        assert (found == weights) == (name in same)


def test_noise_is_the_stated_share_of_each_tensor_s_own_spread():
    generator = torch.Generator().manual_seed(0)
    for name, tensor in load_file(tiny_clip.WEIGHTS).items():
        moved = injections.noisy(name, tensor.float(), 0.05, generator) - tensor.float()
        if tensor.numel() > 1000:
            assert moved.std() / tensor.float().std() == pytest.approx(0.05, rel=0.1)
        if name == "logit_scale":
            assert moved == 0


@pytest.mark.parametrize(("name", "least", "most"), PRECISIONS)
def test_a_change_of_precision_is_as_large_as_it_is_in_life(base, data, name, least, most):
    _, distances = moves(base, run_of(fault(name), data, ["zero_shot"]))[SHAPES, "images"]
    assert least < np.median(distances) < most


def test_a_cache_hands_on_what_was_wrong_when_it_was_filled_unless_its_own_check_meets_it(base, data):
    for dose, is_met in ((0.05, False), (0.5, True)):
        head, marks = measured(replace(fault("black_cached"), dose=dose), data, ["zero_shot"])
        assert bool(head.results[0].provenance.encoding["images"].dropped) == is_met
        assert far(base, head, SHAPES, "images") == (set() if is_met else damaged(base, marks)[SHAPES, "images"])


def test_a_disk_holds_the_same_pictures_in_whatever_order_they_were_written(base, data):
    head = run_of(fault("other_order"), data)
    assert [r.dataset.fingerprint for r in head.results] == [r.dataset.fingerprint for r in base.results]


def test_a_set_that_grew_holds_all_that_it_held(base, data):
    head = run_of(fault("grown"), data)
    for before, after in zip(base.results, head.results, strict=True):
        assert after.dataset.n >= before.dataset.n
    assert len(far(base, head, SHAPES, "images")) == 0


def test_the_command_prints_the_table_and_keeps_runs_and_moves(tmp_path, capsys):
    arguments = [
        "--fault",
        "bgr",
        "--fault",
        "again",
        "--pictures",
        "40",
        "--coco-pictures",
        "12",
        "--results",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    table = (tmp_path / "faults.md").read_text()
    assert capsys.readouterr().out == table
    assert "| bgr | BGR in place of RGB | tensor | tensor | not green |" in table
    assert "| again |" in (tmp_path / "moves.md").read_text()
    status, comparison = compared(tmp_path / "base.json", tmp_path / "again.json")
    assert comparison["exit_code"] == status
    kept = (tmp_path / "bgr.json").read_bytes()
    assert main([*arguments, "--again"]) == 0
    assert (tmp_path / "bgr.json").read_bytes() == kept, "judged again, not measured again"
    assert main([*arguments, "--fault", "rotated"]) == 0
    assert (tmp_path / "bgr.json").read_bytes() != kept


def test_an_unknown_fault_is_refused_with_the_closest_name(capsys):
    with pytest.raises(UsageError, match="closest: bf16"):
        fault("bf16_unasket")
    assert main(["--fault", "brg"]) == 2
    assert "unknown fault 'brg'" in capsys.readouterr().err


def test_a_picture_left_alone_is_the_same_object():
    picture = Image.new("RGB", (20, 30))
    assert injections.black(picture, 0.0) is picture
    assert injections.portrait_turned(picture.rotate(90, expand=True), 1.0).size == (30, 20)
    assert injections.is_chosen([0, 10_006], 0.5).tolist() == [True, False]
