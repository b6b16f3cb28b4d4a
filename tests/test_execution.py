"""Optimizations that were dropped: said once, with what it cost, beside the model's results that took others."""

from dataclasses import replace

import numpy as np
from fakes import matching

from clipbench.judge.references import dropped_optimizations
from clipbench.types import Encoding, Provenance, Run

PERFECT = np.eye(8)
NAMES = tuple("abcdefgh")


def made(encoding, optimizations=(), name="natural", model="ViT-B/32"):
    result = matching(PERFECT, NAMES, model)
    return replace(result, experiment=name, provenance=Provenance(tuple(optimizations), encoding))


def test_a_dropped_optimization_is_a_note_beside_results_whose_own_sample_agreed():
    images = Encoding(5000, dropped="with shared_rows a sampled row is away")
    dropped = made({"images": images, "texts": Encoding(8, checked=4)}, ["text_truncation"], "coco_retrieval")
    crops = made({"texts": Encoding(8, checked=4)}, ["text_truncation"], "coco_crops")
    what, others = dropped_optimizations(Run({}, (crops, made({}), dropped)))
    assert what == (
        "optimization dropped: coco_retrieval of ViT-B/32, 5,000 images encoded again: with shared_rows a sampled row is away"
    )
    assert others.endswith("whose own sample agreed with the reference path: coco_crops (text_truncation)")


def test_another_models_dropped_optimization_is_not_noted_for_this_one():
    crops = made({"texts": Encoding(8, checked=4)}, ["text_truncation"], "coco_crops")
    other = made({"texts": Encoding(8, dropped="a row is away")}, (), "coco_retrieval", "RN50")
    (line,) = dropped_optimizations(Run({}, (crops, other)))
    assert "coco_retrieval of RN50, 8 texts" in line
    assert not list(dropped_optimizations(Run({}, (crops,))))
