"""Two traces compared, stage by stage: which is the first that moved, and how far did the rows move with it?

A stage is "same", "moved" or "unknown"; what is missing is never "same". Inputs of a stage that moved explain
it, so the first one is named. This is information: a trace that moved explains a verdict and makes none. New weights are what a
fine-tune is for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from clipbench.embed.trace import Sample, read_sample
from clipbench.judge.tolerances import Budget, Rules, read_rules
from clipbench.types import JsonObject, Run

State = Literal["same", "moved", "unknown"]
Answer = tuple[State, str, Mapping[str, float]]
"""(state, words, numbers) of one stage."""

STAGES: Mapping[str, str] = {
    "decoded_pixels": "decoding",
    "preprocessed_tensor": "preprocessing",
    "tokens": "tokens",
    "weights": "weights",
    "precision": "precision",
    "activation": "activation",
    "image_rows": "image rows",
    "text_rows": "text rows",
}
"""Every stage in the order in which data flow, with its name for people."""

OUTCOMES = ("image_rows", "text_rows")
TENSOR_BUDGET = 1e-5
"""A preprocessed pixel (about -2.7 to 2.7) may move by so much: float32 rounds it at 2.4e-7, a resize adds a few roundings; one
level of 255 in the picture is 1.4e-2."""


@dataclass(frozen=True)
class TraceFinding:
    """What two traces say of one stage of one model, in words and in numbers (by name; cosines are to base)."""

    model: str
    stage: str
    state: State
    details: str
    numbers: Mapping[str, float]

    @property
    def moved(self) -> bool:
        """True when the stage moved; False is not "the same": ask `state`."""
        return self.state == "moved"


def compare_traces(
    base: Sequence[JsonObject], head: Sequence[JsonObject], rules: Rules | None = None
) -> list[TraceFinding]:
    """Return a finding on every stage of every model, in the order of `STAGES`; traces are matched by model name.

    Rows moved when one is further from base than half the budget of cosines in `rules` (default: fixtures/tolerances.toml;
    the finer precision's): two rows so close to theirs cannot move their cosine beyond the budget. Pixels and tokens are
    exact; a preprocessed tensor may round (TENSOR_BUDGET).
    """
    rules = rules or read_rules()
    findings: list[TraceFinding] = []
    for name in dict.fromkeys(model_of(trace) for trace in (*base, *head)):
        pair = [[p for p in traces if model_of(p) == name] for traces in (base, head)]
        if [len(found) for found in pair] == [1, 1]:
            findings += _compare(name, pair[0][0], pair[1][0], rules)
        else:
            words = f"base has {len(pair[0])} traces of this model, head has {len(pair[1])}; expected one each"
            findings.append(TraceFinding(name, "trace", "unknown", words, {}))
    return findings


def sentence(findings: Sequence[TraceFinding], model: str) -> str:
    """Return what the findings say of a model: "preprocessing changed (mean abs 0.012); decoding, weights did not; ..."."""
    own = [f for f in findings if f.model == model]
    causes, outcomes = ([f for f in own if (f.stage in OUTCOMES) is outcome] for outcome in (False, True))
    unknown = [f for f in own if f.state == "unknown"]
    parts = [f"{STAGES[f.stage]} changed ({f.details})" for f in causes if f.moved]
    same = ", ".join(STAGES[f.stage] for f in causes if f.state == "same")
    if not any(f.moved for f in own):
        parts.append(
            "no stage moved" if not unknown else "no stage is known to have moved" if same else "nothing is known"
        )
    elif same:
        parts.append(f"{same} did not")
    parts += [f"{STAGES[f.stage]} changed ({f.details})" for f in outcomes if f.moved]
    parts += [f"{STAGES[f.stage]}: {f.details}" for f in outcomes if f.state == "same"]
    parts += [f"{STAGES.get(f.stage, f.stage)}: unknown ({f.details})" for f in unknown]
    return "; ".join(parts)


def model_of(trace: JsonObject) -> str:
    """Return the name of the model that a trace is of."""
    return str(trace["model"]["name"])


def trace_in(run: Run, model: str) -> JsonObject | None:
    """Return the first trace of a model in a run, None where there is none."""
    return next((trace for trace in run.traces if model_of(trace) == model), None)


def _compare(model: str, base: JsonObject, head: JsonObject, rules: Rules) -> Iterator[TraceFinding]:
    if base["version"] != head["version"]:
        words = f"trace version {base['version']!r} -> {head['version']!r}"
        yield TraceFinding(model, "trace", "unknown", words, {})
        return
    budget = rules.budget(base["model"]["precision"], head["model"]["precision"])
    compared: Mapping[str, Callable[[list[Sample], list[Sample]], Answer]] = {
        "decoded_pixels": partial(pixels_moved, budget=0.0, unit=" of 255"),
        "preprocessed_tensor": partial(pixels_moved, budget=TENSOR_BUDGET),
        "tokens": tokens_moved,
        "image_rows": partial(rows_moved, budget=budget),
        "text_rows": partial(rows_moved, budget=budget),
    }
    for stage in STAGES:
        if stage in compared:
            yield TraceFinding(model, stage, *_samples_moved(base, head, stage, compared[stage]))
        else:
            yield TraceFinding(model, stage, *_statement_moved(base, head, stage))


def _samples_moved(
    base: JsonObject, head: JsonObject, stage: str, moved: Callable[[list[Sample], list[Sample]], Answer]
) -> Answer:
    for trace, which in ((base, "base"), (head, "head")):
        if stage not in trace["stages"]:
            return "unknown", f"not in the trace of {which}", {}
    try:
        before, after = ([read_sample(entry) for entry in trace["stages"][stage]] for trace in (base, head))
        return moved(before, after)
    except (ValueError, IndexError) as error:  # samples that do not fit each other: another number, another shape
        return "unknown", f"a trace is damaged: {error}", {}


def _statement_moved(base: JsonObject, head: JsonObject, stage: str) -> Answer:
    """What two encoders say of themselves; nothing said cannot be compared."""
    if stage == "activation":  # how many modules of each kind the live models hold, whatever their names say
        kinds = [trace.get("activations", {}) for trace in (base, head)]
        before, after = (", ".join(f"{n} {name}" for name, n in sorted(found.items())) for found in kinds)
    else:
        key = "weights_sha256" if stage == "weights" else stage
        before, after = (trace["model"][key] for trace in (base, head))
    if not before or not after:
        return "unknown", f"not {'shown' if stage == 'activation' else 'stated'} by the encoder", {}
    length = 12 if stage == "weights" else None
    if before == after:
        return "same", before[:length], {}
    return "moved", f"{before[:length]} -> {after[:length]}", {}


def pixels_moved(before: Sequence[Sample], after: Sequence[Sample], budget: float, unit: str = "") -> Answer:
    """Pictures or tensors, by hash; where hashes differ, by how much at the sampled positions (beyond `budget`: moved).

    A hash that differs while every sampled value is equal is a change elsewhere in the picture: rounding would show here.
    """
    changed = [(b, a) for b, a in zip(before, after, strict=True) if b.sha256 != a.sha256]
    n = len(before)
    if not changed:
        return "same", "every bit", {"changed": 0}
    if other := next(((b, a) for b, a in changed if b.shape != a.shape), None):
        return "moved", f"shape {other[0].shape} -> {other[1].shape}", {"changed": len(changed)}
    gaps = np.concatenate([np.abs(a.values - b.values) for b, a in changed])
    numbers = {"changed": len(changed), "mean_abs": float(gaps.mean()), "max_abs": float(gaps.max())}
    if 0 < numbers["max_abs"] <= budget:
        return "same", f"rounding, at most {gaps.max():.1g}", numbers
    where = "" if gaps.any() else ", not at the sampled positions"
    words = f"mean abs {gaps.mean():.2g}{unit}, max {gaps.max():.2g}, {len(changed)} of {n} pictures{where}"
    return "moved", words, numbers


def tokens_moved(before: Sequence[Sample], after: Sequence[Sample]) -> Answer:
    """The tokens of each text, exactly."""
    changed = [(b, a) for b, a in zip(before, after, strict=True) if b.sha256 != a.sha256]
    if not changed:
        return "same", "every token", {"changed": 0}
    b, a = changed[0]
    words = f"{len(changed)} of {len(before)} texts"
    if b.shape != a.shape:
        return "moved", f"{words}, context length {b.shape[0]} -> {a.shape[0]}", {"changed": len(changed)}
    place = int(np.argmax(b.values != a.values))
    seen = f"token {place}: {b.values[place]:.0f} -> {a.values[place]:.0f}"
    return "moved", f"{words}, {seen}", {"changed": len(changed)}


def rows_moved(before: Sequence[Sample], after: Sequence[Sample], budget: Budget) -> Answer:
    """Unit rows, by their distance from base's: moved beyond half the budget of cosines."""
    if before[0].shape != after[0].shape:
        return "moved", f"dim {before[0].shape[0]} -> {after[0].shape[0]}", {}
    rows = (np.stack([s.values for s in side]) for side in (before, after))
    base, head = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in rows)
    distances = np.linalg.norm(head - base, axis=1)
    cosines = 1 - distances**2 / 2  # of unit rows; exact where a product would round
    numbers = {
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "distance_max": float(distances.max()),
    }
    words = f"cosine to base min {_short(cosines.min())}, mean {_short(cosines.mean())}"
    return ("same" if distances.max() <= budget.cosine / 2 else "moved"), words, numbers  # NaN is not the same


def _short(cosine: float) -> str:
    """Five digits, and never "1" for a cosine that is not: 0.99999998 is written in full."""
    return f"{cosine:.5f}" if abs(1 - cosine) >= 1e-5 or cosine == 1 else f"1 - {1 - cosine:.1g}"
