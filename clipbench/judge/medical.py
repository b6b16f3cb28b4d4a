"""The contract of expected failure: a model does worse on medical images than on natural ones, by more than a margin.

It alerts in either direction: when medical images are matched nearly as well as natural ones (fine-tuned, leaked, or a
changed pipeline), and when natural ones no longer are. Rates are of `text_to_image_top1` in matrices of eight; all medical
matrices of a contract are pooled. The verdict comes from the exact 95 % interval of natural minus medical:

- its lower end is above the margin: pass, "fails as expected";
- its upper end is below the alert, and natural works (shown above chance plus the margin, so that there is something to
  fail against) or medical is shown above 1 minus the alert: fail, "no longer fails";
- its upper end is below the alert but natural is not shown to work, or natural is shown to be below chance plus the
  margin: fail, "natural itself fails", which must not read as medical images being matched any better;
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
"""

import tomllib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from clipbench.paths import fixtures
from clipbench.result import Result, Verdict, VerdictWord
from clipbench.statistics import Interval, accuracy_difference_interval, wilson_interval


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
    table = tomllib.loads((fixtures() / "medical_contract.toml").read_text(encoding="utf-8"))
    return tuple(Contract(**row) for row in table["contract"])


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
        return (_verdict(contract, "inconclusive", f"cannot tell: {missing} was not measured for this model"),)
    medical = Hits(sum(p.hits for p in parts.values()), sum(p.n for p in parts.values()))
    word, finding = decided(natural, medical, contract.margin, contract.chance, contract.alert_below)
    low, high = _interval(natural, medical)
    detail = f" ({', '.join(f'{name} {part}' for name, part in parts.items())})" if len(parts) > 1 else ""
    reason = (
        f"{finding}: {contract.against} {natural}, medical {medical}{detail}; {contract.against} minus medical is "
        f"{natural.hits / natural.n - medical.hits / medical.n:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"the margin {contract.margin}, the alert below {contract.alert_below}"
    )
    if word == "inconclusive":
        reason += f"; {reach(natural, medical.n, contract.margin, contract.alert_below)}"
    return (_verdict(contract, word, reason),)


def decided(
    natural: Hits, medical: Hits, margin: float, chance: float, alert_below: float | None = None
) -> tuple[VerdictWord, str]:
    """Return the verdict and its words, by the rule of this module; `alert_below` is the margin where none is given."""
    alert = margin if alert_below is None else alert_below
    low, high = _interval(natural, medical)
    natural_low, natural_high = wilson_interval(natural.hits, natural.n)
    if low > margin:
        return "pass", "fails as expected"
    if high < alert and (natural_low > chance + margin or wilson_interval(medical.hits, medical.n)[0] > 1 - alert):
        return "fail", "no longer fails"
    if high < alert or natural_high < chance + margin:
        return "fail", "natural itself fails, which does not say that medical images are matched any better"
    return "inconclusive", f"cannot tell at n={medical.n}"


@cache
def reach(natural: Hits, n: int, margin: float, alert_below: float | None = None) -> str:
    """Return in words which numbers of hits in n medical outcomes would have decided, natural being what it is."""
    alert = margin if alert_below is None else alert_below
    passing = bisect_left(range(n + 1), True, key=lambda hits: _interval(natural, Hits(hits, n))[0] <= margin)
    failing = bisect_left(range(n + 1), True, key=lambda hits: _interval(natural, Hits(hits, n))[1] < alert)
    would_pass = f"{passing - 1} or fewer" if passing else "none"
    would_fail = "none" if failing > n else f"{failing} or more" if failing < n else str(failing)
    return f"against {natural}, of n={n} {would_pass} would pass and {would_fail} would fail"


@cache
def _interval(natural: Hits, medical: Hits) -> Interval:
    return accuracy_difference_interval(natural.hits, natural.n, medical.hits, medical.n)


def _hits(result: Result, metric: str) -> Hits | None:
    outcomes = result.items.outcomes.get(metric)
    return Hits(int(sum(outcomes)), len(outcomes)) if outcomes else None


def _verdict(contract: Contract, word: VerdictWord, reason: str) -> Verdict:
    expected = f"{contract.against} - medical > {contract.margin}"
    return Verdict(contract.metric, f"contract of expected failure: {contract.source}", "floor", expected, word, reason)
