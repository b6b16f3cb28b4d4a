"""Runs made on the spot for comparisons: outcomes with a known number of flips, on sets small and large.

Rows are made from the items' ids: two runs have the same rows, unless one is asked to `move` its own. A head whose rows moved says why
(`precision="int8"`), or nobody asked for it.
"""

import hashlib
from dataclasses import asdict, replace
from functools import cache

import numpy as np
from fakes import matching

from clipbench.embed.evidence import evidence_of, hash_text
from clipbench.experiments import all_experiments
from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import read_rules
from clipbench.types import (
    Answers,
    DatasetIdentity,
    MetricSpec,
    ModelIdentity,
    Outcomes,
    Protocol,
    Result,
    Run,
    Score,
    SubjectRecord,
)  # fmt: skip

MACHINE = {"processor": "P", "threads": 2, "accelerator": "", "driver": ""}
PROTOCOL = Protocol(("a photo of a {}.",))
NAMES = ("page", "chelsea", "astronaut", "rocket", "motorcycle_right", "camera", "horse", "coffee")
CLASSES = tuple(f"class {k}" for k in range(100))
INT8 = {"precision": "int8", "move": 0.02}
"""A head that was asked for in int8, and whose rows moved as int8 moves them."""


def run_of(*results, machine=None, software=None, traces=None, asked=None, observed=None, **more):
    """A run of these results, with a subject and a trace of each model; `asked`, `observed`: more that is said of each subject."""
    environment = {"machine": MACHINE if machine is None else machine, "software": software or {"torch": "2"}}
    models = {result.model.name: result.model for result in results}
    subjects = [subject_of(model, asked or {}, observed or {}) for model in models.values()]
    traces = [trace_of(model) for model in models.values()] if traces is None else traces
    return Run(environment, results, subjects=tuple(subjects), traces=tuple(traces), **more)


def subject_of(model, asked, observed):
    """What is said of a model: its weights and precision were asked for, the rest was observed."""
    found = {"weights": model.weights_sha256, "activation": model.activation, "preprocessing": model.preprocessing}
    chosen = {"precision": model.precision, "weights": model.pretrained}
    return SubjectRecord(model.name, chosen | asked, found | {"device": model.device} | observed)


def trace_of(model, **more):
    """A trace of a model that repeats."""
    return {"version": 3, "model": asdict(model), "stages": {}, "repeat": 0.0, "batches": 1e-6} | more


def spec_of(metric):
    """What an experiment declares of a metric; a headline rate where none has it."""
    declared = {spec.name: spec for one in all_experiments().values() for spec in one.metrics}
    return declared.get(metric, MetricSpec(metric, "rate", headline=True))


def score_of(metric, values, ids, clusters=None, axis="ids"):
    """A score that is the mean of these outcomes; `metric` is a spec or the name of one."""
    spec = spec_of(metric) if isinstance(metric, str) else metric
    values = np.asarray(values, dtype=np.float64)
    return Score(spec, float(values.mean()), len(values), None, Outcomes(tuple(ids), values, clusters, axis))


@cache
def evidence(ids, move=0.0, files=None, pictures=None):
    """What is kept of these items' rows, each made from its own id and then moved by `move`; the file and picture of each by name."""
    digests = b"".join(hashlib.sha256(item.encode()).digest() for item in ids)
    rows = np.unpackbits(np.frombuffer(digests, np.uint8)).reshape(len(ids), 256) / 8.0 - 1 / 16
    noise = np.random.default_rng(0).normal(size=rows.shape)
    rows = rows + move * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    hashes = ([hash_text(name) for name in names or ids] for names in (files, pictures or files))
    return evidence_of(ids, rows, rows, *hashes)


def taken_for(ids, outcomes, margin=0.1, labels=None, groups=None):
    """What each item was taken for: its own class where it is a hit, else the next one, the two `margin` apart."""
    hit, own = np.asarray(outcomes) > 0, np.arange(len(ids)) % 100 if labels is None else np.asarray(labels)
    order = np.stack([np.where(hit, own, (own + 1) % 100), np.where(hit, (own + 1) % 100, own)], axis=1)
    scores = np.tile(np.float32([0.3, 0.3 - margin]), (len(ids), 1))
    margins = np.where(hit, margin, -margin).astype(np.float32)
    return Answers(tuple(ids), CLASSES, order.astype(np.int32), scores, margins, own.astype(np.int32), groups)


def scored(hits, metric="acc1", experiment="coco_crops", **more):
    """A result with one metric whose outcomes are `hits`."""
    return several({metric: hits}, experiment, **more)


def several(
    outcomes, experiment="coco_crops", model="ViT-B/32", protocol=PROTOCOL, dataset=None, ids=None, clusters=None,
    axis="ids", move=0.0, files=None, pictures=None, answers=None, **identity,
):  # fmt: skip
    """A result with several metrics that go by the same ids; each metric is the mean of its outcomes.

    `move`: how far its rows lie from where their ids put them. `files`, `pictures`: what each item is in. `answers`: margins, labels
    and groups, as `taken_for` has them; without it only outcomes are known.
    """
    n = len(next(iter(outcomes.values())))
    names = tuple(ids or (f"i{k}" for k in range(n)))
    found = [score_of(metric, values, names, clusters, axis) for metric, values in outcomes.items()]
    known = {} if answers is None else {found[0].spec.answers: taken_for(names, found[0].outcomes.values, **answers)}
    return Result(
        experiment,
        ModelIdentity(model, **{"pretrained": "openai", "preprocessing": "bicubic", **identity}),
        dataset or DatasetIdentity("items", "f" * 64, n),
        protocol,
        {score.spec.name: score for score in found},
        answers=known,
        evidence={"images": evidence(names, move, files, pictures)},
    )


def with_score(result, metric, **changes):
    """The result with something of one score changed."""
    return replace(result, scores={**result.scores, metric: replace(result.scores[metric], **changes)})


def hits(n, right):
    """n outcomes, the first `right` of them 1."""
    return [1] * right + [0] * (n - right)


def flipped(outcomes, lost=0, gained=0):
    """The outcomes with the first `lost` hits missed and the first `gained` misses hit."""
    rights, wrongs = ([k for k, hit in enumerate(outcomes) if bool(hit) is right] for right in (True, False))
    rights, wrongs = set(rights[:lost]), set(wrongs[:gained])
    return [0 if k in rights else 1 if k in wrongs else hit for k, hit in enumerate(outcomes)]


def natural(similarity=None, move=0.0, **identity):
    """The natural result of a matrix, by default one in which every item is matched."""
    result = matching(EYE if similarity is None else similarity, NAMES, **{"preprocessing": "bicubic", **identity})
    return replace(result, evidence={tower: evidence(NAMES, move) for tower in ("images", "texts")})


def speed(batch=4, model="ViT-B/32", device="cpu", processes=None, **values):
    """A speed result with these values, the others as they usually are; `processes`: what each of several measured, by metric."""
    usual = {"images_per_second": 100.0, "texts_per_second": 200.0, "latency_p50": 0.01, "peak_memory_bytes": 1e9}
    return Result(
        "speed",
        ModelIdentity(model, "openai", device=device, preprocessing="bicubic"),
        DatasetIdentity("natural", "f" * 64, 8),
        replace(PROTOCOL, options={"batch": batch}),
        {
            name: Score(spec_of(name), value, 50, processes=tuple((processes or {}).get(name, ())))
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
    """A pair of results on the same items, before and after these flips, which came with int8."""
    return [scored(outcomes, **more)], [scored(flipped(outcomes, lost, gained), **INT8, **more)]


def cell(comparison, name):
    """The one cell whose id begins with this."""
    (found,) = [one for one in comparison.cells if one.id.startswith(name)]
    return found


def quality(comparison, metric="acc1"):
    """The one verdict of quality on a metric."""
    return verdict_of(comparison, "quality", metric)


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
