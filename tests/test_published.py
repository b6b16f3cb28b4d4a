"""Floors and ceilings from published values: their arithmetic, when they are enforced, and what is shown instead."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paired_runs import spec_of

from clipbench.judge.references import judge, protocol_differences, published_tables, sampling_n, unenforced
from clipbench.models.zoo import zoo
from clipbench.report.document import to_markdown
from clipbench.report.summary import summary_blocks
from clipbench.types import Answers, DatasetIdentity, ModelIdentity, Outcomes, Protocol, Result, Run, Score

REFERENCES = Path(__file__).parents[2] / "shared" / "references"
PREPROCESSING = "RGB, resize shortest to 224x224 bicubic, centre crop, mean 0, std 1"
RETRIEVAL = Protocol(("{caption}",), options={"split": "karpathy test", "captions_per_image": "the first 5"})
CROPS = Protocol(("a photo of a {}.",), options={"split": "val2017", "crop": "square", "crowd_boxes": "kept"})
MULTILABEL = Protocol(("{}",) * 80, options={"split": "val2014"})


def like(protocol, **options):
    """The protocol with other options."""
    return replace(protocol, options={**protocol.options, **options})


def made(experiment, model, dataset, protocol, *scores, pretrained="openai", preprocessing=PREPROCESSING, answers=None):
    """A result with these scores."""
    identity = ModelIdentity(model, pretrained, preprocessing=preprocessing)
    return Result(experiment, identity, dataset, protocol, {s.spec.name: s for s in scores}, answers=answers or {})


def retrieval(value=0.3044, n=5000, protocol=RETRIEVAL, dataset="coco_karpathy_test", **identity):
    spec = spec_of("image_retrieval_recall@1")
    images = tuple(str(k // 5) for k in range(5 * n))
    outcomes = Outcomes(tuple(f"{k // 5}#{k % 5}" for k in range(5 * n)), np.full(5 * n, value), images, "text_ids")
    score = Score(spec, value, 5 * n, outcomes=outcomes)
    return made("coco_retrieval", "ViT-B/32", DatasetIdentity(dataset, "0", n), protocol, score, **identity)


def crops(value=0.5042, n=36781, protocol=CROPS, sizes=(400,) * 80):
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    ids, nothing = tuple(str(k) for k in range(len(labels))), np.zeros(len(labels), dtype=np.float32)
    classes = tuple(f"class {k}" for k in range(len(sizes)))
    answers = Answers(ids, classes, labels[:, None], nothing[:, None], nothing, labels)
    scores = (Score(spec_of("acc1"), value, n), Score(spec_of("mean_per_class_recall"), value, len(sizes)))
    identity = DatasetIdentity("coco_val2017", "0", n)
    return made("coco_crops", "ViT-B/16", identity, protocol, *scores, answers={"images": answers})


def zero_shot(value=0.6332, n=50000, name="imagenet1k", prompts=80):
    identity, score = DatasetIdentity(name, "0", n), Score(spec_of("acc1"), value, n)
    return made("zero_shot", "ViT-B/32", identity, Protocol(("{}",) * prompts), score)


def words(result):
    return [(v.kind, v.outcome) for v in judge(result)]


@pytest.mark.parametrize("result", [retrieval(), crops(), zero_shot(), zero_shot(0.8983, 10000, "cifar10", 18)])
def test_the_published_value_itself_passes_floor_and_ceiling(result):
    assert words(result) == [("floor", "pass"), ("published", "pass")]
    assert unenforced(result) == []


def test_the_floor_is_the_value_less_sampling_error_less_spread_and_prints_its_arithmetic():
    error = 1.96 * math.sqrt(0.3044 * 0.6956 / 5000)
    floor, ceiling = 0.3044 - error - 0.015, 0.3044 + error + 0.015
    verdict = judge(retrieval())[0]
    assert verdict.expected == pytest.approx(floor, abs=1e-6)
    assert (
        "the floor is 0.2766 = published 0.3044 - 0.0128 (1.96 x sqrt(0.3044 x 0.6956 / 5,000)) - 0.0150"
        in verdict.reason
    )
    for value, kinds in (
        (floor + 1e-5, ["pass", "pass"]),
        (floor - 1e-5, ["fail", "pass"]),
        (ceiling - 1e-5, ["pass", "pass"]),
        (ceiling + 1e-5, ["pass", "fail"]),
    ):
        assert [word for _, word in words(retrieval(value))] == kinds


def test_a_value_far_above_the_published_one_is_flagged_with_what_it_may_mean():
    verdict = judge(retrieval(0.9))[1]
    assert (verdict.kind, verdict.outcome) == ("published", "fail")
    assert verdict.reason.startswith("suspiciously above: leaked data, changed prompts or another split?")
    assert "at most 0.3322 = published 0.3044 + 0.0128" in verdict.reason


def test_fewer_items_widen_the_floor_where_a_part_of_the_set_is_enough():
    whole, part = (judge(zero_shot(n=n))[0].expected for n in (50000, 1000))
    assert part == pytest.approx(0.6332 - 1.96 * math.sqrt(0.6332 * 0.3668 / 1000) - 0.004, abs=1e-6)
    assert part < whole


def test_captions_of_an_image_count_once_and_small_classes_count_for_what_they_tell():
    assert sampling_n(retrieval(), "image_retrieval_recall@1", counts_clusters=True) == 5000
    assert sampling_n(crops(sizes=(10, 10)), "mean_per_class_recall") == 20
    assert sampling_n(crops(sizes=(1, 1000, 0)), "mean_per_class_recall") == pytest.approx(4 / 1.001)
    assert sampling_n(crops(), "acc1") == 36781


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (
            retrieval(0.1, protocol=like(RETRIEVAL, split="val2017")),
            "split is 'val2017', published with 'karpathy test'",
        ),
        (retrieval(0.1, n=12), "12 items, published over 5,000 (enforced from 4,900)"),
        (retrieval(0.1, n=40504), "40,504 items"),
        (retrieval(0.1, preprocessing="resize squash"), "preprocessing is 'resize squash'"),
        (crops(0.1, protocol=like(CROPS, crop="tight")), "crop is 'tight', published with 'square'"),
        (crops(0.1, n=14), "14 items"),
        (zero_shot(0.1, n=200), "200 items"),
        (zero_shot(0.1, prompts=7), "7 prompt template(s), published with 80"),
        (zero_shot(0.1, name="eurosat"), "the run uses the user's own"),
    ],
)
def test_another_protocol_is_shown_with_what_differs_and_never_enforced(result, why):
    assert judge(result) == ()
    (shown, *_) = unenforced(result)
    assert why in shown.why
    page = to_markdown(summary_blocks(Run({}, (result,)), {}, {}))
    assert "Published values, shown but not enforced" in page


def test_multilabel_is_shown_beside_its_value_because_the_run_crops_the_centre():
    identity, score = DatasetIdentity("coco_val2014", "0", 40504), Score(spec_of("mean_average_precision"), 0.3, 80)
    result = made("coco_multilabel", "ViT-B/32", identity, MULTILABEL, score)
    assert judge(result) == ()
    (shown,) = unenforced(result)
    assert shown.published == 0.509
    assert "published with 'resize squash'" in shown.why
    squashed = replace(result, model=replace(result.model, preprocessing="RGB, resize squash to 224x224"))
    assert words(squashed) == [("floor", "fail"), ("published", "pass")]


@pytest.mark.parametrize("pretrained", ["random:0", "laion2b_s34b_b79k", "/a/fine-tune.pt"])
def test_weights_that_are_not_openais_are_held_to_nothing_and_shown_nothing(pretrained):
    assert judge(retrieval(0.1, pretrained=pretrained)) == ()
    assert unenforced(retrieval(0.1, n=12, pretrained=pretrained)) == []


def test_openais_own_file_is_recognised_by_its_hash():
    by_path = replace(
        retrieval(),
        model=replace(retrieval().model, pretrained="/a/b.pt", file_sha256=zoo()["ViT-B/32"].openai_checkpoint_sha256),
    )
    assert words(by_path) == [("floor", "pass"), ("published", "pass")]


def test_every_table_names_its_source_models_of_the_zoo_and_fractions():
    for table in published_tables():
        assert table.source
        assert set(table.values) <= set(zoo())
        assert all(0 < value < 1 for row in table.values.values() for value in row.values())
        assert table.unenforced or (table.spread > 0 and table.spread_source and table.items >= table.least_items > 0)
    assert not protocol_differences(
        next(t for t in published_tables() if t.experiment == "coco_retrieval"), retrieval()
    )


@pytest.mark.skipif(not REFERENCES.is_dir(), reason="the published values are not beside this checkout")
def test_values_equal_the_references_they_were_carried_over_from():
    coco = json.loads((REFERENCES / "coco_openai.json").read_text())
    tables = {(t.experiment, t.dataset): {} for t in published_tables()}
    for table in published_tables():
        tables[(table.experiment, table.dataset)] |= table.values
    for model, values in coco["retrieval_karpathy_5k"]["values"].items():
        for way in ("image", "text"):
            for k in (1, 5, 10):
                found = tables[("coco_retrieval", "")][model][f"{way}_retrieval_recall@{k}"]
                assert found == values[f"MSCOCO {way} retr. R@{k}"]
    for experiment, key, metric in (
        ("coco_crops", "instance_crop_mean_per_class_acc1_val2017", "mean_per_class_recall"),
        ("coco_multilabel", "multilabel_map_val2014", "mean_average_precision"),
    ):
        for model, percent in coco[key]["values"].items():
            assert tables[(experiment, "")][model][metric] == pytest.approx(percent / 100)
    accuracies = json.loads((REFERENCES / "zero_shot_openai.json").read_text())["values"]
    names = {"imagenet1k": "ImageNet 1k", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "pcam": "PatchCamelyon"}
    for dataset, column in names.items():
        for model, values in accuracies.items():
            assert tables[("zero_shot", dataset)][model]["acc1"] == values[column]
