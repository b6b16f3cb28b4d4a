"""Question 2: is it worse in general? A paired non-inferiority test of each declared metric on a set large enough.

Pass: a drop beyond the tolerance is excluded (its one-sided upper bound is at most the tolerance). Fail: a drop is shown (one-sided,
Holm within a model and experiment) and the one measured exceeds the tolerance. Else inconclusive, with the drop that this n
would have failed. Passing is not corrected for being several: the gate passes only where every metric does, so it passes a
drop beyond the tolerance with chance alpha at most (Berger 1982, Technometrics 24:295, intersection-union test). Outcomes
that are identical pass without a test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from clipbench.judge.consistency import contradiction
from clipbench.judge.finding import Finding, about
from clipbench.judge.intervals import effective_n
from clipbench.judge.matching_results import Aligned, Pair
from clipbench.judge.paired import drop_upper_bound, holm, mcnemar, paired_bootstrap, paired_difference_interval
from clipbench.judge.power import POWER, failed_drop
from clipbench.judge.tolerances import Declared, Rules

SLACK = 1e-9
"""A drop of the tolerance exactly does not exceed it, whatever rounding made of the difference of two means."""


@dataclass(frozen=True)
class Question:
    """One declared metric of one comparable pair, on a set large enough to be asked."""

    pair: Pair
    metric: str
    outcomes: Aligned
    declared: Declared


@dataclass(frozen=True)
class _Measured:
    """`p_worse`: one-sided, for bootstrapped metrics a bound that is exact where Holm asks. `n` and flips are effective ones."""

    drop: float
    upper: float
    p_worse: float
    standard_error: float = 0.0


def questions(pair: Pair, rules: Rules) -> tuple[list[Question], list[Finding]]:
    """Return the questions to ask of a comparable pair, and findings on those that cannot be asked for want of outcomes."""
    asked, unasked = [], []
    for metric, before in pair.base.metrics.items():
        declared = rules.declared(pair.base.experiment, metric)
        after = pair.head.metrics.get(metric)
        if declared is None or after is None or min(before.n, after.n) < declared.minimum_n:
            continue
        outcomes = pair.aligned.get(metric)
        wrong = _why_not(pair, metric, outcomes)
        if wrong or outcomes is None:
            unasked.append(about(pair.base, "in general", "inconclusive", wrong, metric, pair.head, before.n))
        else:
            asked.append(Question(pair, metric, outcomes, declared))
    return asked, unasked


def answers(asked: Sequence[Question], rules: Rules) -> list[Finding]:
    """Return a finding for each question of one model and one experiment: the family that Holm corrects for."""
    changed = {k: q for k, q in enumerate(asked) if not q.outcomes.is_identical}
    measured = {k: _measured(q, rules.alpha, len(asked)) for k, q in changed.items()}
    adjusted = holm({str(k): measured[k].p_worse if k in measured else 1.0 for k in range(len(asked))})
    found = []
    for k, question in enumerate(asked):
        if k in measured:
            found.append(_finding(question, measured[k], adjusted[str(k)], rules.alpha))
        else:
            n = len(question.outcomes.ids)
            reason = f"identical: every outcome is the same at n={n:,}"
            found.append(about(question.pair.base, "identical", "pass", reason, question.metric, question.pair.head, n))
    return [with_pairing(f, q.outcomes) for f, q in zip(found, asked, strict=True)]


def with_pairing(finding: Finding, outcomes: Aligned) -> Finding:
    """Return the finding with the flips of its metric and the 95 % interval of head minus base.

    The interval is left out where outcomes that are not 0/1 did not move at all: a bootstrap of nothing says nothing.
    """
    interval = None
    if outcomes.is_binary and len(outcomes.ids):
        interval = paired_difference_interval(outcomes.base, outcomes.head, clusters=outcomes.clusters)
    elif not outcomes.is_identical and len(outcomes.ids):
        interval = paired_bootstrap(outcomes.base, outcomes.head, clusters=outcomes.clusters)
    return replace(finding, lost=outcomes.lost, gained=outcomes.gained, interval=interval)


def _why_not(pair: Pair, metric: str, outcomes: Aligned | None) -> str:
    before, after = pair.base.metrics[metric], pair.head.metrics[metric]
    if outcomes is None:
        return "no outcomes by item are stored, so nothing can be paired: measure both runs with this version"
    if before.n != after.n or outcomes.missing or outcomes.new:
        return f"not comparable: scored on other items (n {before.n:,} -> {after.n:,}, {len(outcomes.ids):,} in both)"
    return contradiction("base", pair.base, metric) or contradiction("head", pair.head, metric)


def _measured(question: Question, alpha: float, family: int) -> _Measured:
    outcomes = question.outcomes
    drop = float(outcomes.base.mean() - outcomes.head.mean())
    if not outcomes.is_binary:
        return _bootstrapped(outcomes, drop, alpha, family)
    test = mcnemar(outcomes.base, outcomes.head, outcomes.clusters)
    upper = drop_upper_bound(outcomes.base, outcomes.head, alpha, outcomes.clusters)
    return _Measured(drop, upper, test.p_worse)


def _bootstrapped(outcomes: Aligned, drop: float, alpha: float, family: int) -> _Measured:
    """Bounds from the paired bootstrap; the p-value is the smallest alpha / k, k up to `family`, at which a drop is shown."""
    upper, p_worse, error = 1.0, 1.0, 0.0
    for k in range(1, family + 1):
        ends = paired_bootstrap(outcomes.base, outcomes.head, 1 - 2 * alpha / k, outcomes.clusters)
        if ends is None:
            break
        if k == 1:
            upper, error = -ends[0], (ends[1] - ends[0]) / (2 * NormalDist().inv_cdf(1 - alpha))
        if -ends[1] <= 0:
            break
        p_worse = alpha / k
    return _Measured(drop, upper, p_worse, error)


def _detectable(question: Question, seen: _Measured, alpha: float) -> float | None:
    """The drop that this set would have failed nine times in ten, flipping as it did; None where there is none."""
    outcomes, tolerance = question.outcomes, question.declared.tolerance
    if not outcomes.is_binary:
        power = NormalDist().inv_cdf(POWER)
        return max(
            tolerance + power * seen.standard_error, (NormalDist().inv_cdf(1 - alpha) + power) * seen.standard_error
        )
    n = float(len(outcomes.ids))
    if outcomes.clusters is not None:
        n = effective_n(outcomes.head - outcomes.base, outcomes.clusters)
    anyway = 2 * min(outcomes.lost, outcomes.gained) / len(outcomes.ids)
    return failed_drop(max(1, round(n)), anyway, tolerance, alpha)


def _finding(question: Question, seen: _Measured, adjusted: float, alpha: float) -> Finding:
    tolerance, n = question.declared.tolerance, len(question.outcomes.ids)
    shown = adjusted <= alpha
    excluded = f"a drop beyond {tolerance:g} is excluded (below {max(seen.upper, 0.0):.2g} at {100 * (1 - alpha):g} %)"
    # In the least favourable direction first: what is excluded cannot also be exceeded.
    if seen.upper <= tolerance + SLACK:
        word, reason = "pass", f"{excluded}; {_flips(question.outcomes)}"
        reason += f"; a drop of {seen.drop:.2g} is shown, within the tolerance" if shown else ""
    elif shown and seen.drop > tolerance + SLACK:
        word = "fail"
        reason = f"fell by {seen.drop:.3g}, more than the {tolerance:g} allowed (shown, p = {adjusted:.2g}); {_flips(question.outcomes)}"
    else:
        word = "inconclusive"
        detectable = _detectable(question, seen, alpha)
        could = "no drop" if detectable is None else f"a drop of {detectable:.2g}"
        change = f"fell by {seen.drop:.3g}" if seen.drop > 0 else f"rose by {-seen.drop:.3g}"
        reason = (
            f"{change}; a drop beyond the {tolerance:g} allowed is neither shown nor excluded (below {seen.upper:.2g} at "
            f"{100 * (1 - alpha):g} %); {_flips(question.outcomes)}; this n would fail {could} 9 times in 10"
        )
    return about(question.pair.base, "in general", word, reason, question.metric, question.pair.head, n)  # type: ignore[arg-type]


def _flips(outcomes: Aligned) -> str:
    words = ("lost", "gained") if outcomes.is_binary else ("fell", "rose")
    return f"{outcomes.lost:,} {words[0]}, {outcomes.gained:,} {words[1]} of {len(outcomes.ids):,}"
