"""The study's claim, "ViT-B/16 beats RN50 and ViT-L/14", held against a ranking, with the number of items that would settle it.

On ImageNet, with 50,000 images, the published accuracies of the same weights contradict half of it: ViT-L/14 leads by .072.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from clipbench.judge.ranking import ALPHA, Pair, Ranking
from clipbench.judge.references import published_tables, weights_of
from clipbench.result import ModelIdentity
from clipbench.statistics import gate_power

BEST, BEATEN = "ViT-B/16", ("RN50", "ViT-L/14")
"""Source: the study, whose summary ranks its three models by their cosines on eight natural images."""

POWER = 0.9
MOST_ITEMS = 10_000_000


@dataclass(frozen=True)
class Claim:
    """What a ranking says of the study's claim: a verdict in a word or two, and sentences."""

    finding: Literal["supported", "contradicted", "cannot tell", "supported in part"]
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
    finding: Literal["supported", "contradicted", "cannot tell", "supported in part"] = (
        "contradicted" if any(lost) else "supported" if all(won) else "supported in part" if any(won) else "cannot tell"
    )
    sentences = [_sentence(name, pair, models[BEST], ranking.n) for name, pair in pairs.items()]
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
            f"({published[BEST] - published[name]:+.3f}). To show a difference as large takes {_count(least)} items where both "
            f"models err on the same ones, {_count(most)} where they err independently (power {POWER:.0%}, two-sided {ALPHA:.0%})."
        )
    return tuple(sentences)


def _sentence(name: str, pair: Pair, best: ModelIdentity, n: int) -> str:
    sign = 1 if pair.a == best else -1
    low, high = sorted((sign * pair.low, sign * pair.high))
    seen = f"{sign * pair.difference:+.3f} [{low:+.3f}, {high:+.3f}] at n={n}"
    if pair.winner is not None:
        return f"{BEST} {'beats' if pair.winner == best else 'is beaten by'} {name}: {seen}."
    if pair.difference and pair.a_only is not None and pair.b_only is not None:
        beyond = max(0.0, (pair.a_only + pair.b_only) / n - abs(pair.difference))
        return f"{BEST} and {name} tie: {seen}; {_count(items_needed(pair.difference, beyond))} items would show that much."
    return f"{BEST} and {name} tie: {seen}."


def _count(n: int | None) -> str:
    """About how many, in two digits: the inputs are estimates."""
    return f"over {MOST_ITEMS:,}" if n is None else f"about {int(float(f'{n:.1e}')):,}"
