"""The published labels of the natural pictures: the winners and their probabilities, where a figure was published."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from clipbench.judge.references import weights_of
from clipbench.paths import fixtures
from clipbench.result import Result, Verdict


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
    table = tomllib.loads((fixtures() / "published" / "natural_labels.toml").read_text(encoding="utf-8"))
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
            yield from _against(result, figure)


def _against(result: Result, figure: PublishedLabels) -> Iterator[Verdict]:
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
    yield _verdict("top1_label", figure, f"{n} winners", wrong, n, reason)
    reason = f"{n - len(far)} of {n} winners' probabilities within tolerance, largest difference {largest:.4f}"
    yield _verdict(
        "top1_probability", figure, f"{n} probabilities", far, n, reason + "".join(f"; {line}" for line in far)
    )


def _verdict(metric: str, figure: PublishedLabels, expected: str, missed: list[str], n: int, reason: str) -> Verdict:
    word = "inconclusive" if n == 0 else "fail" if missed else "pass"
    return Verdict(metric, figure.source, "published", expected, word, reason)  # type: ignore[arg-type]
