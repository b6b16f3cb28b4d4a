"""The vocabulary of a comparison: findings, changed items, differences, and the verdict that they add up to.

A finding is one statement about one metric, or about one result where `metric` is "". Its `verdict` is pass, fail or
inconclusive; "note" decides nothing and is said all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clipbench.judge.probe_compare import ProbeFinding
from clipbench.judge.reindex import Reindex
from clipbench.result import Result, VerdictWord

Kind = Literal[
    "identical",
    "same items",
    "in general",
    "must pass",
    "collapse",
    "reference",
    "speed",
    "coverage",
    "not comparable",
    "gain",
    "churn",
    "new",
    "shown",
    "index",
]
Word = Literal["pass", "fail", "inconclusive", "note"]

ORDER: dict[str, int] = {"fail": 0, "inconclusive": 1, "note": 2, "pass": 3}
EXIT_CODES: dict[VerdictWord, int] = {"pass": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Finding:
    """One statement. `base` and `head` are the metric's values, `lost` and `gained` count items; None where there are none.

    `interval`: the two-sided 95 % interval of head minus base, from the outcomes paired by item.
    """

    kind: Kind
    verdict: Word
    experiment: str
    model: str
    dataset: str
    reason: str
    metric: str = ""
    base: float | None = None
    head: float | None = None
    n: int = 0
    lost: int | None = None
    gained: int | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ItemChange:
    """One item whose outcome changed. `top_before` and `top_after` are its five best candidates with their cosines.

    Margins are the item's own cosine minus the best wrong one in the metric's direction. Margins and tops are empty where
    no matrix is stored.
    """

    experiment: str
    model: str
    dataset: str
    metric: str
    item: str
    direction: Literal["lost", "gained"]
    before: float
    after: float
    margin_before: float | None = None
    margin_after: float | None = None
    top_before: tuple[tuple[str, float], ...] = ()
    top_after: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Difference:
    """Something beside the outcomes that the two runs do not share, or are known to share: (what, in base, in head)."""

    what: str
    base: str
    head: str

    @property
    def is_change(self) -> bool:
        """False for a line that says that something stayed the same."""
        return self.base != self.head


@dataclass(frozen=True)
class Comparison:
    """Everything `compare` has to say, most pressing findings first; `index` answers `--index`, where that was asked.

    `stages` says of each model which stage of the probe moved: it explains the verdict and has no part in it.
    """

    findings: tuple[Finding, ...]
    items: tuple[ItemChange, ...] = ()
    differences: tuple[Difference, ...] = ()
    alpha: float = 0.05
    index: tuple[Reindex, ...] = ()
    stages: tuple[ProbeFinding, ...] = ()

    @property
    def verdict(self) -> VerdictWord:
        """fail if any finding fails, else inconclusive if any is, or if nothing was judged at all; else pass."""
        words = {f.verdict for f in self.findings}
        if "fail" in words:
            return "fail"
        return "pass" if "pass" in words and "inconclusive" not in words else "inconclusive"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 undecided."""
        return EXIT_CODES[self.verdict]

    def count(self, word: Word) -> int:
        """Return how many findings have this verdict."""
        return sum(f.verdict == word for f in self.findings)

    def of(self, word: Word) -> list[Finding]:
        """Return the findings with this verdict."""
        return [f for f in self.findings if f.verdict == word]


def pressing_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings, failures first, then what is undecided, notes and passes; otherwise in their order."""
    return tuple(sorted(findings, key=lambda f: ORDER[f.verdict]))


def about(
    result: Result, kind: Kind, verdict: Word, reason: str, metric: str = "", head: Result | None = None, n: int = 0
) -> Finding:
    """Return a finding on a result of the base; with `head` and `metric` it carries both values."""
    values = [r.metrics[metric].value if r is not None and metric in r.metrics else None for r in (result, head)]
    return Finding(
        kind,
        verdict,
        result.experiment,
        result.model.name,
        result.dataset.name,
        reason,
        metric,
        values[0],
        values[1],
        n,
    )
