"""Runs made on the spot for comparisons: outcomes with a known number of flips, on sets small and large."""

from dataclasses import replace

import numpy as np
from fakes import matching

from clipbench.judge.compare import compare_runs
from clipbench.judge.rules import read_rules
from clipbench.result import DatasetIdentity, Items, Metric, ModelIdentity, Result, Run

MACHINE = {"processor": "P", "threads": 2, "accelerator": "", "driver": ""}
PROTOCOL = {"prompts": "a photo of a {}.", "preprocessing": "bicubic", "metric_version": 1, "shortcuts": []}
NAMES = ("page", "chelsea", "astronaut", "rocket", "motorcycle_right", "camera", "horse", "coffee")


def run_of(*results, machine=None, software=None, skipped=(), probes=()):
    """A run of these results."""
    environment = {"machine": MACHINE if machine is None else machine, "software": software or {"torch": "2"}}
    return Run(environment, results, tuple(skipped), tuple(probes))


def scored(hits, metric="acc1", experiment="coco_crops", model="ViT-B/32", protocol=None, **more):
    """A result with one metric whose outcomes are `hits`."""
    return several({metric: hits}, experiment, model, protocol, **more)


def several(outcomes, experiment="coco_crops", model="ViT-B/32", protocol=None, dataset=None, ids=None, **identity):
    """A result with several metrics that go by the same ids; each metric is the mean of its outcomes."""
    n = len(next(iter(outcomes.values())))
    return Result(
        experiment,
        ModelIdentity(model, "openai", **identity),
        dataset or DatasetIdentity("items", "f" * 64, n),
        PROTOCOL | (protocol or {}),
        {name: Metric(float(np.mean(values)), n) for name, values in outcomes.items()},
        Items(ids=tuple(ids or (f"i{k}" for k in range(n))), outcomes={k: list(v) for k, v in outcomes.items()}),
    )


def hits(n, right):
    """n outcomes, the first `right` of them 1."""
    return [1] * right + [0] * (n - right)


def flipped(outcomes, lost=0, gained=0):
    """The outcomes with the first `lost` hits missed and the first `gained` misses hit."""
    rights = [k for k, hit in enumerate(outcomes) if hit][:lost]
    wrongs = [k for k, hit in enumerate(outcomes) if not hit][:gained]
    return [0 if k in set(rights) else 1 if k in set(wrongs) else hit for k, hit in enumerate(outcomes)]


def natural(similarity=None, **identity):
    """The natural result of a matrix, by default one in which every item is matched."""
    table = np.eye(8) * 0.2 + 0.1 if similarity is None else similarity
    result = matching(table, NAMES, **identity)
    return replace(result, protocol=PROTOCOL | {"prompts": "This is {caption}"})


def speed(protocol=None, model="ViT-B/32", device="cpu", **values):
    """A speed result with these values, the others as they usually are."""
    usual = {"images_per_second": 100.0, "texts_per_second": 200.0, "latency_p50": 0.01, "peak_memory_bytes": 1e9}
    return Result(
        "speed",
        ModelIdentity(model, "openai", device=device),
        DatasetIdentity("natural", "f" * 64, 8),
        PROTOCOL | {"batch": 4} | (protocol or {}),
        {name: Metric(value, 50) for name, value in (usual | values).items()},
    )


RULES = read_rules()
RIGHT = hits(5000, 3000)
EYE = np.eye(8) * 0.2 + 0.1


def compared(base, head, rules=RULES, **more):
    """The comparison of two lists of results."""
    return compare_runs(run_of(*base), run_of(*head), rules, **more)


def crops(lost=0, gained=0, outcomes=RIGHT, **more):
    """A pair of results on the same items, before and after these flips."""
    return [scored(outcomes, **more)], [scored(flipped(outcomes, lost, gained), **more)]


def finding(comparison, kind, metric=None):
    """The one finding of a kind."""
    (found,) = [f for f in comparison.findings if f.kind == kind and metric in (None, f.metric)]
    return found


def moved(table, row, column, to):
    """The matrix with one cell moved."""
    table = np.array(table)
    table[row, column] = to
    return table
