"""The figure of a ranking: scores with their intervals, and who is shown to be better than whom."""

import io
from collections.abc import Sequence
from typing import Any

from clipbench.judge.ranking import Pair, Ranking
from clipbench.report.figures import plain_text
from clipbench.report.summary import model_label

BETTER, WORSE, TIE = "#2b6cb0", "#b45309", "#e8eaed"
"""Blue and orange: told apart by people who do not tell red from green."""


def ranking_figure(title: str, found: Sequence[Ranking]) -> bytes:
    """Return a PNG: a row a metric, on its left the scores with 95 % intervals, on its right a cell for each pair.

    A cell says by how much the row's model is above the column's: blue where that is shown, orange where the opposite is,
    grey for a tie.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    most = max(len(r.standings) for r in found)
    figure = Figure(figsize=(7.5 + 0.95 * most, 0.7 + len(found) * (1.7 + 0.5 * most)), dpi=100, layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False, width_ratios=(5, 1.5 + 0.95 * most))
    for (left, right), ranking in zip(panels, found, strict=True):
        _scores(left, ranking)
        _cells(right, ranking)
    figure.suptitle(plain_text(f"{title}: the models confronted"), fontsize=13)
    figure.supxlabel("cells: row minus column; blue: the row is shown better, orange: worse, grey: a tie", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": ""})
    return stream.getvalue()


def _scores(axes: Any, ranking: Ranking) -> None:
    for row, standing in enumerate(ranking.standings):
        score = standing.score
        low = score.value if score.low is None else score.low
        high = score.value if score.high is None else score.high
        axes.plot([low, high], [row, row], color="#57606a", linewidth=2)
        axes.plot(score.value, row, "o", color="black")
        axes.text(score.value, row - 0.16, f"{score.value:.3f}", ha="center", va="bottom", size=9)
    labels = [plain_text(f"{s.place}. {model_label(s.model)}") for s in ranking.standings]
    axes.set_yticks(range(len(labels)), labels, fontsize=10)
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="x", color="#d0d7de", linewidth=0.6)
    axes.set_title(plain_text(f"{ranking.metric}, n={ranking.n}, 95 % intervals"), fontsize=10)


def _cells(axes: Any, ranking: Ranking) -> None:
    from matplotlib.patches import Rectangle

    models = [s.model for s in ranking.standings]
    pairs: dict[Any, Pair] = {(p.a, p.b): p for p in ranking.pairs}
    for row, one in enumerate(models):
        for column, other in enumerate(models):
            pair = pairs.get((one, other)) or pairs.get((other, one))
            if pair is None:
                continue
            colour = TIE if pair.winner is None else BETTER if pair.winner == one else WORSE
            difference = pair.difference if pair.a == one else -pair.difference
            axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, facecolor=colour))
            text = f"{difference + 0.0:+.3f}" + ("\ntie" if pair.winner is None else "")
            axes.text(
                column, row, text, ha="center", va="center", size=9, color="black" if pair.winner is None else "white"
            )
    names = [plain_text(model_label(m)) for m in models]
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=20, ha="right")
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, len(models) - 0.5)
    axes.set_ylim(len(models) - 0.5, -0.6)
    axes.set_title("shown better, or a tie", fontsize=10)
    for side in ("left", "top", "right", "bottom"):
        axes.spines[side].set_visible(False)
