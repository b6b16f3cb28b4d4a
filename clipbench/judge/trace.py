"""Two traces compared, stage by stage: which is the first that moved, and how far did the rows move with it?

A stage is "same", "moved" or "cannot tell"; what is missing or damaged is never "same". Inputs of a stage that moved explain
it, so the first one is named. This is information: a trace that moved explains a verdict and makes none. New weights are what a
fine-tune is for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipbench.embed.trace import Sample, read_sample
from clipbench.errors import ClipbenchError
from clipbench.judge.rules import Budget, Rules, read_rules
from clipbench.types import JsonObject

State = Literal["same", "moved", "cannot tell"]
Answer = tuple[State, str, Mapping[str, float]]
"""(state, words, numbers) of one stage."""
Floats = npt.NDArray[np.float64]

STAGES: Mapping[str, str] = {
    "decoded_pixels": "decoding",
    "preprocessed_tensor": "preprocessing",
    "texts": "prompts",
    "tokens": "tokens",
    "weights": "weights",
    "precision": "precision",
    "activation": "activation",
    "image_rows": "image rows",
    "text_rows": "text rows",
    "similarities": "similarities",
}
"""Every stage in the order in which data flow, with its name for people."""

OUTCOMES = ("image_rows", "text_rows", "similarities")


PIXELS = ("decoded_pixels", "preprocessed_tensor")
"""Stages whose items may have several shapes; the others are rows of one length."""

TENSOR_BUDGET = 1e-5
"""A preprocessed pixel (about -2.7 to 2.7) may move by so much: float32 rounds it at 2.4e-7, a resize adds a few roundings; one
level of 255 in the picture is 1.4e-2."""


class DamagedTraceError(ClipbenchError):
    """A stage that a trace lacks, or that cannot be read or compared: it is said, and nothing is concluded from it."""


@dataclass(frozen=True)
class TraceFinding:
    """What two traces say of one stage of one model, in words and in numbers (by name; cosines are to base)."""

    model: str
    stage: str
    state: State
    details: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def moved(self) -> bool:
        """True when the stage moved; False is not "the same": ask `state`."""
        return self.state == "moved"


def compare_traces(
    base: Sequence[JsonObject], head: Sequence[JsonObject], rules: Rules | None = None
) -> list[TraceFinding]:
    """Return a finding on every stage of every model, in the order of `STAGES`; traces are matched by model name.

    Rows moved when one is further from base than half the budget of cosines in `rules` (default: fixtures/tolerances.toml;
    the finer precision's): two rows so close to theirs cannot move their cosine beyond the budget. Similarities moved beyond
    the budget itself. Pixels, tokens and texts are exact; a preprocessed tensor may round (TENSOR_BUDGET).
    """
    rules = rules or read_rules()
    findings: list[TraceFinding] = []
    for name in dict.fromkeys(model_of(trace) for trace in (*base, *head)):
        pair = [[p for p in traces if model_of(p) == name] for traces in (base, head)]
        if [len(found) for found in pair] == [1, 1]:
            findings += _compare(name, pair[0][0], pair[1][0], rules)
        else:
            words = f"base has {len(pair[0])} traces of this model, head has {len(pair[1])}; expected one each"
            findings.append(TraceFinding(name, "trace", "cannot tell", words))
    return findings


def first_moved(findings: Sequence[TraceFinding]) -> dict[str, TraceFinding]:
    """Return the first stage that moved, by model; a model of which none did is absent."""
    return {f.model: f for f in reversed(findings) if f.moved}


def sentence(findings: Sequence[TraceFinding], model: str) -> str:
    """Return what the findings say of a model: "preprocessing changed (mean abs 0.012); decoding, weights did not; ..."."""
    own = [f for f in findings if f.model == model]
    causes, outcomes = ([f for f in own if (f.stage in OUTCOMES) is outcome] for outcome in (False, True))
    unknown = [f for f in own if f.state == "cannot tell"]
    parts = [f"{STAGES[f.stage]} changed ({f.details})" for f in causes if f.moved]
    same = ", ".join(STAGES[f.stage] for f in causes if f.state == "same")
    if not any(f.moved for f in own):
        parts.append("no stage moved" if not unknown else "no stage is known to have moved" if same else "cannot tell")
    elif same:
        parts.append(f"{same} did not")
    parts += [f"{STAGES[f.stage]} changed ({f.details})" for f in outcomes if f.moved]
    parts += [f"{STAGES[f.stage]}: {f.details}" for f in outcomes if f.state == "same"]
    parts += [f"{STAGES.get(f.stage, f.stage)}: cannot tell ({f.details})" for f in unknown]
    return "; ".join(parts)


def _model(trace: Any) -> JsonObject:
    model = trace.get("model") if isinstance(trace, dict) else None
    return model if isinstance(model, dict) else {}


def model_of(trace: Any) -> str:
    """Return the name of the model that a trace is of."""
    name = _model(trace).get("name")
    return name if isinstance(name, str) and name else "a model without a name"


def _compare(model: str, base: JsonObject, head: JsonObject, rules: Rules) -> list[TraceFinding]:
    if not _model(base) or not _model(head):
        return [TraceFinding(model, "trace", "cannot tell", "the trace is damaged: it names no model")]
    versions = base.get("version"), head.get("version")
    if versions[0] != versions[1]:
        return [TraceFinding(model, "trace", "cannot tell", f"trace version {versions[0]!r} -> {versions[1]!r}")]
    findings = []
    for stage, answer in _questions(base, head, rules).items():
        try:
            state, words, numbers = answer()
        except DamagedTraceError as error:
            state, words, numbers = "cannot tell", str(error), {}
        findings.append(TraceFinding(model, stage, state, words, numbers))
    return findings


def _questions(base: JsonObject, head: JsonObject, rules: Rules) -> dict[str, Callable[[], Answer]]:
    """One call for each of STAGES, in that order."""
    before, after = _model(base), _model(head)
    budget = rules.budget(str(before.get("precision")), str(after.get("precision")))

    def both(stage: str) -> tuple[list[Sample], list[Sample]]:
        return samples_of_both(base, head, stage)

    return {
        "decoded_pixels": lambda: pixels_moved(*both("decoded_pixels"), 0.0, " of 255"),
        "preprocessed_tensor": lambda: pixels_moved(*both("preprocessed_tensor"), TENSOR_BUDGET),
        "texts": lambda: texts_moved(base.get("texts"), head.get("texts")),
        "tokens": lambda: tokens_moved(*both("tokens")),
        "weights": lambda: statement_moved(before.get("weights_sha256"), after.get("weights_sha256"), 12),
        "precision": lambda: statement_moved(before.get("precision"), after.get("precision")),
        "activation": lambda: activation_moved(base.get("activations"), head.get("activations")),
        "image_rows": lambda: rows_moved(*both("image_rows"), budget),
        "text_rows": lambda: rows_moved(*both("text_rows"), budget),
        "similarities": lambda: similarities_moved(*both("similarities"), budget),
    }


def samples_of_both(base: JsonObject, head: JsonObject, stage: str) -> tuple[list[Sample], list[Sample]]:
    """Return the samples of a stage in two traces, item by item.

    Raises: DamagedTraceError as `samples_of`, and when the two are of other items or contradict their own hashes.
    """
    before, after = samples_of(base, stage, "base"), samples_of(head, stage, "head")
    if _items(base) != _items(head) or len(before) != len(after):
        raise DamagedTraceError("the traces are of other items")
    for b, a in zip(before, after, strict=True):
        if b.shape == a.shape and b.values.shape != a.values.shape:
            raise DamagedTraceError("the traces keep other positions")
        if b.sha256 == a.sha256 and not np.array_equal(b.values, a.values):
            raise DamagedTraceError("a trace is damaged: one hash, two arrays")
    return before, after


def samples_of(trace: JsonObject, stage: str, which: str) -> list[Sample]:
    """Return the samples of a stage, one per item; `which` (base or head) is for messages.

    Raises: DamagedTraceError when the stage is absent or empty, a sample is damaged, or rows have several lengths.
    """
    stages = trace.get("stages")
    entries = stages.get(stage) if isinstance(stages, dict) else None
    if entries is None:
        raise DamagedTraceError(f"not in the trace of {which}")
    if not isinstance(entries, list) or not entries:
        raise DamagedTraceError(f"the trace of {which} is damaged: no samples")
    try:
        samples = [read_sample(entry) for entry in entries]
    except ValueError as error:
        raise DamagedTraceError(f"the trace of {which} is damaged: {error}") from error
    if stage not in PIXELS and {(len(s.shape), s.shape) for s in samples} != {(1, samples[0].shape)}:
        raise DamagedTraceError(f"the trace of {which} is damaged: rows of several shapes")
    return samples


def _items(trace: JsonObject) -> tuple[Any, Any]:
    dataset = trace.get("dataset")
    return trace.get("images"), dataset.get("fingerprint") if isinstance(dataset, dict) else None


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


def texts_moved(before: Any, after: Any) -> Answer:
    """The texts with their prompt, exactly."""
    for texts in (before, after):
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise DamagedTraceError("a trace has no texts")
    if before == after:
        return "same", "every text", {}
    if len(before) != len(after):
        return "moved", f"{len(before)} -> {len(after)} texts", {}
    other = [k for k, text in enumerate(before) if text != after[k]]
    first = f"{before[other[0]][:60]!r} -> {after[other[0]][:60]!r}"
    return "moved", f"{len(other)} of {len(before)}: {first}", {"changed": len(other)}


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


def statement_moved(before: Any, after: Any, length: int = 40) -> Answer:
    """What two encoders say of themselves; nothing said cannot be compared."""
    if not all(isinstance(value, str) and value for value in (before, after)):
        raise DamagedTraceError("not stated by the encoder")
    if before == after:
        return "same", before[:length], {}
    return "moved", f"{before[:length]} -> {after[:length]}", {}


def activation_moved(before: Any, after: Any) -> Answer:
    """How many activation modules of each kind the live models hold, whatever their names say."""
    if not all(isinstance(kinds, dict) and kinds for kinds in (before, after)):
        raise DamagedTraceError("not shown by the encoder")
    words = [", ".join(f"{n} {name}" for name, n in sorted(kinds.items())) for kinds in (before, after)]
    return ("same", words[0], {}) if before == after else ("moved", " -> ".join(words), {})


def rows_moved(before: Sequence[Sample], after: Sequence[Sample], budget: Budget) -> Answer:
    """Unit rows, by their distance from base's: moved beyond half the budget of cosines."""
    if before[0].shape != after[0].shape:
        return "moved", f"dim {before[0].shape[0]} -> {after[0].shape[0]}", {}
    base, head = (_unit(np.stack([s.values for s in side])) for side in (before, after))
    distances = np.sqrt(np.sum((head - base) ** 2, axis=1))
    cosines = 1 - distances**2 / 2  # of unit rows; exact where a product would round
    numbers = {
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "distance_max": float(distances.max()),
    }
    words = f"cosine to base min {_short(cosines.min())}, mean {_short(cosines.mean())}"
    return ("moved" if distances.max() > budget.cosine / 2 else "same"), words, numbers


def _unit(rows: Floats) -> Floats:
    norms = np.sqrt(np.sum(rows**2, axis=1, keepdims=True))
    if not norms.all():
        raise DamagedTraceError("a row of a trace is zero")
    unit: Floats = rows / norms
    return unit


def similarities_moved(before: Sequence[Sample], after: Sequence[Sample], budget: Budget) -> Answer:
    """The matrix of cosines: moved beyond the budget, with the rankings that changed."""
    if before[0].shape != after[0].shape:
        raise DamagedTraceError("the matrices have other shapes")
    base, head = (np.stack([s.values for s in side]) for side in (before, after))
    flips, pairs = rank_flips(base, head, 2 * budget.cosine)
    winners = sum(other_winners(b, h, 2 * budget.cosine) for b, h in ((base, head), (base.T, head.T)))
    widest = float(np.abs(head - base).max())
    numbers = {"max_abs": widest, "rank_flips": flips, "pairs": pairs, "other_winners": winners}
    words = f"by up to {widest:.2g}, rank flips {flips} of {pairs}, other winners {winners} of {sum(base.shape)}"
    return ("moved" if widest > budget.cosine else "same"), words, numbers


def rank_flips(base: Floats, head: Floats, tie: float) -> tuple[int, int]:
    """Return (flips, pairs): how many pairs of cells of a row or column swapped their order, of how many pairs there are.

    `base`, `head`: (texts, images). A pair closer than `tie` before and after is a near tie, and no flip.
    """
    flips = pairs = 0
    for before, after in ((base, head), (base.T, head.T)):
        first, second = np.triu_indices(before.shape[1], 1)
        gap_before, gap_after = before[:, first] - before[:, second], after[:, first] - after[:, second]
        near = (np.abs(gap_before) <= tie) & (np.abs(gap_after) <= tie)
        flips += int(np.sum((np.sign(gap_before) != np.sign(gap_after)) & ~near))
        pairs += gap_before.size
    return flips, pairs


def other_winners(base: Floats, head: Floats, tie: float) -> int:
    """Return in how many rows another cell is the largest, near ties (as in `rank_flips`) left out."""
    rows, before, after = np.arange(len(base)), base.argmax(axis=1), head.argmax(axis=1)
    near = (base[rows, before] - base[rows, after] <= tie) & (head[rows, after] - head[rows, before] <= tie)
    return int(np.sum((before != after) & ~near))


def _short(cosine: float) -> str:
    """Five digits, and never "1" for a cosine that is not: 0.99999998 is written in full."""
    return f"{cosine:.5f}" if abs(1 - cosine) >= 1e-5 or cosine == 1 else f"1 - {1 - cosine:.1g}"
