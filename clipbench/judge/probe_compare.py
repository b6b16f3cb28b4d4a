"""Two probes compared, stage by stage: which is the first that moved, and how far did the rows move with it?

A stage is "same", "moved" or "cannot tell"; what is missing or damaged is never "same". Inputs of a stage that moved explain
it, so the first one is named. This is information: a moved probe explains a verdict and makes none. New weights are what a
fine-tune is for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipbench.embed.sample import Sample
from clipbench.judge.probe_samples import DamagedProbeError, samples_of_both
from clipbench.judge.probe_stages import (
    TENSOR_BUDGET,
    Answer,
    State,
    activation_moved,
    pixels_moved,
    rows_moved,
    similarities_moved,
    statement_moved,
    texts_moved,
    tokens_moved,
)
from clipbench.judge.rules import Rules, read_rules
from clipbench.result import JsonObject

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


PROBED = "natural"
"""The experiment whose items, eight packaged pictures and captions, the probe is taken on: no model is loaded for it alone."""


@dataclass(frozen=True)
class ProbeFinding:
    """What two probes say of one stage of one model, in words and in numbers (by name; cosines are to base)."""

    model: str
    stage: str
    state: State
    details: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def moved(self) -> bool:
        """True when the stage moved; False is not "the same": ask `state`."""
        return self.state == "moved"


def compare_probes(
    base: Sequence[JsonObject], head: Sequence[JsonObject], rules: Rules | None = None
) -> list[ProbeFinding]:
    """Return a finding on every stage of every model, in the order of `STAGES`; probes are matched by model name.

    Rows moved when one is further from base than half the budget of cosines in `rules` (default: fixtures/tolerances.toml;
    the finer precision's): two rows so close to theirs cannot move their cosine beyond the budget. Similarities moved beyond
    the budget itself. Pixels, tokens and texts are exact; a preprocessed tensor may round (TENSOR_BUDGET).
    """
    rules = rules or read_rules()
    findings: list[ProbeFinding] = []
    for name in dict.fromkeys(model_of(probe) for probe in (*base, *head)):
        pair = [[p for p in probes if model_of(p) == name] for probes in (base, head)]
        if [len(found) for found in pair] == [1, 1]:
            findings += _compare(name, pair[0][0], pair[1][0], rules)
        else:
            words = f"base has {len(pair[0])} probes of this model, head has {len(pair[1])}; expected one each"
            findings.append(ProbeFinding(name, "probe", "cannot tell", words))
    return findings


def first_moved(findings: Sequence[ProbeFinding]) -> dict[str, ProbeFinding]:
    """Return the first stage that moved, by model; a model of which none did is absent."""
    return {f.model: f for f in reversed(findings) if f.moved}


def sentence(findings: Sequence[ProbeFinding], model: str) -> str:
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


def _model(probe: Any) -> JsonObject:
    model = probe.get("model") if isinstance(probe, dict) else None
    return model if isinstance(model, dict) else {}


def model_of(probe: Any) -> str:
    """Return the name of the model that a probe is of."""
    name = _model(probe).get("name")
    return name if isinstance(name, str) and name else "a model without a name"


def _compare(model: str, base: JsonObject, head: JsonObject, rules: Rules) -> list[ProbeFinding]:
    if not _model(base) or not _model(head):
        return [ProbeFinding(model, "probe", "cannot tell", "the probe is damaged: it names no model")]
    versions = base.get("version"), head.get("version")
    if versions[0] != versions[1]:
        return [ProbeFinding(model, "probe", "cannot tell", f"probe version {versions[0]!r} -> {versions[1]!r}")]
    findings = []
    for stage, answer in _questions(base, head, rules).items():
        try:
            state, words, numbers = answer()
        except DamagedProbeError as error:
            state, words, numbers = "cannot tell", str(error), {}
        findings.append(ProbeFinding(model, stage, state, words, numbers))
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
