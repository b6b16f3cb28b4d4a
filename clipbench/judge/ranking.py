"""The models confronted: which are significantly better than which, on the same items of one experiment.

Ranked are the metrics whose spec says so: rates of right outcomes and mean average precision, which do not depend on a model's
scale. Raw cosines, and margins made of them, are not: each model has its own range of them. Two models are compared only on the
same items under the same protocol. Among all pairs of a ranking, the chance of calling any difference that is none is 5 % at most
(Holm); what is not significant is a tie.

`study_claim` holds the study's claim, "ViT-B/16 beats RN50 and ViT-L/14", against a ranking, with the number of items that would
settle it. On ImageNet, with 50,000 images, the published accuracies of the same weights contradict half of it: ViT-L/14 leads by .072.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal

import numpy as np

from clipbench.judge.references import published_tables, weights_of
from clipbench.statistics import (
    POWER,
    Float64s,
    Interval,
    gate_power,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_difference_interval,
)
from clipbench.types import ModelIdentity, Outcomes, Result, Run, Score, incomparable

ClaimFinding = Literal["supported", "contradicted", "cannot tell", "supported in part"]

ALPHA = 0.05
ALL_SIGNS_UP_TO = 14
SIGNS_DRAWN = 20_000

BEST, BEATEN = "ViT-B/16", ("RN50", "ViT-L/14")
"""Source: the study, whose summary ranks its three models by their cosines on eight natural images."""

MOST_ITEMS = 10_000_000


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

    Results that may not be compared with most (the first ones, where no more agree) are left out and named.
    """
    having = [(r, found) for r in results if (found := _outcomes(r, metric)) is not None and len(found.ids)]
    if len(having) < 2:
        return None
    agreeing = [[other for other in having if not _unlike(one, other)] for one in having]
    most = max(agreeing, key=lambda group: len(group))
    best = 1 if most[0][0].scores[metric].spec.better == "lower" else -1
    kept = sorted(most, key=lambda one: (best * one[0].scores[metric].value, one[0].model.name))
    left = tuple((one[0].model, _unlike(kept[0], one)) for one in having if all(one is not k for k in kept))
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
    adjusted = holm({str(k): found.p for k, found in enumerate(compared)})
    for k, ((a, b), found) in enumerate(zip(couples, compared, strict=True)):
        difference, p = float(np.mean(rows[a] - rows[b])), adjusted[str(k)]
        winner = None if p > ALPHA else a if sign * difference > 0 else b
        yield Pair(a, b, difference, *found.interval, found.a_only, found.b_only, p, winner)


@dataclass(frozen=True)
class _Compared:
    p: float
    interval: Interval
    a_only: int | None = None
    b_only: int | None = None


def _flips(a: Float64s, b: Float64s, clusters: Sequence[str] | None) -> _Compared:
    """Right or wrong: exact McNemar and its interval."""
    test = mcnemar(b, a, clusters)
    return _Compared(test.p_differs, paired_difference_interval(b, a, clusters=clusters), test.gained, test.lost)


def _means(a: Float64s, b: Float64s, clusters: Sequence[str] | None) -> _Compared:
    """Any other score: paired bootstrap for the interval. The p-value is a randomisation test's, since the bootstrap's
    far tails, which many pairs need, call noise a difference on few items (2 % in place of .14 % at n = 12)."""
    return _Compared(sign_flip_p(a - b), paired_bootstrap(b, a, 0.95, clusters) or (-1.0, 1.0))


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


@dataclass(frozen=True)
class Claim:
    """What a ranking says of the study's claim: a verdict in a word or two, and sentences."""

    finding: ClaimFinding
    sentences: tuple[str, ...]


@cache
def published_imagenet() -> Mapping[str, float]:
    """Return the published zero-shot accuracy on ImageNet-1k (fraction) of OpenAI's weights, by model name.

    Source: fixtures/published/zero_shot.toml, the table of imagenet1k.
    """
    tables = (
        t for t in published_tables() if (t.experiment, t.dataset, t.weights) == ("zero_shot", "imagenet1k", "openai")
    )
    return {name: values["acc1"] for table in tables for name, values in table.values.items() if "acc1" in values}


def imagenet_of(model: ModelIdentity) -> float | None:
    """Return the published ImageNet accuracy of a model with OpenAI's weights, else None."""
    return published_imagenet().get(model.name) if weights_of(model) == "openai" else None


def study_claim(ranking: Ranking) -> Claim | None:
    """Return what a ranking says of the claim; None unless it holds the study's three models with OpenAI's weights."""
    models = {s.model.name: s.model for s in ranking.standings if weights_of(s.model) == "openai"}
    if not {BEST, *BEATEN} <= models.keys():
        return None
    pairs = {p: next(q for q in ranking.pairs if {q.a, q.b} == {models[BEST], models[p]}) for p in BEATEN}
    won = [pair.winner == models[BEST] for pair in pairs.values()]
    lost = [pair.winner not in (None, models[BEST]) for pair in pairs.values()]
    finding: ClaimFinding = (
        "contradicted" if any(lost) else "supported" if all(won) else "supported in part" if any(won) else "cannot tell"
    )
    sentences = [_claim_sentence(name, pair, models[BEST], ranking.n) for name, pair in pairs.items()]
    return Claim(finding, tuple(sentences))


@cache
def items_needed(difference: float, discordance: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """Return how many items show a difference of two rates with this power, two-sided; None beyond ten million.

    `discordance`: the share of items that only one model has right beyond the difference itself, half either way. The power
    of an exact test is a saw-tooth in n; the answer is within a tooth.
    Raises: ValueError for a difference of 0 or beyond 1, and as `gate_power`.
    Source: exact power of McNemar's test (`gate_power` without a tolerance), inverted by doubling and bisection.
    """
    if not 0 < abs(difference) <= 1:
        raise ValueError(
            f"difference is {difference}, expected a share between 0 and 1, other than 0: no n shows nothing"
        )
    low, high = 1, 8
    while gate_power(high, abs(difference), discordance, 0.0, alpha / 2) < power:
        low, high = high, high * 2
        if high > MOST_ITEMS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = gate_power(middle, abs(difference), discordance, 0.0, alpha / 2) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def settling_range(best: str, other: str) -> tuple[int | None, int | None]:
    """Return the n that shows a difference as large as published on ImageNet: if the two models err on the same items as far
    as they can, and if they err independently of each other."""
    a, b = published_imagenet()[best], published_imagenet()[other]
    difference = abs(a - b)
    independent = a * (1 - b) + b * (1 - a) - difference
    return items_needed(difference, 0.0), items_needed(difference, independent)


def settling_sentences() -> tuple[str, ...]:
    """Return in words how many items would settle the claim if the true differences are as large as on ImageNet."""
    published = published_imagenet()
    sentences = []
    for name in BEATEN:
        least, most = settling_range(BEST, name)
        sentences.append(
            f"Published ImageNet accuracy is {published[BEST]:.3f} for {BEST} and {published[name]:.3f} for {name} "
            f"({published[BEST] - published[name]:+.3f}). To show a difference as large takes {_about(least)} items where both "
            f"models err on the same ones, {_about(most)} where they err independently (power {POWER:.0%}, two-sided {ALPHA:.0%})."
        )
    return tuple(sentences)


def _claim_sentence(name: str, pair: Pair, best: ModelIdentity, n: int) -> str:
    sign = 1 if pair.a == best else -1
    low, high = sorted((sign * pair.low, sign * pair.high))
    seen = f"{sign * pair.difference:+.3f} [{low:+.3f}, {high:+.3f}] at n={n}"
    if pair.winner is not None:
        return f"{BEST} {'beats' if pair.winner == best else 'is beaten by'} {name}: {seen}."
    if pair.difference and pair.a_only is not None and pair.b_only is not None:
        beyond = max(0.0, (pair.a_only + pair.b_only) / n - abs(pair.difference))
        return f"{BEST} and {name} tie: {seen}; {_about(items_needed(pair.difference, beyond))} items would show that much."
    return f"{BEST} and {name} tie: {seen}."


def _about(n: int | None) -> str:
    """About how many, in two digits: the inputs are estimates."""
    return f"over {MOST_ITEMS:,}" if n is None else f"about {int(float(f'{n:.1e}')):,}"
