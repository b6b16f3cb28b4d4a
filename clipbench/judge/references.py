"""Verdicts of one result against every expected value that speaks of it, with the reason in words.

An expected value has a source: the published card, floors that this project enforces, published matrices, tables and labels, the
contracts that hold of every model they name, and the result's own activation. All of it is data in fixtures/; each kind is one section
below. What nothing speaks of is measured, and is no pass.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from clipbench.models.zoo import cards, zoo
from clipbench.paths import fixtures, read_toml
from clipbench.statistics import Interval, accuracy_difference_interval, wilson_interval
from clipbench.types import FloatArray, ModelIdentity, Outcome, Outcomes, Result, Run, Score, Verdict

ACTIVATION_ALPHA = 0.01
ACTIVATION_GAIN = 0.005
CHANCE_ALPHA = 0.05
"""Error rate, one-sided and exact, at which a rate is said to be better than chance."""
MOST_CELLS = 3
"""Cells of a matrix that a reason lists, the furthest off first."""
PUBLISHED_FILES = ("coco.toml", "zero_shot.toml")
MATRIX, LABELS = "similarity", "probabilities"
Z = 1.96
"""Two-sided 95 % of a normal distribution."""


def judge(
    result: Result, beside: Mapping[str, Result] | None = None, own: "Sequence[Floor]" = ()
) -> tuple[Verdict, ...]:
    """Return the verdicts of a result against every expected value that speaks of it.

    `beside`: the same model's results by experiment; medical images are held against natural ones. `own`: floors of a project's
    settings. Random weights are held to their card alone: nothing else is claimed of them.
    """
    verdicts = list(_card_verdicts(result))
    if not result.model.is_random:
        verdicts += _floor_verdicts(result, own)
        verdicts += _matrix_verdicts(result)
        verdicts += published_verdicts(result)
        verdicts += label_verdicts(result)
        verdicts += contract_verdicts(result, beside or {})
        verdicts += _activation_verdicts(result)
    return tuple(verdicts)


def weights_of(model: ModelIdentity) -> str:
    """Return the tag whose weights these are: OpenAI's own files are recognised by their SHA-256, however they were given."""
    row = zoo().get(model.reference_name)
    return "openai" if row and model.file_sha256 == row.openai_checkpoint_sha256 else model.pretrained


def judged_by(run: Run) -> dict[str, frozenset[str]]:
    """Return by the label of each measured model the kinds of reference that what was measured of it was held to.

    Empty for a model that nobody claims anything about. A card says which model it is, and nothing of how good it is: it counts
    only where nothing else was measured.
    """
    found = {}
    for label in dict.fromkeys(r.model.label for r in run.results):
        results = [r for r in run.results if r.model.label == label]
        measured = [r for r in results if not r.is_counted] or results
        found[label] = frozenset(v.kind for r in measured for v in r.verdicts if v.outcome != "note")
    return found


def dropped_optimizations(run: Run) -> Iterator[str]:
    """Yield a note on each optimization that was dropped, and on the model's other results, whose own sample agreed."""
    for name in dict.fromkeys(r.model.name for r in run.results):
        results = [r for r in run.results if r.model.name == name]
        dropped = [(r, tower, how) for r in results for tower, how in r.provenance.encoding.items() if how.dropped]
        for r, tower, how in dropped:
            yield f"optimization dropped: {r.experiment} of {name}, {how.n:,} {tower} encoded again: {how.dropped}"
        lost = {r.key for r, _, _ in dropped}
        taken = [r for r in results if r.provenance.optimizations and r.key not in lost]
        if dropped and taken:
            which = ", ".join(f"{r.experiment} ({', '.join(r.provenance.optimizations)})" for r in taken)
            yield f"optimizations of {name} whose own sample agreed with the reference path: {which}"


def _card_verdicts(result: Result) -> Iterator[Verdict]:
    if result.experiment != "model_card" or result.model.reference_name not in cards():
        return
    card, source = cards()[result.model.reference_name]
    for metric, expected in card.items():
        got = result.scores[metric].value if metric in result.scores else None
        word = "absent" if got is None else f"{got:,.0f}"
        outcome: Outcome = "pass" if got == expected else "fail"
        reason = f"{metric} is {word}, the published card says {expected:,}"
        yield Verdict(result.key, metric, "published", outcome, reason, f"card: {source}", expected)


@dataclass(frozen=True)
class Floor:
    """A claim: `metrics` of `experiment` on `dataset` are at least `at_least` for these models with these weights."""

    experiment: str
    dataset: str
    models: tuple[str, ...]
    weights: str
    metrics: tuple[str, ...]
    at_least: float
    source: str


def _names(row: "Floor | Contract", model: ModelIdentity) -> bool:
    return row.weights in ("*", weights_of(model)) and not {"*", model.name, model.reference_name}.isdisjoint(
        row.models
    )


@cache
def floors() -> tuple[Floor, ...]:
    """Return every row of fixtures/floors.toml."""
    return tuple(Floor(**row) for row in _table("floors.toml")["floor"])


def _floor_verdicts(result: Result, own: Sequence[Floor]) -> Iterator[Verdict]:
    for floor in (*floors(), *own):
        if (floor.experiment, floor.dataset) != (result.experiment, result.dataset.name):
            continue
        if not _names(floor, result.model):
            continue
        for metric in floor.metrics:
            outcome: Outcome = "inconclusive"
            reason = f"{metric} was not measured"
            if found := result.scores.get(metric):
                outcome = "pass" if found.value >= floor.at_least else "fail"
                reason = f"{metric} is {found.value:.4g} at n={found.n}, the floor is {floor.at_least:.4g}"
                reason += _missed(found.outcomes)
            yield Verdict(result.key, metric, "floor", outcome, reason, floor.source, floor.at_least)


def _missed(outcomes: Outcomes | None) -> str:
    missed = [] if outcomes is None else [outcomes.ids[k] for k in np.flatnonzero(outcomes.values == 0)]
    return f"; missed: {', '.join(missed[:8])}{', ...' if len(missed) > 8 else ''}" if missed else ""


@dataclass(frozen=True)
class PublishedMatrix:
    """A published square matrix of cosines (texts, images), both axes in the order of `names`; -1 marks no value.

    `tolerances`: how far a re-run may lie from a decoded and from a printed cell.
    """

    model: str
    weights: str
    source: str
    differing_columns: Sequence[str]
    names: Sequence[str]
    printed: Sequence[Sequence[float]]
    tolerances: tuple[float, float]
    decoded: Sequence[Sequence[float]] = ()
    experiment: str = "natural"

    def cell(self, row: int, column: int) -> tuple[float, float] | None:
        """Return (value, tolerance) of a cell, the finer value first, or None where nothing was published."""
        fine, coarse = self.tolerances
        if self.decoded and self.decoded[row][column] >= 0:
            return self.decoded[row][column], fine
        return (self.printed[row][column], coarse) if self.printed[row][column] >= 0 else None


@cache
def published_matrices() -> tuple[PublishedMatrix, ...]:
    """Return every row of fixtures/published/natural_similarity.toml."""
    table = _table("published/natural_similarity.toml")
    tolerances = (table["tolerance_decoded"], table["tolerance_printed"])
    return tuple(PublishedMatrix(**row, tolerances=tolerances) for row in table["matrix"])


def _matrix_verdicts(result: Result) -> Iterator[Verdict]:
    """Not for bf16, whose rounding moves cosines further than the tolerance."""
    about = (result.experiment, result.model.reference_name, weights_of(result.model))
    if MATRIX in result.matrices and result.model.precision != "bf16":
        for matrix in published_matrices():
            if about == (matrix.experiment, matrix.model, matrix.weights):
                yield _matrix_verdict(result, matrix)


def _matrix_verdict(result: Result, matrix: PublishedMatrix) -> Verdict:
    measured = result.matrices[MATRIX]
    rows, columns = ({item: k for k, item in enumerate(axis)} for axis in (measured.rows, measured.columns))
    missing = [name for name in matrix.names if name not in rows or name not in columns]
    if missing:
        reason = f"the matrix has cells of {', '.join(missing)}, which were not measured"
        return Verdict(result.key, MATRIX, "published", "inconclusive", reason, matrix.source, "every cell")
    off, cells, worst = [], 0, 0.0
    for row, text in enumerate(matrix.names):
        for column, image in enumerate(matrix.names):
            published = matrix.cell(row, column)
            if published is None or image in matrix.differing_columns:
                continue
            cells += 1
            value, tolerance = published
            found = float(measured.values[rows[text], columns[image]])
            worst = max(worst, distance := abs(found - value))
            if distance > tolerance:
                off.append((distance, f"({text}, {image}) {found:.4f}, published {value:.4f} +-{tolerance}"))
    examples = "; ".join(words for _, words in sorted(off, reverse=True)[:MOST_CELLS])
    reason = f"{cells - len(off)} of {cells} published cells within tolerance, largest difference {worst:.4f}"
    reason += f"; worst: {examples}" if off else ""
    outcome: Outcome = "inconclusive" if not cells else "fail" if off else "pass"
    return Verdict(result.key, MATRIX, "published", outcome, reason, matrix.source, f"{cells} cells")


@dataclass(frozen=True)
class PublishedTable:
    """Published values of one protocol: `values[model][metric]`, fractions; see the head of fixtures/published/coco.toml."""

    experiment: str
    weights: str
    source: str
    values: Mapping[str, Mapping[str, float]]
    dataset: str = ""
    items: int = 0
    least_items: int = 0
    spread: float = 0.0
    spread_source: str = ""
    requires: Mapping[str, str] = field(default_factory=dict)
    prompt_count: int = 0
    unenforced: str = ""
    counts_clusters: bool = False


@dataclass(frozen=True)
class Unenforced:
    """A published value beside a measured one that it is not held to, and why."""

    metric: str
    published: float
    measured: Score
    why: str
    source: str


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """Return every table of the published values."""
    return tuple(PublishedTable(**row) for name in PUBLISHED_FILES for row in _table(f"published/{name}")["table"])


def published_verdicts(result: Result) -> Iterator[Verdict]:
    """Yield a floor (kind floor) and a ceiling (kind published) for each published value whose protocol the run follows.

    They are the value -+ 1.96 sqrt(p (1 - p) / n) -+ spread. Above the ceiling fails: leaked data, changed prompts or another
    split look like that, and no reproduction does. Where the protocol differs see `unenforced`.
    """
    for table, published in _tables_about(result):
        if not protocol_differences(table, result):
            for metric, value in published.items():
                if metric in result.scores:
                    yield from _bounds(result, table, metric, value)


def unenforced(result: Result) -> list[Unenforced]:
    """Return the published values that the result is not held to because something differs; [] for random weights."""
    found = []
    for table, published in () if result.model.is_random else _tables_about(result):
        why = "; ".join(protocol_differences(table, result))
        measured = [(m, value) for m, value in published.items() if m in result.scores and why]
        found += [Unenforced(m, value, result.scores[m], why, table.source) for m, value in measured]
    return found


def protocol_differences(table: PublishedTable, result: Result) -> list[str]:
    """Return how the run's protocol differs from the published one, in words; [] when the value can be enforced."""
    stated = result.protocol.entries() | {"preprocessing": result.model.preprocessing}
    n, prompts = result.dataset.n, result.protocol.prompts
    found = [table.unenforced] if table.unenforced else []
    for key, wanted in table.requires.items():
        got = ", ".join(prompts) if key == "prompts" else str(stated.get(key, "not stated"))
        if wanted not in got if key == "preprocessing" else wanted != got:
            found.append(f"{key} is {got!r}, published with {wanted!r}")
    if table.prompt_count and len(prompts) != table.prompt_count:
        found.append(f"{len(prompts)} prompt template(s), published with {table.prompt_count}")
    if table.items and not table.least_items <= n <= table.items:
        found.append(f"{n:,} items, published over {table.items:,} (enforced from {table.least_items:,})")
    return found


def sampling_n(result: Result, metric: str, counts_clusters: bool = False) -> float:
    """Return how many independent outcomes are behind a metric: clusters (`counts_clusters`), or its outcomes.

    For a mean over classes it is classes^2 / sum(1 / items of a class), the error of that mean at one rate in every class.
    """
    score = result.scores[metric]
    answers, outcomes = result.answers.get(score.spec.answers), score.outcomes
    if counts_clusters and outcomes is not None and outcomes.clusters is not None:
        return float(len(set(outcomes.clusters)))
    if score.spec.kind == "mean" and answers is not None and answers.labels is not None:
        sizes = np.bincount(answers.labels)
        return float(np.count_nonzero(sizes)) ** 2 / float((1 / sizes[sizes > 0]).sum())
    return float(score.n)


def _tables_about(result: Result) -> Iterator[tuple[PublishedTable, Mapping[str, float]]]:
    """The tables about this experiment (and labelled folder), these weights and this model, with the model's values."""
    about = (result.experiment, weights_of(result.model))
    for table in published_tables():
        values = table.values.get(result.model.reference_name)
        if values and about == (table.experiment, table.weights) and table.dataset in ("", result.dataset.name):
            yield table, values


def _bounds(result: Result, table: PublishedTable, metric: str, value: float) -> Iterator[Verdict]:
    found, n = result.scores[metric].value, sampling_n(result, metric, table.counts_clusters)
    error = Z * math.sqrt(value * (1 - value) / n)
    floor, ceiling = value - error - table.spread, value + error + table.spread
    because = f"(1.96 x sqrt({value:.4f} x {1 - value:.4f} / {n:,.0f}))"
    sum_of = f"published {value:.4f} {{0}} {error:.4f} {because} {{0}} {table.spread:.4f} ({table.spread_source})"
    at = f"{metric} is {found:.4f} at n={result.scores[metric].n:,}"
    reason = f"{at}, the floor is {floor:.4f} = {sum_of.format('-')}"
    outcome: Outcome = "pass" if found >= floor else "fail"
    yield Verdict(result.key, metric, "floor", outcome, reason, table.source, round(floor, 6))
    reason = f"{at}, published {value:.4f}; at most {ceiling:.4f} = {sum_of.format('+')}"
    if found > ceiling:
        reason = f"suspiciously above: leaked data, changed prompts or another split? {reason}"
    outcome = "pass" if found <= ceiling else "fail"
    yield Verdict(result.key, metric, "published", outcome, reason, table.source, round(value, 6))


@dataclass(frozen=True)
class PublishedLabels:
    """One published figure: probabilities by item and label, readable ones only; `tolerance` is (constant, relative)."""

    model: str
    weights: str
    source: str
    differing: Sequence[str]
    labels: Mapping[str, Mapping[str, float]]
    tolerance: tuple[float, float]

    def allowed(self, probability: float) -> float:
        """Return how far a re-run may lie from a published probability."""
        return self.tolerance[0] + self.tolerance[1] * probability


@cache
def published_labels() -> tuple[PublishedLabels, ...]:
    """Return every figure of fixtures/published/natural_labels.toml."""
    table = _table("published/natural_labels.toml")
    tolerance = (table["reading"] + table["absolute"], table["relative"])
    return tuple(PublishedLabels(**row, tolerance=tolerance) for row in table["figure"])


def label_verdicts(result: Result) -> Iterator[Verdict]:
    """Yield top1_label and top1_probability against each figure published of this model and these weights.

    A winner is right when it is the published one, or a label that was published within the tolerance of it. Probabilities
    are those of the published winners. Not for bf16, whose rounding moves probabilities further than the tolerance.
    """
    if LABELS in result.matrices and result.model.precision != "bf16":
        for figure in published_labels():
            if (figure.model, figure.weights) == (result.model.reference_name, weights_of(result.model)):
                yield from _label_agreement(result, figure)


def _label_agreement(result: Result, figure: PublishedLabels) -> Iterator[Verdict]:
    matrix = result.matrices[LABELS]
    rows, names = dict(zip(matrix.rows, matrix.values, strict=True)), list(matrix.columns)
    compared = [item for item in figure.labels if item in rows and item not in figure.differing]
    wrong, far, largest = [], [], 0.0
    for item in compared:
        published = figure.labels[item]
        winner, probability = max(published.items(), key=lambda pair: pair[1])
        allowed = figure.allowed(probability)
        as_good = {label for label, p in published.items() if p >= probability - allowed}
        picked = names[int(rows[item].argmax())]
        if picked not in as_good:
            wrong.append(f"{item} is {picked}, published {winner}")
        found = float(rows[item][names.index(winner)])
        largest = max(largest, abs(found - probability))
        if abs(found - probability) > allowed:
            far.append(f"{item} {winner} {found:.3f}, published {probability:.3f} +-{allowed:.3f}")
    n = len(compared)
    left_out = f"; {', '.join(figure.differing)} left out (another picture)" if figure.differing else ""
    winners = f"{n - len(wrong)} of {n} published winners win{left_out}"
    within = f"{n - len(far)} of {n} winners' probabilities within tolerance, largest difference {largest:.4f}"
    for metric, expected, missed, reason in (
        ("top1_label", f"{n} winners", wrong, winners),
        ("top1_probability", f"{n} probabilities", far, within),
    ):
        outcome: Outcome = "inconclusive" if n == 0 else "fail" if missed else "pass"
        reason = "; ".join([reason, *missed])
        yield Verdict(result.key, metric, "published", outcome, reason, figure.source, expected)


@dataclass(frozen=True)
class Contract:
    """One row of fixtures/contracts.toml: `metrics` of `experiment` are better than `chance`.

    With `against`: `against` minus `experiment` (and what it is pooled with) > `margin`.
    """

    experiment: str
    metrics: Sequence[str]
    models: Sequence[str]
    weights: str
    chance: float
    source: str
    pooled_with: Sequence[str] = ()
    against: str = ""
    margin: float = 0.0
    alert_below: float = 0.0
    exempt: str = ""


@dataclass(frozen=True)
class Hits:
    """Right outcomes of n."""

    hits: int
    n: int

    def __str__(self) -> str:
        return f"{self.hits} of {self.n}"


@cache
def contracts() -> tuple[Contract, ...]:
    """Return every row of fixtures/contracts.toml."""
    return tuple(Contract(**row) for row in _table("contracts.toml")["contract"])


def contract_verdicts(result: Result, beside: Mapping[str, Result]) -> Iterator[Verdict]:
    """Yield the verdicts of a result's contract, the first row of its experiment that names the model, or every model.

    Nothing for random weights, for a model that no row is claimed of, and for one that is exempt. `beside`: the same model's results
    by experiment, where the contract finds what it pools or compares; inconclusive where that was not measured.
    """
    rows = [c for c in contracts() if c.experiment == result.experiment and _names(c, result.model)]
    rows = [c for c in rows if result.model.reference_name in c.models] or rows
    if not rows or rows[0].exempt or result.model.is_random:
        return
    contract = rows[0]
    for metric in contract.metrics:
        if contract.against:
            outcome, reason = _expected_failure(result, beside, contract, metric)
            expected: float | str = f"{contract.against} - medical > {contract.margin}"
        else:
            outcome, reason = _above_chance(result, contract, metric)
            expected = contract.chance
        yield Verdict(result.key, metric, "contract", outcome, reason, f"contract: {contract.source}", expected)


def _above_chance(result: Result, contract: Contract, metric: str) -> tuple[Outcome, str]:
    found = _hits(result, metric)
    if found is None:
        return "inconclusive", f"{metric} was not measured"
    from scipy.stats import binom

    p = float(binom.sf(found.hits - 1, found.n, contract.chance))
    at = f"{metric} is {found.hits / found.n:.4g} at n={found.n}"
    if p <= CHANCE_ALPHA:
        return "pass", f"{at}, better than chance, which is {contract.chance:.4g} (p = {p:.2g})"
    needed = int(binom.isf(CHANCE_ALPHA, found.n, contract.chance)) + 1
    reason = f"{at}, not shown to be better than chance, which is {contract.chance:.4g} (p = {p:.2g}; {needed} of {found.n} would be)"
    asked = "are these weights trained, and for captions in English? A model of one domain leaves it out: --experiments NAMES"
    return "inconclusive", f"{reason}: {asked}"


def _expected_failure(
    result: Result, beside: Mapping[str, Result], contract: Contract, metric: str
) -> tuple[Outcome, str]:
    pooled = [result, *(beside[name] for name in contract.pooled_with if name in beside)]
    parts = {r.dataset.name: found for r in pooled if (found := _hits(r, metric))}
    natural = _hits(beside[contract.against], metric) if contract.against in beside else None
    if natural is None or _hits(result, metric) is None:
        missing = contract.against if natural is None else contract.experiment
        return "inconclusive", f"{metric} of {missing} was not measured for this model"
    medical = Hits(sum(p.hits for p in parts.values()), sum(p.n for p in parts.values()))
    outcome, finding = contract_decision(natural, medical, contract.margin, contract.chance, contract.alert_below)
    low, high = _contract_interval(natural, medical)
    detail = f" ({', '.join(f'{name} {part}' for name, part in parts.items())})" if len(parts) > 1 else ""
    reason = (
        f"{finding}: {contract.against} {natural}, medical {medical}{detail}; {contract.against} minus medical is "
        f"{natural.hits / natural.n - medical.hits / medical.n:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"the margin {contract.margin}, the alert below {contract.alert_below}"
    )
    if outcome == "inconclusive":
        reason += f"; {contract_reach(natural, medical.n, contract.margin, contract.alert_below)}"
    return outcome, reason


def contract_decision(natural: Hits, medical: Hits, margin: float, chance: float, alert: float) -> tuple[Outcome, str]:
    """Return the verdict and its words: does a model do worse on medical images than on natural ones, by more than a margin?

    It alerts in either direction, by the exact 95 % interval of natural minus medical (rates in matrices of eight, all medical
    ones pooled):

    - its lower end is above the margin: pass, "fails as expected";
    - its upper end is below the alert, and natural works (significantly above chance plus the margin: there is something to fail
      against) or medical is significantly above 1 minus the alert: fail, "no longer fails" (fine-tuned, leaked, a changed pipeline);
    - its upper end is below the alert otherwise, or natural is significantly below chance plus the margin: fail, "natural itself
      fails", which must not read as medical images being matched any better;
    - else inconclusive. Between margin and alert lies the zone of indifference, where enough data pass.

    A model whose true difference is the margin passes, and one whose true difference is the alert is alerted on, in at most 2.5 %
    of repetitions. With margin .125 and alert .25:

        natural   medical of 8                  medical of 16 (both sets)
        8 of 8    0-3 pass, 4-8 inconclusive    0-7 pass, 8-15 inconclusive, 16 no longer fails
        7 of 8    0-1 pass, 2-8 inconclusive    0-4 pass, 5-14 inconclusive, 15-16 no longer fails
        6 of 8    0 pass, 1-7 inconclusive,     0-3 pass, 4-13 inconclusive, 14-16 no longer fails
                  8 no longer fails

    The outcomes of one matrix compete for its images, so that hits vary less than the interval supposes (ratio of variances .4 to
    1.02 over simulated matrices): it errs on the wide side.
    """
    low, high = _contract_interval(natural, medical)
    natural_low, natural_high = wilson_interval(natural.hits, natural.n)
    if low > margin:
        return "pass", "fails as expected"
    if high < alert and (natural_low > chance + margin or wilson_interval(medical.hits, medical.n)[0] > 1 - alert):
        return "fail", "no longer fails"
    if high < alert or natural_high < chance + margin:
        return "fail", "natural itself fails, which does not say that medical images are matched any better"
    return "inconclusive", f"inconclusive at n={medical.n}"


@cache
def contract_reach(natural: Hits, n: int, margin: float, alert: float) -> str:
    """Return in words which numbers of hits in n medical outcomes would have decided, natural being what it is."""
    passing = bisect_left(range(n + 1), True, key=lambda hits: _contract_interval(natural, Hits(hits, n))[0] <= margin)
    failing = bisect_left(range(n + 1), True, key=lambda hits: _contract_interval(natural, Hits(hits, n))[1] < alert)
    would_pass = f"{passing - 1} or fewer" if passing else "none"
    would_fail = "none" if failing > n else f"{failing} or more" if failing < n else str(failing)
    return f"against {natural}, of n={n} {would_pass} would pass and {would_fail} would fail"


@cache
def _contract_interval(natural: Hits, medical: Hits) -> Interval:
    return accuracy_difference_interval(natural.hits, natural.n, medical.hits, medical.n)


def _hits(result: Result, metric: str) -> Hits | None:
    outcomes = result.scores[metric].outcomes if metric in result.scores else None
    return None if outcomes is None else Hits(int(outcomes.values.sum()), len(outcomes.values))


def _activation_verdicts(result: Result) -> Iterator[Verdict]:
    """Is the matrix clearly better with the activation the model was not loaded with?

    Clearly: the items' contrasts (own cosine minus the mean of the wrong cells in its row and column) are larger, by a one-sided
    exact Wilcoxon signed-rank test with p < .01, and by .005 or more on average. Eight items reach p = 1/256 at best.
    """
    ours = result.model.activation
    other = {"gelu": "quickgelu", "quickgelu": "gelu"}.get(ours, "")
    if MATRIX not in result.matrices or f"{MATRIX}_{other}" not in result.matrices:
        return
    from scipy.stats import wilcoxon

    gain = _contrasts(result.matrices[f"{MATRIX}_{other}"].values) - _contrasts(result.matrices[MATRIX].values)
    p = float(wilcoxon(gain, alternative="greater", method="exact").pvalue) if np.any(gain) else 1.0
    better = p < ACTIVATION_ALPHA and float(gain.mean()) >= ACTIVATION_GAIN
    reason = (
        f"mean contrast changes by {gain.mean():+.4f} with {other} in place of {ours} (p = {p:.3g}, n = {len(gain)})"
    )
    if better:
        reason += f": these weights were most likely trained with {other}; run again with --activation {other}"
    outcome: Outcome = "fail" if better else "pass"
    yield Verdict(
        result.key, "activation", "contract", outcome, reason, "the same matrix with the other activation", ours
    )


def _contrasts(cosines: FloatArray) -> FloatArray:
    """Return (n,): each item's own cosine minus the mean of the wrong cells in its row and column. Smoother than a margin."""
    own = np.diag(cosines)
    wrong = cosines.sum(axis=0) + cosines.sum(axis=1) - 2 * own
    return np.asarray(own - wrong / (2 * (len(cosines) - 1)))


def _table(name: str) -> dict[str, Any]:
    return read_toml(fixtures() / name)
