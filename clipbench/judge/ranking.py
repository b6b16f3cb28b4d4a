"""The models confronted: which are significantly better than which, on the same items of one experiment.

Ranked are the metrics whose spec says so: rates of right outcomes and mean average precision, which do not depend on a model's
scale. Raw cosines, and margins made of them, are not: each model has its own range of them. Two models are compared only on the
same items under the same protocol. Among all pairs of a ranking, the chance of calling any difference that is none is 5 % at most
(Holm); what is not significant is a tie.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from clipbench.judge.quality import incomparable
from clipbench.judge.references import weights_of
from clipbench.models.zoo import published_imagenet
from clipbench.statistics import Float64s, Interval, bootstrap_interval, holm, mcnemar, paired_difference_interval
from clipbench.types import ModelIdentity, Outcomes, Result, Run, Score

Compared = tuple[float, Interval, int | None, int | None]
"""(p, interval of a minus b, items that a alone has right, items that b alone has right)"""

ALPHA = 0.05
ALL_SIGNS_UP_TO = 14
MOST_RANKED = 64
SIGNS_DRAWN = 20_000


@dataclass(frozen=True)
class Pair:
    """Two models on the same items: `a` has the better score, `difference` is a minus b with its 95 % interval.

    `a_only`, `b_only`: items that only one of the two has right (None for scores that are not right or wrong). `p` is
    adjusted for all pairs of the ranking (Holm). `winner` is None for a tie.
    """

    a: ModelIdentity
    b: ModelIdentity
    difference: float
    low: float
    high: float
    a_only: int | None
    b_only: int | None
    p: float
    winner: ModelIdentity | None


@dataclass(frozen=True)
class Standing:
    """One model's score and how it stands against the others; `place` is one more than the models that are significantly better."""

    model: ModelIdentity
    score: Score
    wins: int
    ties: int
    losses: int

    @property
    def place(self) -> int:
        return self.losses + 1


@dataclass(frozen=True)
class Ranking:
    """One metric of one experiment: standings best first, all pairs, and (model, reason) of what cannot be compared."""

    experiment: str
    dataset: str
    metric: str
    n: int
    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    not_comparable: tuple[tuple[ModelIdentity, str], ...] = ()


def rankings(run: Run) -> tuple[Ranking, ...]:
    """Return a ranking for each experiment and ranked metric that two models or more were measured on; () for one model.

    Metrics of an experiment in the order of its scores.
    """
    together: dict[tuple[str, str], list[Result]] = {}
    for result in run.results:
        together.setdefault((result.experiment, result.dataset.name), []).append(result)
    found = []
    for results in together.values():
        ranked = dict.fromkeys(name for r in results for name, score in r.scores.items() if score.spec.ranked)
        found += [ranking(results, metric) for metric in ranked]
    return tuple(entry for entry in found if entry is not None)


def ranking(results: Sequence[Result], metric: str) -> Ranking | None:
    """Return the ranking of results of one experiment by a metric; None where fewer than two have its outcomes.

    Results that may not be compared with most (the first ones, where no more agree) are left out and named; so are those beyond the
    MOST_RANKED best, since every pair is tested.
    """
    having = [(r, found) for r in results if (found := _outcomes(r, metric)) is not None and len(found.ids)]
    if len(having) < 2:
        return None
    agreeing = [[other for other in having if not _unlike(one, other)] for one in having]
    most = max(agreeing, key=lambda group: len(group))
    best = 1 if most[0][0].scores[metric].spec.better == "lower" else -1
    kept = sorted(most, key=lambda one: (best * one[0].scores[metric].value, one[0].model.name))
    left = tuple((one[0].model, _unlike(kept[0], one)) for one in having if all(one is not k for k in kept))
    left += tuple((result.model, f"not among the {MOST_RANKED} best") for result, _ in kept[MOST_RANKED:])
    kept = kept[:MOST_RANKED]
    pairs = tuple(_pairs({r.model: outcomes for r, outcomes in kept}, -best))
    standings = tuple(_standing(r, metric, pairs) for r, _ in kept)
    first = kept[0][0]
    return Ranking(first.experiment, first.dataset.name, metric, first.scores[metric].n, standings, pairs, left)


def _outcomes(result: Result, metric: str) -> Outcomes | None:
    return result.scores[metric].outcomes if metric in result.scores else None


def _unlike(one: tuple[Result, Outcomes], other: tuple[Result, Outcomes]) -> str:
    """Why two results cannot be compared, in words; "" when they can."""
    if reasons := incomparable(one[0], other[0]):
        return ", ".join(reasons)
    ids, others = set(one[1].ids), set(other[1].ids)
    if one[1].ids == other[1].ids:
        return ""
    return f"{len(others)} outcomes where the others have {len(ids)}, {len(ids & others)} of the same items"


def _standing(result: Result, metric: str, pairs: Sequence[Pair]) -> Standing:
    mine = [p for p in pairs if result.model in (p.a, p.b)]
    wins, ties = sum(p.winner == result.model for p in mine), sum(p.winner is None for p in mine)
    return Standing(result.model, result.scores[metric], wins, ties, len(mine) - wins - ties)


def _pairs(outcomes: Mapping[ModelIdentity, Outcomes], sign: int) -> Iterator[Pair]:
    """Every pair, the better score first; the p-values of all pairs are adjusted together. `sign`: -1 where lower is better."""
    rows = {model: np.asarray(one.values, dtype=np.float64) for model, one in outcomes.items()}
    clusters, couples = next(iter(outcomes.values())).clusters, list(combinations(rows, 2))
    compare = _flips if all(np.isin(row, (0.0, 1.0)).all() for row in rows.values()) else _means
    compared = [compare(rows[a], rows[b], clusters) for a, b in couples]
    adjusted = holm([p for p, *_ in compared])
    for (a, b), (_, interval, a_only, b_only), p in zip(couples, compared, adjusted, strict=True):
        difference = float(np.mean(rows[a] - rows[b]))
        winner = None if p > ALPHA else a if sign * difference > 0 else b
        yield Pair(a, b, difference, *interval, a_only, b_only, p, winner)


def _flips(a: Float64s, b: Float64s, clusters: Sequence[str] | None) -> Compared:
    """Right or wrong: exact McNemar and its interval."""
    test = mcnemar(b, a, clusters)
    return test.p_differs, paired_difference_interval(b, a, clusters=clusters), test.gained, test.lost


def _means(a: Float64s, b: Float64s, clusters: Sequence[str] | None) -> Compared:
    """Any other score: paired bootstrap for the interval. The p-value is a randomisation test's, since the bootstrap's
    far tails, which many pairs need, call noise a difference on few items (2 % in place of .14 % at n = 12)."""
    return sign_flip_p(a - b), bootstrap_interval(a - b, 0.95, clusters) or (-1.0, 1.0), None, None


def sign_flip_p(differences: Float64s) -> float:
    """Return the two-sided p-value of a mean difference: the share of random signs that give a mean as far from 0.

    `differences`: (n,) float64. All signs are tried up to n = 14, else 20,000 drawn with a fixed seed.
    Source: Fisher's randomisation test, as recommended for paired scores by Smucker, Allan & Carterette, CIKM 2007.
    """
    n = len(differences)
    if n <= ALL_SIGNS_UP_TO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        more = 0
    else:
        signs = np.random.default_rng(0).choice(np.array([-1, 1], dtype=np.int8), size=(SIGNS_DRAWN, n))
        more = 1
    sums = np.abs(signs @ differences)
    as_far = int(np.count_nonzero(sums >= abs(differences.sum()) * (1 - 1e-12)))
    return (as_far + more) / (len(signs) + more)


def imagenet_of(model: ModelIdentity) -> float | None:
    """Return the published zero-shot accuracy on ImageNet-1k (fraction) of a model with OpenAI's weights, else None."""
    return published_imagenet().get(model.reference_name) if weights_of(model) == "openai" else None
