"""The models confronted, in words and tables: the end of a summary of several models. The figure is `ranking_figure`'s."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from clipbench.judge.claim import BEATEN, BEST, imagenet_of, settling_sentences, study_claim
from clipbench.judge.ranking import Pair, Ranking, rankings
from clipbench.report.document import Block, Heading, Paragraph, Picture, Table
from clipbench.report.figures import figure_name
from clipbench.report.summary import model_label, value_text
from clipbench.result import Run

WHY = (
    "Models are ranked by rates of right outcomes (and mean average precision), never by raw cosine: every model has its own "
    "range of cosines, so that a higher one is no better match. Of three models that all match 8 of 8 natural images, the "
    "published mean cosine of a pair is .26 (RN50), .27 (ViT-L/14@336px) and .31 (ViT-B/32). Two models are compared on the "
    "same items under the same prompts: right or wrong by McNemar's exact test, other scores by a randomisation test with a "
    "paired bootstrap interval, all pairs of a table together (Holm, 5 %). What is not shown is a tie; a place is one more than "
    "the number of models shown to be better. Intervals are 95 %, of one score or one pair alone."
)
RANDOM_NOTE = "Models with random weights are ranked too: that is what knowing nothing looks like."
PAIRS_SHOWN = 10
CLAIM = f"The study's claim that {BEST} beats {' and '.join(BEATEN)}"


def by_experiment(run: Run) -> list[tuple[str, list[Ranking]]]:
    """Return (title, rankings) of each experiment that two models or more were measured on; [] for one model."""

    def title(ranking: Ranking) -> str:
        name = ranking.experiment
        return name if name.rpartition(":")[2] == ranking.dataset else f"{name} on {ranking.dataset}"

    return [(key, list(group)) for key, group in groupby(rankings(run), key=title)]


def ranking_file(title: str) -> str:
    """Return the file name of an experiment's ranking figure."""
    return figure_name("ranking", title)


def ranking_blocks(run: Run) -> list[Block]:
    """Return the section, [] for a run of one model. Its figures are expected in figures/ under `ranking_file`."""
    experiments = by_experiment(run)
    if not experiments:
        return []
    blocks: list[Block] = [Heading("The models confronted"), Paragraph(WHY)]
    if any(s.model.is_random for _, found in experiments for r in found for s in r.standings):
        blocks.append(Paragraph(RANDOM_NOTE))
    for title, found in experiments:
        blocks += [Heading(title, 3), _standings(found), *_pairs(found), *_claims(found)]
        blocks.append(Picture(f"figures/{ranking_file(title)}", f"ranking of the models by {title}"))
    if any(study_claim(r) for _, found in experiments for r in found):
        blocks += [Heading("What would settle the study's claim", 3), Paragraph(" ".join(settling_sentences()))]
    return blocks


def ranking_lines(run: Run) -> Iterator[str]:
    """Return the section for a terminal: a line a ranking, the claim's finding under it."""
    experiments = by_experiment(run)
    if not experiments:
        return
    yield "the models confronted: score (wins-ties-losses); by rates, never by raw cosine, which is no scale that models share"
    claimed = False
    for title, found in experiments:
        for ranking in found:
            scores = ", ".join(
                f"{model_label(s.model)} {s.score.value:.3f} ({s.wins}-{s.ties}-{s.losses})" for s in ranking.standings
            )
            tie = ": all tie" if all(p.winner is None for p in ranking.pairs) else ""
            yield f"  {title}, {ranking.metric}, n={ranking.n}{tie}: {scores}"
            for model, reason in ranking.not_comparable:
                yield f"    not comparable: {model_label(model)}, {reason}"
            if claim := study_claim(ranking):
                claimed = True
                yield f"    {CLAIM}: {claim.finding}"
    if claimed:
        yield from (f"  {sentence}" for sentence in settling_sentences())


def _standings(found: Sequence[Ranking]) -> Table:
    rows = []
    for ranking in found:
        for s in ranking.standings:
            known = imagenet_of(s.model)
            score = value_text(ranking.metric, s.score)
            counts = (str(s.wins), str(s.ties), str(s.losses))
            beside = "-" if known is None else f"{known:.3f}"
            rows.append((ranking.metric, str(s.place), model_label(s.model), score, str(ranking.n), *counts, beside))
    header = ("metric", "place", "model", "score", "n", "wins", "ties", "losses", "published ImageNet accuracy")
    return Table(header, rows)


def _pairs(found: Sequence[Ranking]) -> Iterator[Block]:
    pairs = [(r.metric, p) for r in found for p in r.pairs]
    told = pairs if len(pairs) <= PAIRS_SHOWN else [(metric, p) for metric, p in pairs if p.winner is not None]
    if told:
        header = (
            "metric",
            "pair",
            "difference",
            "right in the first alone",
            "in the second alone",
            "p (Holm)",
            "the data say",
        )
        yield Table(header, [(metric, *_pair_cells(p)) for metric, p in told])
    if len(told) < len(pairs):
        yield Paragraph(f"{len(pairs) - len(told)} of {len(pairs)} pairs are ties{' and not listed' if told else ''}.")
    for ranking in found:
        for model, reason in ranking.not_comparable:
            yield Paragraph(f"Not comparable by {ranking.metric}: {model_label(model)}, {reason}.")


def _pair_cells(pair: Pair) -> tuple[str, ...]:
    said = "tie" if pair.winner is None else f"{model_label(pair.winner)} is better"
    alone = tuple("-" if count is None else str(count) for count in (pair.a_only, pair.b_only))
    difference = f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
    return f"{model_label(pair.a)} - {model_label(pair.b)}", difference, *alone, f"{pair.p:.3g}", said


def _claims(found: Sequence[Ranking]) -> Iterator[Block]:
    for ranking in found:
        if claim := study_claim(ranking):
            yield Paragraph(f"{CLAIM}, by {ranking.metric}: {claim.finding}. {' '.join(claim.sentences)}")
