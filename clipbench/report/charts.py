"""What the evidence of a result looks like on a page: matrices, confusions, classes, recall over k, slices, examples, speed, history.

Everything is decided by what a result carries, never by its experiment's name. `before` is base's result of the same key, or None.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np

from clipbench.judge.compare import environment_differences
from clipbench.report.document import Bar, Block, Chart, Details, Grid, GridCell, Heading, Line, Paragraph, Shown, Table
from clipbench.report.figures import MOST_ITEMS, class_answers, classes_to_draw
from clipbench.report.story import EXACT, change_text, name_of, plain_value, short_label
from clipbench.report.thumbs import Gallery
from clipbench.storage import Timing
from clipbench.types import Answers, FloatArray, IntArray, Key, Matrix, Result, Run, Score

MOST_CLASSES = 30
EXAMPLES = 8
BINS = 24
SCALE_NOTE = (
    "One scale for each model's own matrix: raw cosines are not compared between models, since each has its own range, and all of them "
    "can match every pair."
)
MARKS_NOTE = (
    "A circle is the best of its row (the image that a text is taken for), a triangle the best of its column (the text that an image is "
    "taken for). Filled and framed: the right pair; hollow and dashed: a miss."
)


def evidence_blocks(result: Result, before: Result | None, gallery: Gallery) -> Iterator[Block]:
    """Yield what there is to look at of one result."""
    for name, matrix in sorted(result.matrices.items()):
        if 0 < len(matrix.rows) <= MOST_ITEMS and matrix.columns and matrix.is_matching and matrix.kind == "cosine":
            old = before.matrices.get(name) if before else None
            yield from _matching_grids(result, matrix, old, gallery)
        elif 0 < len(matrix.rows) <= MOST_ITEMS and matrix.kind == "probability":
            yield _probabilities(result, matrix, gallery)
    answers = class_answers(result)
    if answers is not None and answers.labels is not None and answers.top.shape[1]:
        old_answers = class_answers(before) if before else None
        is_same = old_answers is not None and old_answers.candidates == answers.candidates
        yield from _class_blocks(result, answers, old_answers if is_same else None)
    yield from _recall_charts(result, before)
    yield from _slices(result, before)
    yield from _examples(result, gallery)


# Matrices.


def _levels(values: FloatArray, low: float, high: float) -> IntArray:
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.asarray(np.clip(np.floor(share * 10), 0, 9), dtype=np.int64)


def _matching_grids(result: Result, matrix: Matrix, old: Matrix | None, gallery: Gallery) -> Iterator[Grid]:
    yield matching_grid(result, matrix, gallery)
    if (
        old is not None
        and (old.rows, old.columns) == (matrix.rows, matrix.columns)
        and (old.values != matrix.values).any()
    ):
        title = f"{result.experiment}: what changed of the matrix of {short_label(result.model)}, head minus base"
        yield difference_grid(title, old.values, matrix.values, _edges(result, matrix, gallery))


def matching_grid(result: Result, matrix: Matrix, gallery: Gallery) -> Grid:
    """Return the cosines of texts (rows) and images (columns), with the best of each row and column marked."""
    values = matrix.values
    levels = _levels(values, float(values.min()), float(values.max()))
    best = values.argmax(axis=1), values.argmax(axis=0)
    cells = []
    for r, row in enumerate(matrix.rows):
        line = []
        for c, column in enumerate(matrix.columns):
            marks = (*(["row"] if best[0][r] == c else []), *(["column"] if best[1][c] == r else []))
            words = [f"text of {row} with image {column}: {values[r, c]:.3f}"]
            words += ["the right pair"] if r == c else []
            words += ["best image for this text" + ("" if r == c else ", and wrong")] if "row" in marks else []
            words += ["best text for this image" + ("" if r == c else ", and wrong")] if "column" in marks else []
            line.append(GridCell(f"{values[r, c]:.2f}", int(levels[r, c]), "; ".join(words), marks, r == c))
        cells.append(line)
    hits = [int(np.sum(b == np.arange(len(b)))) for b in best]
    n = len(matrix.rows)
    title = (
        f"{name_of(result.key, '')}: cosines of {short_label(result.model)}; {hits[0]} of {n} texts find their image, {hits[1]} of {n} "
        "images their text"
    )
    rows, columns = _edges(result, matrix, gallery)
    return Grid(title, rows, columns, cells, f"{MARKS_NOTE} {SCALE_NOTE}")


def _edges(result: Result, matrix: Matrix, gallery: Gallery) -> tuple[list[Shown], list[Shown]]:
    rows = [Shown(gallery.caption(result.key, item) or item) for item in matrix.rows]
    return rows, [Shown(item, gallery.thumbs(result.key, item)) for item in matrix.columns]


def difference_grid(
    title: str, old: FloatArray, new: FloatArray, edges: tuple[list[Shown], list[Shown]], note: str = ""
) -> Grid:
    """Return new minus old, blue where it rose and orange where it fell."""
    change = new - old
    most = float(np.abs(change).max()) or 1.0
    levels = np.round(change / most * 5).astype(np.int64)
    cells = [
        [
            GridCell(
                f"{change[r, c]:+.2f}",
                int(levels[r, c]),
                f"{row.text} with {column.text}: {old[r, c]:.3f} to {new[r, c]:.3f}",
            )
            for c, column in enumerate(edges[1])
        ]
        for r, row in enumerate(edges[0])
    ]
    words = f"{note} Blue rose, orange fell; the full colour is a change of {most:.3f}."
    return Grid(title, *edges, cells, words.strip(), is_difference=True)


def model_differences(results: Sequence[Result], gallery: Gallery) -> Iterator[Block]:
    """Yield for each pair of models that matched the same items how their matrices differ once each has its own scale."""
    kept = [(r, m) for r in results for m in r.matrices.values() if m.is_matching and 0 < len(m.rows) <= MOST_ITEMS]
    found: list[Block] = []
    for (one, first), (other, second) in combinations(kept[:4], 2):
        if one.key[::2] != other.key[::2] or first.rows != second.rows or one.model == other.model:
            continue
        scaled = [_by_own_scale(matrix.values) for matrix in (first, second)]
        title = (
            f"{name_of(one.key, '')}: {short_label(other.model)} minus {short_label(one.model)}, each by its own scale"
        )
        note = "Cosines less their mean, by their standard deviation: raw ones are not compared between models."
        found.append(difference_grid(title, scaled[0], scaled[1], _edges(one, first, gallery), note))
    if found:
        yield Details(f"Model against model ({len(found)})", found)


def _by_own_scale(values: FloatArray) -> FloatArray:
    return np.asarray((values - values.mean()) / (values.std() or 1.0))


def _probabilities(result: Result, matrix: Matrix, gallery: Gallery) -> Table:
    """The five most probable labels of each item, as the study's bars."""
    rows = []
    for r, item in enumerate(matrix.rows):
        top = np.argsort(-matrix.values[r], kind="stable")[:5]
        values = [(matrix.columns[c], float(matrix.values[r, c])) for c in top]
        cells = [Shown(f"{name} {value:.3f}", (), Bar(value, 0.0, value)) for name, value in values]
        cells += [Shown("-")] * (5 - len(cells))
        rows.append([Shown(item, gallery.thumbs(result.key, item)), *cells])
    return Table(("item", "most probable", "second", "third", "fourth", "fifth"), rows)


# Classes.


def _class_blocks(result: Result, answers: Answers, before: Answers | None) -> Iterator[Block]:
    confusion = answers.confusion() if len(answers.candidates) <= 5_000 else None
    old = before.confusion() if before is not None and confusion is not None else None
    if confusion is not None:
        yield _confusion_grid(result, answers.candidates, confusion)
        if old is not None and (old != confusion).any():
            yield _confusion_change(result, answers.candidates, old, confusion)
        yield Details(
            f"Recall by class, {name_of(result.key, '')}, lowest first",
            [_recall_by_class(answers.candidates, confusion, old)],
        )


def _cut(confusion: IntArray, classes: Sequence[int]) -> str:
    return f"; {len(classes)} of {len(confusion)} classes, the most confused" if len(classes) < len(confusion) else ""


def _confusion_grid(result: Result, names: Sequence[str], confusion: IntArray) -> Grid:
    classes = classes_to_draw(confusion, MOST_CLASSES, MOST_CLASSES)
    sizes = np.maximum(confusion.sum(axis=1), 1)
    cells = []
    for right in classes:
        line = []
        for picked in classes:
            count, share = int(confusion[right, picked]), confusion[right, picked] / sizes[right]
            words = f"{names[right]} taken for {names[picked]}: {count} of {confusion[right].sum()} ({share:.0%})"
            marks = ("row",) if count and picked == int(confusion[right].argmax()) else ()
            line.append(GridCell(str(count or ""), int(min(9, share * 10)), words, marks, right == picked))
        cells.append(line)
    wrong = confusion - np.diag(np.diag(confusion))
    strongest = [divmod(int(k), len(confusion)) for k in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    named = [f"{names[r]} taken for {names[p]}: {wrong[r, p]}" for r, p in strongest if wrong[r, p]]
    title = (
        f"{name_of(result.key, '')}: what {short_label(result.model)} takes each class for{_cut(confusion, classes)}"
    )
    note = f"Rows are right, columns what was picked; a circle marks the most frequent of a row. Strongest: {'; '.join(named) or 'none'}."
    edges = [Shown(names[c]) for c in classes]
    return Grid(title, edges, edges, cells, note)


def _confusion_change(result: Result, names: Sequence[str], old: IntArray, new: IntArray) -> Grid:
    classes = classes_to_draw(old + new, MOST_CLASSES, MOST_CLASSES)
    change = (new - old)[np.ix_(classes, classes)]
    most = int(np.abs(change).max()) or 1
    cells = [
        [
            GridCell(
                f"{change[r, c]:+d}" if change[r, c] else "",
                round(5 * int(change[r, c]) / most),
                f"{names[right]} taken for {names[picked]}: {old[right, picked]} to {new[right, picked]}",
            )
            for c, picked in enumerate(classes)
        ]
        for r, right in enumerate(classes)
    ]
    edges = [Shown(names[c]) for c in classes]
    title = f"{name_of(result.key, '')}: what changed, head minus base, in items{_cut(new, classes)}"
    return Grid(title, edges, edges, cells, "Blue: more often than in base, orange: less often.", is_difference=True)


def _recall_by_class(names: Sequence[str], confusion: IntArray, old: IntArray | None) -> Table:
    sizes = confusion.sum(axis=1)
    recall = np.diag(confusion) / np.maximum(sizes, 1)
    rows = []
    for c in sorted(np.flatnonzero(sizes).tolist(), key=lambda c: (recall[c], names[c])):
        before = None if old is None or not old[c].sum() else float(old[c, c] / old[c].sum())
        bar = Bar(float(recall[c]), 0.0, float(recall[c]), before)
        row: list[str | Shown] = [names[c], f"{sizes[c]:,}"]
        row += [] if old is None else ["-" if before is None else f"{before:.3f}"]
        row.append(Shown(f"{recall[c]:.3f}", (), bar))
        row += [] if old is None else ["-" if before is None else change_text(EXACT, before, float(recall[c]))]
        rows.append(row)
    header = ("class", "items", "recall") if old is None else ("class", "items", "base", "head", "change")
    return Table(header, rows)


# Retrieval.


def _recall_charts(result: Result, before: Result | None) -> Iterator[Block]:
    """A chart of rates on the same queries that differ in a number behind their common name, as recall over k does."""
    groups: dict[str, list[Score]] = {}
    for score in result.scores.values():
        if score.spec.kind == "rate" and score.spec.answers and score.outcomes is not None:
            groups.setdefault(score.spec.answers, []).append(score)
    lines: list[Line] = []
    places: tuple[str, ...] = ()
    for scores in groups.values():
        names = sorted(score.spec.name for score in scores)
        common = names[0][: next((k for k, (a, b) in enumerate(zip(names[0], names[-1])) if a != b), len(names[0]))]
        rest = tuple(score.spec.name.removeprefix(common) for score in scores)
        if len(scores) < 3 or not all(word.isdecimal() for word in rest) or (places and places != rest):
            continue
        places = rest
        sides = [("head" if before else "", result)] + ([("base", before)] if before else [])
        for side, of in sides:
            own = [of.scores.get(score.spec.name) for score in scores]
            name = f"{common.rstrip('@_')}{f', {side}' if side else ''}"
            lines.append(Line(name, [s.value if s else None for s in own], [s.interval if s else None for s in own]))
    if lines:
        title = f"{name_of(result.key, '')}: recall over k, {short_label(result.model)}, with 95 % intervals"
        yield Chart(title, [f"k = {place}" for place in places], lines)


def _slices(result: Result, before: Result | None) -> Iterator[Block]:
    """The rate of each slice that the items name, of the headline metrics."""
    for name, answers in sorted(result.answers.items()):
        if answers.groups is None or len(set(answers.groups)) < 2:
            continue
        groups = np.asarray(answers.groups)
        for metric, score in result.scores.items():
            if (
                score.spec.answers != name
                or not score.spec.headline
                or score.outcomes is None
                or score.outcomes.ids != answers.ids
            ):
                continue
            old = before.scores.get(metric) if before else None
            paired = old.outcomes if old and old.outcomes and old.outcomes.ids == score.outcomes.ids else None
            rows = []
            for group in dict.fromkeys(answers.groups):
                own = groups == group
                value = float(score.outcomes.values[own].mean())
                was = float(paired.values[own].mean()) if paired else None
                row: list[str | Shown] = [group or "-", f"{int(own.sum()):,}"]
                row += [] if was is None else [plain_value(score.spec, was)]
                row.append(Shown(plain_value(score.spec, value), (), Bar(value, 0.0, value, was)))
                rows.append(row + ([] if was is None else [change_text(score.spec, was, value)]))
            header = ("slice", "items", "base", "head", "change") if paired else ("slice", "items", metric)
            yield Details(f"Slices of {name_of(result.key, metric)}", [Table(header, rows)])


def _examples(result: Result, gallery: Gallery) -> Iterator[Block]:
    """Queries with their first five, those that miss by most first, where the candidates are items."""
    for name, answers in sorted(result.answers.items()):
        if answers.candidates == result.protocol.classes or not len(answers.ids) or answers.top.shape[1] < 2:
            continue
        right = _right(result, answers)
        order = np.argsort(np.where(np.isfinite(answers.margins), answers.margins, 0.0), kind="stable")[:EXAMPLES]
        rows = []
        for q in order.tolist():
            query = answers.ids[q]
            picture = gallery.thumbs(result.key, query) if _is_image(result, name, gallery, query) else ()
            cells: list[str | Shown] = [Shown(gallery.words(result.key, query), picture)]
            for c, value in zip(answers.top[q].tolist(), answers.scores[q].tolist(), strict=True):
                item = answers.candidates[c]
                is_hit = item in right.get(query, ())
                thumbs = () if picture else gallery.thumbs(result.key, item, is_hit)
                words = gallery.words(result.key, item) if picture or not thumbs else item
                cells.append(Shown(f"{'✔ ' if is_hit else ''}{words} {value:.3f}", thumbs))
            rows.append([*cells, f"{answers.margins[q]:+.3f}"])
        header = ("query", *("first", "second", "third", "fourth", "fifth")[: answers.top.shape[1]], "margin")
        title = f"{name.replace('_', ' ')}, {name_of(result.key, '')}: {len(rows)} of {len(answers.ids):,} queries, worst first"
        yield Details(title, [Paragraph("A right one has a tick and a double frame."), Table(header, rows)])


def _is_image(result: Result, name: str, gallery: Gallery, query: str) -> bool:
    """Whether the queries are images: where items share their names with their texts, by the candidates of the other way."""
    texts = result.evidence.get("texts")
    is_shared = texts is not None and query in set(texts.ids)
    return gallery.has_picture(result.key, query) and (not is_shared or name.startswith("image"))


def _right(result: Result, answers: Answers) -> Mapping[str, set[str]]:
    """What is right for each query: by its label, or by that of the other way round."""
    if answers.labels is not None:
        return {q: {answers.candidates[k]} for q, k in zip(answers.ids, answers.labels.tolist(), strict=True)}
    found: dict[str, set[str]] = {}
    for other in result.answers.values():
        if other.labels is not None and other.ids == answers.candidates:
            for text, k in zip(other.ids, other.labels.tolist(), strict=True):
                found.setdefault(other.candidates[k], set()).add(text)
    return found


# Speed.


def speed_blocks(run: Run, before: Mapping[Key, Result], timings: Sequence[Timing]) -> Iterator[Block]:
    """Yield speed and memory of each model, and how the timed calls are distributed."""
    timed = [result for result in run.results if result.is_timed]
    if not timed:
        return
    yield Heading("Speed")
    rows = []
    for result in timed:
        old = before.get(result.key)
        for name, score in result.scores.items():
            was = old.scores.get(name) if old else None
            row = [short_label(result.model), name.replace("_", " ")]
            if before:
                row += [plain_value(was.spec, was.value) if was else "-"]
            row += [plain_value(score.spec, score.value), f"{score.n:,}"]
            row += ["-" if score.spread is None else f"{score.spread:.0%}"]
            rows.append(row + ([change_text(score.spec, was.value, score.value) if was else "-"] if before else []))
    sides = ("base", "head") if before else ("value",)
    yield Table(("model", "what", *sides, "repeats", "spread", *(["change"] if before else [])), rows)
    yield Paragraph(
        "Two runs of one machine differ by more than 10 %: only `clipbench ab` can tell a change of speed from noise."
    )
    quantiles = [s for r in timed for s in r.scores.values() if s.spec.kind == "seconds"]
    if quantiles:
        names = list(dict.fromkeys(s.spec.name for s in quantiles))
        lines = []
        for result in timed:
            for side, of in (("", result), *((((", base"), old),) if (old := before.get(result.key)) else ())):
                values = [of.scores[n].value * 1e3 if n in of.scores else None for n in names]
                lines.append(Line(f"{short_label(result.model)}{side}", values))
        yield Chart("Latency of single calls, milliseconds", [n.replace("_", " ") for n in names], lines)
    for timing in timings:
        if len(timing.seconds) >= 5:
            yield _histogram(timing)


def _histogram(timing: Timing) -> Chart:
    milliseconds = np.asarray(timing.seconds) * 1e3
    counts, ends = np.histogram(milliseconds, bins=min(BINS, max(5, len(milliseconds) // 2)))
    places = [f"{(low + high) / 2:.4g}" for low, high in pairwise(ends.tolist())]
    title = f"{timing.test}: {len(milliseconds)} calls by milliseconds, median {np.median(milliseconds):.4g}"
    return Chart(title, places, [Line("calls", counts.tolist())], is_bars=True)


# Several runs.


def history_blocks(runs: Sequence[Run]) -> Iterator[Block]:
    """Yield each headline metric over the runs, oldest first, with its intervals, floors, and what was accepted on the way."""
    places = [(run.time or f"run {k + 1}")[:16].replace("T", " ") for k, run in enumerate(runs)]
    yield Heading(f"History of {len(runs)} runs, oldest first")
    changed = [
        (place, str(entry.get("cell", "")), str(entry.get("reason", "")), str(entry.get("author", "")))
        for place, run in zip(places, runs, strict=True)
        for entry in run.accepted
    ]
    if changed:
        yield Table(("accepted in", "cell", "reason", "by"), changed)
    found: dict[tuple[str, str, str], dict[str, dict[int, Score]]] = {}
    floors: dict[tuple[str, str, str], float] = {}
    for k, run in enumerate(runs):
        for result in run.results:
            for metric, score in result.scores.items():
                if score.spec.headline and score.spec.kind != "count":
                    what = (result.experiment, result.dataset.name, metric)
                    found.setdefault(what, {}).setdefault(short_label(result.model), {})[k] = score
                    for v in result.verdicts:
                        if v.metric == metric and v.kind == "floor" and isinstance(v.expected, int | float):
                            floors[what] = float(v.expected)
    pairs = zip(places[1:], pairwise(runs), strict=True)
    software = [(place, d.what, d.base, d.head) for place, two in pairs for d in environment_differences(*two)]
    if software:
        yield Details(
            f"What else changed on the way ({len(software)})", [Table(("run", "what", "before", "after"), software)]
        )
    for (experiment, dataset, metric), by_model in found.items():
        lines, rows = [], []
        for label, scores in by_model.items():
            series = [scores.get(k) for k in range(len(runs))]
            lines.append(
                Line(label, [s.value if s else None for s in series], [s.interval if s else None for s in series])
            )
            for place, s in zip(places, series, strict=True):
                if s is not None:
                    ends = "-" if s.interval is None else " to ".join(plain_value(s.spec, end) for end in s.interval)
                    rows.append((place, label, plain_value(s.spec, s.value), ends, f"{s.n:,}"))
        on = "" if dataset in ("", "none", experiment) else f" on {dataset}"
        limit = floors.get((experiment, dataset, metric))
        note = "" if limit is None else f"Dashed: the floor, {limit:g}."
        yield Chart(f"{metric} of {experiment}{on}", places, lines, note, limit)
        yield Details(
            f"{metric} of {experiment}{on} in figures", [Table(("run", "model", "value", "95 % interval", "n"), rows)]
        )
