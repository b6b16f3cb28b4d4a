"""The models confronted, in words, tables and a figure: the end of a summary of several models."""

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any

from clipbench.judge.ranking import Pair, Ranking, imagenet_of, rankings
from clipbench.paths import file_name
from clipbench.report.document import Bar, Block, Grid, GridCell, Heading, Paragraph, Picture, Shown, Table, value_text
from clipbench.report.figures import literal, new_figure, to_png
from clipbench.types import Run

WHY = (
    "Models are ranked by rates of right outcomes (and mean average precision), never by raw cosine: every model has its own "
    "range of cosines, so that a higher one is no better match. Of three models that all match 8 of 8 natural images, the "
    "published mean cosine of a pair is .26 (RN50), .27 (ViT-L/14@336px) and .31 (ViT-B/32). Two models are compared on the "
    "same items under the same prompts: right or wrong by McNemar's exact test, other scores by a randomisation test with a "
    "paired bootstrap interval, all pairs of a table together (Holm, 5 %). What is not shown is a tie; a place is one more than "
    "the number of models shown to be better. Intervals are 95 %, of one score or one pair alone."
)
RANDOM_NOTE = "Models with random weights are ranked too: that is what knowing nothing looks like."
MOST_PAIRS = 10
BETTER, WORSE, TIE = "#2b6cb0", "#b45309", "#e8eaed"
"""Blue and orange: people who cannot distinguish red from green can distinguish these."""

Ranked = Sequence[tuple[str, Sequence[Ranking]]]
"""(Title, rankings) of each experiment. It takes seconds of tests to make: once per session, by `rankings_by_experiment`."""


def rankings_by_experiment(run: Run) -> Ranked:
    """Return (title, rankings) of each experiment that two models or more were measured on; [] for one model."""

    def title(ranking: Ranking) -> str:
        return (
            ranking.experiment
            if ranking.experiment == ranking.dataset
            else f"{ranking.experiment} on {ranking.dataset}"
        )

    return [(key, list(group)) for key, group in groupby(rankings(run), key=title)]


def ranking_file(title: str) -> str:
    """Return the file name of an experiment's ranking figure."""
    return file_name(("ranking", title), ".png")


def ranking_blocks(ranked: Ranked, pictured: Collection[str] = ()) -> list[Block]:
    """Return the section, [] for a run of one model. `pictured`: the titles whose figure is in figures/, under `ranking_file`."""
    if not ranked:
        return []
    blocks: list[Block] = [Heading("The models confronted"), Paragraph(WHY)]
    if any(s.model.is_random for _, found in ranked for r in found for s in r.standings):
        blocks.append(Paragraph(RANDOM_NOTE))
    for title, found in ranked:
        blocks += [Heading(title, 3), _standings(found), *map(_pair_grid, found), *_pairs(found)]
        if title in pictured:
            blocks.append(Picture(f"figures/{ranking_file(title)}", f"ranking of the models by {title}"))
    return blocks


def ranking_lines(ranked: Ranked) -> Iterator[str]:
    """Return the section for a terminal: one line per ranking."""
    if not ranked:
        return
    yield "the models confronted: score (wins-ties-losses); by rates, never by raw cosine, which is no scale that models share"
    for title, found in ranked:
        for ranking in found:
            scores = ", ".join(
                f"{s.model.label} {s.score.value:.3f} ({s.wins}-{s.ties}-{s.losses})" for s in ranking.standings
            )
            tie = ": all tie" if all(p.winner is None for p in ranking.pairs) else ""
            yield f"  {title}, {ranking.metric}, n={ranking.n}{tie}: {scores}"
            for model, reason in ranking.not_comparable:
                yield f"    not comparable: {model.label}, {reason}"


def ranking_figure(title: str, found: Sequence[Ranking]) -> bytes:
    """Return a PNG: one row per metric, on its left the scores with 95 % intervals, on its right a cell for each pair.

    A cell says by how much the row's model is above the column's: blue where that is shown, orange where the opposite is,
    grey for a tie.
    """
    most = max(len(r.standings) for r in found)
    figure = new_figure(7.5 + 0.95 * most, 0.7 + len(found) * (1.7 + 0.5 * most))
    panels = figure.subplots(len(found), 2, squeeze=False, width_ratios=(5, 1.5 + 0.95 * most))
    for (left, right), ranking in zip(panels, found, strict=True):
        _scores(left, ranking)
        _cells(right, ranking)
    figure.suptitle(literal(f"{title}: the models confronted"), fontsize=13)
    figure.supxlabel("cells: row minus column; blue: the row is shown better, orange: worse, grey: a tie", fontsize=9)
    return to_png(figure)


def _standings(found: Sequence[Ranking]) -> Table:
    rows = []
    for ranking in found:
        for s in ranking.standings:
            published = imagenet_of(s.model)
            low, high = s.score.interval or (s.score.value, s.score.value)
            score = Shown(value_text(s.score), (), Bar(s.score.value, low, high))
            counts = (str(s.wins), str(s.ties), str(s.losses))
            beside = "-" if published is None else f"{published:.3f}"
            rows.append((ranking.metric, str(s.place), s.model.label, score, str(ranking.n), *counts, beside))
    header = ("metric", "place", "model", "score", "n", "wins", "ties", "losses", "published ImageNet accuracy")
    return Table(header, rows)


def _pair_grid(ranking: Ranking) -> Grid:
    """By how much the model of a row is above that of a column, in a colour where that is shown."""
    models = [s.model for s in ranking.standings]
    pairs: dict[Any, Pair] = {(p.a, p.b): p for p in ranking.pairs}
    cells = []
    for one in models:
        line = []
        for other in models:
            pair = pairs.get((one, other)) or pairs.get((other, one))
            if pair is None:
                line.append(GridCell("", 0, f"{one.label} and {other.label}: not compared"))
                continue
            difference = pair.difference if pair.a == one else -pair.difference
            level = 0 if pair.winner is None else 4 if pair.winner == one else -4
            word = {0: "a tie", 4: "shown better", -4: "shown worse"}[level]
            sign = {0: "=", 4: "▲", -4: "▼"}[level]
            words = f"{one.label} minus {other.label}: {difference + 0.0:+.3f}, {word} (p {pair.p:.3g}, Holm)"
            line.append(GridCell(f"{sign} {difference + 0.0:+.3f}", level, words))
        cells.append(line)
    edges = [Shown(model.label) for model in models]
    title = f"{ranking.metric}, n={ranking.n:,}: row minus column"
    return Grid(title, edges, edges, cells, "▲ the row is shown to be better, ▼ worse, = a tie.", is_difference=True)


def _pairs(found: Sequence[Ranking]) -> Iterator[Block]:
    pairs = [(r.metric, p) for r in found for p in r.pairs]
    listed = pairs if len(pairs) <= MOST_PAIRS else [(metric, p) for metric, p in pairs if p.winner is not None]
    if listed:
        header = (
            "metric",
            "pair",
            "difference",
            "right in the first alone",
            "in the second alone",
            "p (Holm)",
            "the data say",
        )
        yield Table(header, [(metric, *_pair_cells(p)) for metric, p in listed])
    if len(listed) < len(pairs):
        yield Paragraph(
            f"{len(pairs) - len(listed)} of {len(pairs)} pairs are ties{' and not listed' if listed else ''}."
        )
    for ranking in found:
        for model, reason in ranking.not_comparable:
            yield Paragraph(f"Not comparable by {ranking.metric}: {model.label}, {reason}.")


def _pair_cells(pair: Pair) -> tuple[str, ...]:
    conclusion = "tie" if pair.winner is None else f"{pair.winner.label} is better"
    alone = tuple("-" if count is None else str(count) for count in (pair.a_only, pair.b_only))
    difference = f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
    return f"{pair.a.label} - {pair.b.label}", difference, *alone, f"{pair.p:.3g}", conclusion


def _scores(axes: Any, ranking: Ranking) -> None:
    for row, standing in enumerate(ranking.standings):
        score = standing.score
        low, high = score.interval or (score.value, score.value)
        axes.plot([low, high], [row, row], color="#57606a", linewidth=2)
        axes.plot(score.value, row, "o", color="black")
        axes.text(score.value, row - 0.16, f"{score.value:.3f}", ha="center", va="bottom", size=9)
    labels = [literal(f"{s.place}. {s.model.label}") for s in ranking.standings]
    axes.set_yticks(range(len(labels)), labels, fontsize=10)
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="x", color="#d0d7de", linewidth=0.6)
    axes.set_title(literal(f"{ranking.metric}, n={ranking.n}, 95 % intervals"), fontsize=10)


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
    names = [literal(m.label) for m in models]
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=20, ha="right")
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, len(models) - 0.5)
    axes.set_ylim(len(models) - 0.5, -0.6)
    axes.set_title("shown better, or a tie", fontsize=10)
    axes.spines[:].set_visible(False)
