"""Verdicts of one result against every expected value that speaks of it, with the reason in words.

An expected value has a source: the published card, floors that this project enforces, published matrices, tables and labels, the
contract of expected failure, and the result's own activation. All of it is data in fixtures/; each kind is one section below.
"""

import math
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from clipbench.models.zoo import cards, zoo
from clipbench.paths import fixtures
from clipbench.result import FloatArray, Metric, ModelIdentity, Result, Run, Verdict, VerdictWord
from clipbench.statistics import Interval, accuracy_difference_interval, wilson_interval

ACTIVATION_ALPHA = 0.01
ACTIVATION_GAIN = 0.005
MOST_CELLS = 3
"""Cells of a matrix that a reason lists, the furthest off first."""
PUBLISHED_FILES = ("coco.toml", "zero_shot.toml")
Z = 1.96
"""Two-sided 95 % of a normal distribution."""
UNCONFIRMED = "from the cache alone: the model was not run on these rows; run again without --cache"


def judged(result: Result, beside: Mapping[str, Result] | None = None) -> tuple[Verdict, ...]:
    """Return the verdicts of a result against the published card, the published matrices, the floors and its own activation.

    `beside` are the same model's results by experiment, for what needs two of them: medical images are held against natural
    ones. Random weights are held to their card alone: nothing else is claimed of them. Rows that no model confirmed pass nothing.
    """
    verdicts = list(_card_verdicts(result))
    if not result.model.is_random:
        verdicts += _floor_verdicts(result)
        verdicts += _matrix_verdicts(result)
        verdicts += published_verdicts(result)
        verdicts += label_verdicts(result)
        verdicts += contract_verdicts(result, beside or {})
        verdicts += _activation_verdicts(result)
    return confirmed_only(result, tuple(verdicts))


def weights_of(model: ModelIdentity) -> str:
    """Return the tag whose weights these are: OpenAI's own files are recognised by their SHA-256, however they were given."""
    row = zoo().get(model.name)
    if row and model.file_sha256 == row.openai_checkpoint_sha256:
        return "openai"
    return model.pretrained


def is_unconfirmed(result: Result) -> bool:
    """Return True where rows came from a cache and none of those was made again by the model: it says nothing of the model now."""
    return any(part.get("unconfirmed", 0) for part in _execution_parts(result).values() if isinstance(part, dict))


def confirmed_only(result: Result, verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """Return the verdicts, none of them a pass where the rows are unconfirmed."""
    if not is_unconfirmed(result):
        return verdicts
    return tuple(
        replace(v, verdict="inconclusive", reason=f"{v.reason}; {UNCONFIRMED}") if v.verdict == "pass" else v
        for v in verdicts
    )


def doubtful(run: Run) -> Iterator[str]:
    """Return the results that hold rows of a shortcut which disagreed with the plain call for other rows of the same result.

    Where all rows of a result were made plainly after a disagreement, none of them is in doubt.
    """
    for r in run.results:
        for kind, part in _execution_parts(r).items():
            if part.get("dropped") and (part.get("checked") or part.get("unconfirmed")):
                yield (
                    f"some {kind} of {r.experiment} of {r.model.name} were made by shortcuts "
                    f"({', '.join(r.protocol.get('shortcuts', ()))}), and one disagreed with the plain call for others; "
                    f"run again with --no-optimizations"
                )


def dropped_shortcuts(run: Run) -> Iterator[str]:
    """Return notes: each shortcut that was dropped, what that cost, and the model's other results that took shortcuts.

    Their own sample agreed with the plain call.
    """
    for name in dict.fromkeys(r.model.name for r in run.results):
        results = [r for r in run.results if r.model.name == name]
        dropped = [
            (r, kind, part) for r in results for kind, part in _execution_parts(r).items() if part.get("dropped")
        ]
        for r, kind, part in dropped:
            yield f"shortcut dropped: {r.experiment} of {name}, {part.get('n', 0):,} {kind} made again: {part['dropped']}"
        taken = [r for r in results if r.protocol.get("shortcuts") and all(r is not d for d, _, _ in dropped)]
        if dropped and taken:
            which = ", ".join(f"{r.experiment} ({', '.join(r.protocol['shortcuts'])})" for r in taken)
            yield f"shortcuts of {name} whose own sample agreed with the plain call: {which}"


def _execution_parts(result: Result) -> dict[str, dict[str, Any]]:
    execution = result.protocol.get("execution")
    return execution if isinstance(execution, dict) else {}


def _card_verdicts(result: Result) -> Iterator[Verdict]:
    if result.experiment != "model_card" or result.model.name not in cards():
        return
    card, source = cards()[result.model.name]
    for metric, expected in card.items():
        got = result.metrics[metric].value if metric in result.metrics else None
        word = "absent" if got is None else f"{got:,.0f}"
        verdict: VerdictWord = "pass" if got == expected else "fail"
        reason = f"{metric} is {word}, the published card says {expected:,}"
        yield Verdict(metric, f"card: {source}", "published", expected, verdict, reason)


@dataclass(frozen=True)
class Floor:
    """A claim: `metrics` of `experiment` on `dataset` are at least `at_least` for these models with these weights."""

    experiment: str
    dataset: str
    models: Sequence[str]
    weights: str
    metrics: Sequence[str]
    at_least: float
    source: str


@cache
def floors() -> tuple[Floor, ...]:
    """Return every row of fixtures/floors.toml."""
    return tuple(Floor(**row) for row in _table("floors.toml")["floor"])


def _floor_verdicts(result: Result) -> Iterator[Verdict]:
    key = (result.experiment, result.dataset.name)
    for floor in floors():
        if (
            key != (floor.experiment, floor.dataset)
            or result.model.name not in floor.models
            or weights_of(result.model) != floor.weights
        ):
            continue
        for metric in floor.metrics:
            if metric not in result.metrics:
                reason = f"{metric} was not measured"
                yield Verdict(metric, floor.source, "floor", floor.at_least, "inconclusive", reason)
                continue
            found = result.metrics[metric]
            word: VerdictWord = "pass" if found.value >= floor.at_least else "fail"
            reason = f"{metric} is {found.value:.4g} at n={found.n}, the floor is {floor.at_least:.4g}{_missed(result, metric)}"
            yield Verdict(metric, floor.source, "floor", floor.at_least, word, reason)


def _missed(result: Result, metric: str) -> str:
    hits = result.items.outcomes.get(metric, ())
    missed = [i for i, hit in zip(result.items.ids_of(metric), hits, strict=True) if hit == 0]
    return f"; missed: {', '.join(missed[:8])}{', ...' if len(missed) > 8 else ''}" if missed else ""


@dataclass(frozen=True)
class PublishedMatrix:
    """A published square matrix of cosines (texts, images), both axes in the order of `names`; -1 marks no value."""

    model: str
    weights: str
    source: str
    differing_columns: Sequence[str]
    names: Sequence[str]
    printed: Sequence[Sequence[float]]
    decoded: Sequence[Sequence[float]] = ()

    def cell(self, row: int, column: int) -> tuple[float, float] | None:
        """Return (value, tolerance) of a cell, the finer value first, or None where nothing was published."""
        fine, coarse = tolerances()
        if self.decoded and self.decoded[row][column] >= 0:
            return self.decoded[row][column], fine
        return (self.printed[row][column], coarse) if self.printed[row][column] >= 0 else None


@cache
def published_matrices() -> tuple[PublishedMatrix, ...]:
    """Return every row of fixtures/published/natural_similarity.toml."""
    return tuple(PublishedMatrix(**row) for row in _table("published/natural_similarity.toml")["matrix"])


@cache
def tolerances() -> tuple[float, float]:
    """Return the tolerances on a re-run in cosine: of decoded cells, of printed cells."""
    table = _table("published/natural_similarity.toml")
    return table["tolerance_decoded"], table["tolerance_printed"]


def _matrix_verdicts(result: Result) -> Iterator[Verdict]:
    if result.experiment != "natural" or "similarity" not in result.arrays or result.model.precision == "bf16":
        return
    for matrix in published_matrices():
        if (matrix.model, matrix.weights) == (result.model.name, weights_of(result.model)):
            yield _matrix_verdict(result, matrix)


def _matrix_verdict(result: Result, matrix: PublishedMatrix) -> Verdict:
    place = {item: k for k, item in enumerate(result.items.ids)}
    missing = [name for name in matrix.names if name not in place]
    if missing:
        reason = f"the matrix has cells of {', '.join(missing)}, which were not measured"
        return Verdict("similarity", matrix.source, "published", "every cell", "inconclusive", reason)
    measured, off, cells, worst = result.arrays["similarity"], [], 0, 0.0
    for row, text in enumerate(matrix.names):
        for column, image in enumerate(matrix.names):
            published = matrix.cell(row, column)
            if published is None or image in matrix.differing_columns:
                continue
            cells += 1
            value, tolerance = published
            distance = abs(float(measured[place[text], place[image]]) - value)
            worst = max(worst, distance)
            if distance > tolerance:
                cell = (
                    f"({text}, {image}) {measured[place[text], place[image]]:.4f}, published {value:.4f} +-{tolerance}"
                )
                off.append((distance, cell))
    examples = "; ".join(words for _, words in sorted(off, reverse=True)[:MOST_CELLS])
    reason = f"{cells - len(off)} of {cells} published cells within tolerance, largest difference {worst:.4f}"
    reason += f"; worst: {examples}" if off else ""
    word: VerdictWord = "inconclusive" if not cells else "fail" if off else "pass"
    return Verdict("similarity", matrix.source, "published", f"{cells} cells", word, reason)


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


@dataclass(frozen=True)
class Shown:
    """A published value beside a measured one that it is not held to, and why."""

    metric: str
    published: float
    measured: Metric
    why: str
    source: str


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """Return every table of the published values."""
    return tuple(PublishedTable(**row) for name in PUBLISHED_FILES for row in _table(f"published/{name}")["table"])


def published_verdicts(result: Result) -> Iterator[Verdict]:
    """Yield a floor (kind floor) and a ceiling (kind published) for each published value whose protocol the run follows.

    Where the protocol differs the value is reported beside the measured one (`shown_only`) and not enforced. Floor and ceiling are
    the value -+ 1.96 sqrt(p (1 - p) / n) -+ spread. A value above the ceiling fails: leaked data, changed prompts or another split
    look like that, and no reproduction does.
    """
    for table, published in _tables_about(result):
        if not protocol_differences(table, result):
            for metric, value in published.items():
                if metric in result.metrics:
                    yield from _bounds(result, table, metric, value)


def shown_only(result: Result) -> list[Shown]:
    """Return the published values that the result is not held to because something differs; [] for random weights."""
    found = []
    for table, published in () if result.model.is_random else _tables_about(result):
        why = "; ".join(protocol_differences(table, result))
        measured = [(m, value) for m, value in published.items() if m in result.metrics and why]
        found += [Shown(m, value, result.metrics[m], why, table.source) for m, value in measured]
    return found


def protocol_differences(table: PublishedTable, result: Result) -> list[str]:
    """Return how the run's protocol differs from the published one, in words; [] when the value can be enforced."""
    protocol, n = result.protocol, result.dataset.n
    found = [table.unenforced] if table.unenforced else []
    for key, wanted in table.requires.items():
        got = str(protocol.get(key, "not stated"))
        if wanted not in got if key == "preprocessing" else wanted != got:
            found.append(f"{key} is {got!r}, published with {wanted!r}")
    prompts = protocol.get("prompts", ())
    count = 1 if isinstance(prompts, str) else len(prompts)
    if table.prompt_count and count != table.prompt_count:
        found.append(f"{count} prompt template(s), published with {table.prompt_count}")
    if table.items and not table.least_items <= n <= table.items:
        found.append(f"{n:,} items, published over {table.items:,} (enforced from {table.least_items:,})")
    return found


def sampling_n(result: Result, metric: str) -> float:
    """Return the number of independent outcomes behind a metric, for its sampling error.

    Captions of one image count as one; for a mean over classes it is classes^2 / sum(1 / items of a class), which gives the
    error of that mean when every class has the same rate.
    """
    if metric.startswith("image_retrieval"):
        return float(result.dataset.n)
    if metric == "mean_per_class_recall":
        sizes = [float(row.sum()) for row in result.arrays["confusion"] if row.sum() > 0]
        return len(sizes) ** 2 / sum(1 / size for size in sizes)
    return float(result.metrics[metric].n)


def _tables_about(result: Result) -> Iterator[tuple[PublishedTable, Mapping[str, float]]]:
    """The tables about this experiment (and labelled folder), these weights and this model, with the model's values."""
    name, weights = result.experiment, weights_of(result.model)
    for table in published_tables():
        right_data = table.dataset in ("", result.dataset.name)
        if (table.experiment, table.weights) == (name, weights) and right_data and result.model.name in table.values:
            yield table, table.values[result.model.name]


def _bounds(result: Result, table: PublishedTable, metric: str, value: float) -> Iterator[Verdict]:
    found, n = result.metrics[metric].value, sampling_n(result, metric)
    error = Z * math.sqrt(value * (1 - value) / n)
    floor, ceiling = value - error - table.spread, value + error + table.spread
    because = f"(1.96 x sqrt({value:.4f} x {1 - value:.4f} / {n:,.0f}))"
    sum_of = f"published {value:.4f} {{0}} {error:.4f} {because} {{0}} {table.spread:.4f} ({table.spread_source})"
    at = f"{metric} is {found:.4f} at n={result.metrics[metric].n:,}"
    reason = f"{at}, the floor is {floor:.4f} = {sum_of.format('-')}"
    yield Verdict(metric, table.source, "floor", round(floor, 6), "pass" if found >= floor else "fail", reason)
    reason = f"{at}, published {value:.4f}; at most {ceiling:.4f} = {sum_of.format('+')}"
    if found > ceiling:
        reason = f"suspiciously above: leaked data, changed prompts or another split? {reason}"
    yield Verdict(metric, table.source, "published", round(value, 6), "pass" if found <= ceiling else "fail", reason)


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
    if "probabilities" not in result.arrays or result.model.precision == "bf16":
        return
    for figure in published_labels():
        if (figure.model, figure.weights) == (result.model.name, weights_of(result.model)):
            yield from _label_agreement(result, figure)


def _label_agreement(result: Result, figure: PublishedLabels) -> Iterator[Verdict]:
    rows = dict(zip(result.items.ids, result.arrays["probabilities"], strict=True))
    names = [str(name) for name in result.protocol["classes"]]
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
    reason = f"{n - len(wrong)} of {n} published winners win{left_out}" + "".join(f"; {line}" for line in wrong)
    yield _label_verdict("top1_label", figure, f"{n} winners", wrong, n, reason)
    reason = f"{n - len(far)} of {n} winners' probabilities within tolerance, largest difference {largest:.4f}"
    yield _label_verdict(
        "top1_probability", figure, f"{n} probabilities", far, n, reason + "".join(f"; {line}" for line in far)
    )


def _label_verdict(
    metric: str, figure: PublishedLabels, expected: str, missed: list[str], n: int, reason: str
) -> Verdict:
    word: VerdictWord = "inconclusive" if n == 0 else "fail" if missed else "pass"
    return Verdict(metric, figure.source, "published", expected, word, reason)


@dataclass(frozen=True)
class Contract:
    """One row of fixtures/medical_contract.toml: `against` minus `experiment` (and what it is pooled with) > margin."""

    experiment: str
    pooled_with: Sequence[str]
    against: str
    metric: str
    models: Sequence[str]
    margin: float
    chance: float
    alert_below: float
    source: str
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
    """Return every row of fixtures/medical_contract.toml."""
    return tuple(Contract(**row) for row in _table("medical_contract.toml")["contract"])


def contract_of(result: Result) -> Contract | None:
    """Return the contract that a result is held to: the first row of its experiment that names the model, or every model.

    None for random weights, for an experiment without one, and for a model that is exempt.
    """
    mine = [c for c in contracts() if c.experiment == result.experiment and not result.model.is_random]
    found = next((c for c in mine if result.model.name in c.models), next((c for c in mine if "*" in c.models), None))
    return None if found is None or found.exempt else found


def contract_verdicts(result: Result, beside: Mapping[str, Result]) -> tuple[Verdict, ...]:
    """Return the verdict of a result's contract, none where it has none.

    `beside`: the same model's results by experiment; what the contract pools or compares is looked up there. Inconclusive
    where the natural result, or the metric, was not measured.
    """
    contract = contract_of(result)
    if contract is None:
        return ()
    pooled = [result, *(beside[name] for name in contract.pooled_with if name in beside)]
    parts = {r.dataset.name: found for r in pooled if (found := _hits(r, contract.metric))}
    natural = _hits(beside[contract.against], contract.metric) if contract.against in beside else None
    if natural is None or _hits(result, contract.metric) is None:
        missing = f"{contract.metric} of {contract.against if natural is None else contract.experiment}"
        return (_contract_verdict(contract, "inconclusive", f"cannot tell: {missing} was not measured for this model"),)
    medical = Hits(sum(p.hits for p in parts.values()), sum(p.n for p in parts.values()))
    word, finding = contract_decision(natural, medical, contract.margin, contract.chance, contract.alert_below)
    low, high = _contract_interval(natural, medical)
    detail = f" ({', '.join(f'{name} {part}' for name, part in parts.items())})" if len(parts) > 1 else ""
    reason = (
        f"{finding}: {contract.against} {natural}, medical {medical}{detail}; {contract.against} minus medical is "
        f"{natural.hits / natural.n - medical.hits / medical.n:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"the margin {contract.margin}, the alert below {contract.alert_below}"
    )
    if word == "inconclusive":
        reason += f"; {contract_reach(natural, medical.n, contract.margin, contract.alert_below)}"
    return (_contract_verdict(contract, word, reason),)


def contract_decision(
    natural: Hits, medical: Hits, margin: float, chance: float, alert_below: float | None = None
) -> tuple[VerdictWord, str]:
    """Return the verdict and its words: does a model do worse on medical images than on natural ones, by more than a margin?

    It alerts in either direction: when medical images are matched nearly as well as natural ones (fine-tuned, leaked, or a
    changed pipeline), and when natural ones no longer are. Rates are of `text_to_image_top1` in matrices of eight; all medical
    matrices of a contract are pooled. The verdict comes from the exact 95 % interval of natural minus medical:

    - its lower end is above the margin: pass, "fails as expected";
    - its upper end is below the alert, and natural works (significantly above chance plus the margin, so that there is something to
      fail against) or medical is significantly above 1 minus the alert: fail, "no longer fails";
    - its upper end is below the alert but natural is not shown to work, or natural is significantly below chance plus the margin:
      fail, "natural itself fails", which must not read as medical images being matched any better;
    - else inconclusive, "cannot tell at n=...", with what could have been told.

    A model whose true difference is the margin or less passes in at most 2.5 % of repetitions, one whose true difference is the
    alert or more is alerted on in at most 2.5 %; between margin and alert is the zone of indifference, where enough data pass.
    With margin .125 and alert .25:

        natural   medical of 8                  medical of 16 (both sets)
        8 of 8    0-3 pass, 4-8 cannot tell     0-7 pass, 8-15 cannot tell, 16 no longer fails
        7 of 8    0-1 pass, 2-8 cannot tell     0-4 pass, 5-14 cannot tell, 15-16 no longer fails
        6 of 8    0 pass, 1-7 cannot tell,      0-3 pass, 4-13 cannot tell, 14-16 no longer fails
                  8 no longer fails
    Outcomes of one matrix share its images, so they are not quite independent; they compete for them, which makes the number of
    hits vary less than the independent outcomes that the interval supposes (ratio of variances .4 to 1.02 over simulated
    matrices with and without images that attract every text), so the interval errs on the wide side.

    `alert_below` is the margin where none is given.
    """
    alert = margin if alert_below is None else alert_below
    low, high = _contract_interval(natural, medical)
    natural_low, natural_high = wilson_interval(natural.hits, natural.n)
    if low > margin:
        return "pass", "fails as expected"
    if high < alert and (natural_low > chance + margin or wilson_interval(medical.hits, medical.n)[0] > 1 - alert):
        return "fail", "no longer fails"
    if high < alert or natural_high < chance + margin:
        return "fail", "natural itself fails, which does not say that medical images are matched any better"
    return "inconclusive", f"cannot tell at n={medical.n}"


@cache
def contract_reach(natural: Hits, n: int, margin: float, alert_below: float | None = None) -> str:
    """Return in words which numbers of hits in n medical outcomes would have decided, natural being what it is."""
    alert = margin if alert_below is None else alert_below
    passing = bisect_left(range(n + 1), True, key=lambda hits: _contract_interval(natural, Hits(hits, n))[0] <= margin)
    failing = bisect_left(range(n + 1), True, key=lambda hits: _contract_interval(natural, Hits(hits, n))[1] < alert)
    would_pass = f"{passing - 1} or fewer" if passing else "none"
    would_fail = "none" if failing > n else f"{failing} or more" if failing < n else str(failing)
    return f"against {natural}, of n={n} {would_pass} would pass and {would_fail} would fail"


@cache
def _contract_interval(natural: Hits, medical: Hits) -> Interval:
    return accuracy_difference_interval(natural.hits, natural.n, medical.hits, medical.n)


def _hits(result: Result, metric: str) -> Hits | None:
    outcomes = result.items.outcomes.get(metric)
    return Hits(int(sum(outcomes)), len(outcomes)) if outcomes else None


def _contract_verdict(contract: Contract, word: VerdictWord, reason: str) -> Verdict:
    expected = f"{contract.against} - medical > {contract.margin}"
    return Verdict(contract.metric, f"contract of expected failure: {contract.source}", "floor", expected, word, reason)


def _activation_verdicts(result: Result) -> Iterator[Verdict]:
    """Is the matrix clearly better with the activation the model was not loaded with?

    Clearly: the items' contrasts (own cosine minus the mean of the wrong cells in its row and column) are larger, by a one-sided
    exact Wilcoxon signed-rank test with p < .01, and by .005 or more on average. Eight items reach p = 1/256 at best.
    """
    if "similarity_other_activation" not in result.arrays:
        return
    from scipy.stats import wilcoxon

    gain = _contrasts(result.arrays["similarity_other_activation"]) - _contrasts(result.arrays["similarity"])
    p = float(wilcoxon(gain, alternative="greater", method="exact").pvalue) if np.any(gain) else 1.0
    better = p < ACTIVATION_ALPHA and float(gain.mean()) >= ACTIVATION_GAIN
    ours, other = result.model.activation, str(result.protocol["other_activation"])
    reason = (
        f"mean contrast changes by {gain.mean():+.4f} with {other} in place of {ours} (p = {p:.3g}, n = {len(gain)})"
    )
    if better:
        reason += f": these weights were most likely trained with {other}; run again with --activation {other}"
    yield Verdict(
        "activation", "the same matrix with the other activation", "floor", ours, "fail" if better else "pass", reason
    )


def _contrasts(cosines: FloatArray) -> FloatArray:
    """Return (n,): each item's own cosine minus the mean of the wrong cells in its row and column. Smoother than a margin."""
    own = np.diag(cosines)
    wrong = cosines.sum(axis=0) + cosines.sum(axis=1) - 2 * own
    contrasts: FloatArray = own - wrong / (2 * (len(cosines) - 1))
    return contrasts


@cache
def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((fixtures() / name).read_text(encoding="utf-8"))
