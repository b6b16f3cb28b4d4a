"""Verdicts: a result held against every reference that speaks of it, with the reason in words."""

from collections.abc import Iterator, Mapping

import numpy as np

from clipbench.judge.execution import confirmed_only
from clipbench.judge.labels import label_verdicts
from clipbench.judge.medical import contract_verdicts
from clipbench.judge.published import published_verdicts
from clipbench.judge.references import PublishedMatrix, floors, published_matrices, weights_of
from clipbench.models.zoo import cards
from clipbench.result import FloatArray, Result, Verdict, VerdictWord

ACTIVATION_ALPHA = 0.01
ACTIVATION_GAIN = 0.005
SHOWN_CELLS = 3


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


def _card_verdicts(result: Result) -> Iterator[Verdict]:
    if result.experiment != "model_card" or result.model.name not in cards():
        return
    card, source = cards()[result.model.name]
    for metric, expected in card.items():
        got = result.metrics[metric].value if metric in result.metrics else None
        word = "absent" if got is None else f"{got:,.0f}"
        verdict = "pass" if got == expected else "fail"
        reason = f"{metric} is {word}, the published card says {expected:,}"
        yield Verdict(metric, f"card: {source}", "published", expected, verdict, reason)  # type: ignore[arg-type]


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
                yield Verdict(
                    metric, floor.source, "floor", floor.at_least, "inconclusive", f"{metric} was not measured"
                )
                continue
            found = result.metrics[metric]
            word = "pass" if found.value >= floor.at_least else "fail"
            reason = f"{metric} is {found.value:.4g} at n={found.n}, the floor is {floor.at_least:.4g}{_missed(result, metric)}"
            yield Verdict(metric, floor.source, "floor", floor.at_least, word, reason)  # type: ignore[arg-type]


def _missed(result: Result, metric: str) -> str:
    hits = result.items.outcomes.get(metric, ())
    missed = [i for i, hit in zip(result.items.ids_of(metric), hits, strict=True) if hit == 0]
    return f"; missed: {', '.join(missed[:8])}{', ...' if len(missed) > 8 else ''}" if missed else ""


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
                off.append(
                    (
                        distance,
                        f"({text}, {image}) {measured[place[text], place[image]]:.4f}, published {value:.4f} +-{tolerance}",
                    )
                )
    examples = "; ".join(words for _, words in sorted(off, reverse=True)[:SHOWN_CELLS])
    reason = f"{cells - len(off)} of {cells} published cells within tolerance, largest difference {worst:.4f}"
    reason += f"; worst: {examples}" if off else ""
    word: VerdictWord = "inconclusive" if not cells else "fail" if off else "pass"
    return Verdict("similarity", matrix.source, "published", f"{cells} cells", word, reason)


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
