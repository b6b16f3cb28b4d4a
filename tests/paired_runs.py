"""Runs made on the spot for comparisons: outcomes with a known number of flips, on sets small and large."""

from dataclasses import replace

import numpy as np
from fakes import matching

from clipbench.experiments import all_experiments
from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import read_rules
from clipbench.types import DatasetIdentity, MetricSpec, ModelIdentity, Outcomes, Protocol, Result, Run, Score

MACHINE = {"processor": "P", "threads": 2, "accelerator": "", "driver": ""}
PROTOCOL = Protocol(("a photo of a {}.",))
NAMES = ("page", "chelsea", "astronaut", "rocket", "motorcycle_right", "camera", "horse", "coffee")


def run_of(*results, machine=None, software=None, skipped=(), traces=()):
    """A run of these results."""
    environment = {"machine": MACHINE if machine is None else machine, "software": software or {"torch": "2"}}
    return Run(environment, results, tuple(skipped), traces=tuple(traces))


def spec_of(metric):
    """What an experiment declares of a metric; a rate where none has it."""
    declared = {spec.name: spec for one in all_experiments().values() for spec in one.metrics}
    return declared.get(metric, MetricSpec(metric, "rate"))


def score_of(metric, values, ids, clusters=None):
    """A score that is the mean of these outcomes; `metric` is a spec or the name of one."""
    spec = spec_of(metric) if isinstance(metric, str) else metric
    values = np.asarray(values, dtype=np.float64)
    return Score(spec, float(values.mean()), len(values), None, Outcomes(tuple(ids), values, clusters))


def scored(hits, metric="acc1", experiment="coco_crops", model="ViT-B/32", protocol=PROTOCOL, **more):
    """A result with one metric whose outcomes are `hits`."""
    return several({metric: hits}, experiment, model, protocol, **more)


def several(
    outcomes, experiment="coco_crops", model="ViT-B/32", protocol=PROTOCOL, dataset=None, ids=None, clusters=None, **identity
):  # fmt: skip
    """A result with several metrics that go by the same ids; each metric is the mean of its outcomes."""
    n = len(next(iter(outcomes.values())))
    names = tuple(ids or (f"i{k}" for k in range(n)))
    found = [score_of(metric, values, names, clusters) for metric, values in outcomes.items()]
    return Result(
        experiment,
        ModelIdentity(model, "openai", **{"preprocessing": "bicubic", **identity}),
        dataset or DatasetIdentity("items", "f" * 64, n),
        protocol,
        {score.spec.name: score for score in found},
    )


def with_score(result, metric, **changes):
    """The result with something of one score changed."""
    return replace(result, scores={**result.scores, metric: replace(result.scores[metric], **changes)})


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
    return matching(np.eye(8) * 0.2 + 0.1 if similarity is None else similarity, NAMES, **identity)


def speed(batch=4, model="ViT-B/32", device="cpu", spread=None, **values):
    """A speed result with these values, the others as they usually are; `spread`: that of repeats, by metric."""
    usual = {"images_per_second": 100.0, "texts_per_second": 200.0, "latency_p50": 0.01, "peak_memory_bytes": 1e9}
    return Result(
        "speed",
        ModelIdentity(model, "openai", device=device, preprocessing="bicubic"),
        DatasetIdentity("natural", "f" * 64, 8),
        replace(PROTOCOL, options={"batch": batch}),
        {
            name: Score(spec_of(name), value, 50, spread=(spread or {}).get(name))
            for name, value in (usual | values).items()
        },
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


def verdict_of(comparison, kind, metric=None):
    """The one verdict of a kind."""
    (found,) = verdicts_of(comparison, kind, metric)
    return found


def verdicts_of(comparison, kind, metric=None):
    """The verdicts of a kind."""
    return [v for v in comparison.verdicts if v.kind == kind and metric in (None, v.metric)]


def moved(table, row, column, to):
    """The matrix with one cell moved."""
    table = np.array(table)
    table[row, column] = to
    return table
