"""The summary of a run: may it be shipped, what changed, which items, and then all that was measured, folded.

`write_report` writes it with its figures as Markdown and as one page, `terminal_lines` is its short form. A run file is untrusted here.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipbench.data.dataset import Dataset
from clipbench.errors import sanitize
from clipbench.experiments import all_experiments
from clipbench.judge.references import dropped_optimizations, judged_by, unenforced
from clipbench.paths import file_name
from clipbench.report.charts import evidence_blocks, history_blocks, model_differences, speed_blocks
from clipbench.report.document import (
    Bar,
    Block,
    Code,
    Details,
    Heading,
    Paragraph,
    Picture,
    Shown,
    Table,
    to_markdown,
    value_text,
)
from clipbench.report.figures import class_answers, figure_of
from clipbench.report.page import to_html
from clipbench.report.ranking import Ranked, ranking_blocks, ranking_figure, ranking_file, ranking_lines
from clipbench.report.story import (
    Compared,
    answers,
    change_blocks,
    item_blocks,
    metric_table,
    name_of,
    plain_value,
    short_label,
)
from clipbench.report.thumbs import FOLDER as THUMBS
from clipbench.report.thumbs import Gallery
from clipbench.statistics import clustered_wilson_interval, wilson_interval
from clipbench.storage import Timing, write_atomically
from clipbench.types import SEVERITY, Answers, Encoding, Key, Result, Run, Score, Verdict, overall

MEASURED_ONLY = "measured only"
CONFUSED_PAIRS = 12
COSINE_NOTE = (
    "Raw cosines cannot be compared between models: each has its own range, and all of them can match every pair. Compare "
    "top-1 rates and margins on the same items, with their intervals; on 8 images a difference of one or two is no difference."
)
LITE_NOTE = (
    "lite is a smoke model, not CLIP: an ImageNet classifier and a sentence encoder joined by a linear map. Its numbers show "
    "that the suite works; they say nothing about any CLIP model."
)
EXCLUSIONS_NOTE = (
    "Items that a data set names and that were left out, changed or counted on purpose; broken files by name."
)
ENCODING_NOTE = (
    "An optimization gives the reference path's rows with less work; a sample of them is encoded again by the reference path in "
    "the same run, and where one is further away than rounding can bring it, the reference path encodes all rows (`dropped`). "
    "--no-optimizations takes none."
)

SLICES_NOTE = (
    "Groups and languages that the data set names, with 95 % intervals, the lowest first. A comparison judges each of them, corrected "
    "for their number."
)
MOST_SLICES = 50

REPORT_ERRORS = (RuntimeError, ValueError, LookupError, ArithmeticError, OSError, ImportError, MemoryError)
"""What a damaged run file leads to when its pages are made: the loss of these."""
LONGEST_ERROR = 300
MOST_DRAWN = 100
"""Results of a run that get a figure, which takes about half a second."""
LARGEST_MARKDOWN = 60_000
"""GitHub takes comments of 65,536 characters."""
Shows = Literal["all", "texts", "numbers"]
_FIGURE = re.compile(r".+-[0-9a-f]{16}\.png")


def write_report(
    run: Run,
    ranked: Ranked,
    folder: Path,
    datasets: Iterable[Dataset],
    problems: Sequence[str] = (),
    compared: Compared | None = None,
    timings: Sequence[Timing] = (),
    earlier: Sequence[Run] = (),
    folders: Sequence[Path] = (),
    shows: Shows = "all",
) -> tuple[list[str], list[str]]:
    """Write the summary and the figures of a run into a folder; return (what could not be drawn, what could not be written).

    An error costs one figure, or one of the two pages, and no other file: it is returned in a line, and the summary lists the
    figures that are missing. Figures of an earlier session go. `ranked`: the run's rankings, see `rankings_by_experiment`. `datasets`
    give the figures' pictures and captions; one that is not at hand leaves ids in their place. `compared`: the run held to its base.
    `timings`: pytest-benchmark's own. `earlier`: runs before this one, for a history. `folders` hold small pictures and captions by
    the hash of their content; what the page shows of them is kept beside it. `shows`: "texts" leaves pictures out, "numbers" captions
    and the names of items, too.
    """
    figures: dict[Key, str] = {}
    pictured: set[str] = set()
    undrawn: list[str] = []
    unwritten: list[str] = []
    at_hand = {dataset.fingerprint: dataset for dataset in datasets if shows == "all"}
    several = on_several_datasets(run)
    if (beyond := len(run.results) - MOST_DRAWN) > 0:
        undrawn.append(f"{beyond} results after the first {MOST_DRAWN}")
    for result in run.results[:MOST_DRAWN]:
        try:
            drawn = result if shows != "numbers" else replace(result, matrices={})
            content = figure_of(drawn, at_hand.get(result.dataset.fingerprint))
        except Exception as error:  # noqa: BLE001  # matplotlib raises anything for settings, fonts and size: the loss of one figure
            undrawn.append(
                f"{result.experiment} of {result.model.label} on {result.dataset.name}: {_error_text(error)}"
            )
            continue
        name = file_name((_experiment_name(result.key, several, "-"), result.model.label), ".png")
        if content is not None and _written(folder / "figures" / name, content, unwritten):
            figures[result.key] = f"figures/{name}"
    for title, found in ranked:
        try:
            ranking = ranking_figure(title, found)
        except Exception as error:  # noqa: BLE001  # matplotlib raises anything for settings, fonts and size: the loss of one figure
            undrawn.append(f"ranking of {title}: {_error_text(error)}")
            continue
        if _written(folder / "figures" / ranking_file(title), ranking, unwritten):
            pictured.add(title)
    drawn_here = {*(Path(figure).name for figure in figures.values()), *map(ranking_file, pictured)}
    _remove_others(folder / "figures", drawn_here)
    runs = [run, *([compared.base] if compared else [])]
    known = at_hand.values() if shows == "all" else datasets
    gallery = Gallery(runs, [folder / THUMBS, *folders], known, shows == "all", shows != "numbers")
    try:
        confronted = ranking_blocks(ranked, pictured)
        missing = [*undrawn, *unwritten]
        blocks = summary_blocks(run, figures, problems, missing, compared, gallery, timings, earlier, confronted)
        blocks = _Redacted(runs).blocks(blocks) if shows == "numbers" else blocks
        pages = {
            "summary.md": to_markdown(blocks, LARGEST_MARKDOWN),
            "summary.html": to_html(blocks, f"clipbench: {verdict_line(run, problems).split(':')[0]}"),
        }
    except REPORT_ERRORS as error:
        return undrawn, [*unwritten, f"summary.md, summary.html: {_error_text(error)}"]
    for name, page in pages.items():
        _written(folder / name, page, unwritten)
    try:
        gallery.keep(folder / THUMBS)
    except OSError as error:
        unwritten.append(f"{THUMBS}: {error}")
    return undrawn, unwritten


class _Redacted:
    """Blocks with the names of items replaced by a hash of each: in cells, in words, and where a sentence lists them."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.names: dict[str, str] = {}
        for result in (result for run in runs for result in run.results):
            listed = [one.ids for one in result.evidence.values()]
            listed += [s.outcomes.ids for s in result.scores.values() if s.outcomes]
            for ids in listed:
                if ids and not set(ids[:1]) & set(result.protocol.classes):
                    self.names |= {i: f"item {hashlib.sha256(i.encode(errors='replace')).hexdigest()[:8]}" for i in ids}
            self.names |= dict.fromkeys(result.provenance.broken, "a file")
        self.odd = [name for name in self.names if not re.fullmatch(r"[^\s,;:()]+", name) and len(name) > 3]

    def blocks(self, found: Iterable[Block]) -> list[Block]:
        return [self._of(block) for block in found]

    def _of(self, one: Any) -> Any:
        if isinstance(one, str):
            return self._words(one)
        if isinstance(one, list | tuple):
            return type(one)(self._of(each) for each in one)
        if isinstance(one, Code) or not is_dataclass(one) or isinstance(one, type):
            return one
        return replace(one, **{f.name: self._of(getattr(one, f.name)) for f in fields(one)})

    def _words(self, text: str) -> str:
        if text in self.names:
            return self.names[text]
        for name in self.odd:
            text = text.replace(name, self.names[name])
        text = _LIST.sub(lambda found: found[1] + self._list(found[2]), text)
        return _WORD.sub(lambda found: self._word(found[0]), text)

    def _word(self, word: str) -> str:
        return word if word.isdecimal() else self.names.get(word, word)

    def _list(self, words: str) -> str:
        names = words.split(", ")
        return ", ".join(self.names[name] for name in names) if all(name in self.names for name in names) else words


_LIST, _WORD = re.compile(r"(: )([^\s,;:()]+(?:, [^\s,;:()]+)*)"), re.compile(r"[^\s,;:()]+")


def _remove_others(folder: Path, kept: Collection[str]) -> None:
    """Remove the figures that an earlier session left: beside a new summary they would be taken for its own."""
    for path in folder.glob("*.png") if folder.is_dir() else ():
        if _FIGURE.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)


def terminal_lines(run: Run, ranked: Ranked, problems: Sequence[str] = ()) -> Iterator[str]:
    """Return the lines: verdict; failed and inconclusive verdicts with reasons; one line per result, skip and ranking.

    Each names its data set and its metrics, with what they were held to. Between them stands what was left out, and which
    optimizations were dropped. All are sanitized.
    """
    return map(sanitize, _lines(run, ranked, problems))


def _lines(run: Run, ranked: Ranked, problems: Sequence[str]) -> Iterator[str]:
    yield verdict_line(run, problems)
    open_verdicts = [(r, v) for r in run.results for v in r.verdicts if v.outcome != "pass"]
    for result, verdict in sorted(open_verdicts, key=lambda pair: SEVERITY.index(pair[1].outcome)):
        yield f"  {verdict.outcome}: {_about(result)}: {verdict.finding}"
    rows = [(f"{_about(result)}:", worst_verdict(result), _values_text(result)) for result in run.results]
    width = max((len(about) for about, _, _ in rows), default=0)
    yield from (f"  {about:{width}} {word:13} {values}" for about, word, values in rows)
    together: dict[tuple[str, str], list[str]] = {}
    for model, experiment, reason in _skips(run):
        if any(reason in problem for problem in problems):
            continue  # it failed, and stands there in full
        together.setdefault((model, reason), []).append(experiment)
    for (model, reason), experiments in together.items():
        yield f"  skipped: {', '.join(experiments)} of {model}: {reason}"
    for r in run.results:
        if lost := r.provenance.left_out:
            yield f"  left out: {r.experiment} of {r.model.name} on {r.dataset.name}: {lost}"
    yield from (f"  note: {line}" for line in dropped_optimizations(run))
    yield from (f"  note: {line}" for line in _resumed(run))
    yield from ranking_lines(ranked)


def _resumed(run: Run) -> Iterator[str]:
    """What was taken over, in words."""
    for began in sorted({r.provenance.resumed for r in run.results} - {""}):
        names = ", ".join(_about(r) for r in run.results if r.provenance.resumed == began)
        yield f"measured by the session that began {began} and did not come to its end, a sample encoded again: {names}"


def worst_verdict(result: Result) -> str:
    """Return the worst verdict of a result in a word; "measured only" where nothing was judged."""
    worst = overall(result.verdicts)
    return MEASURED_ONLY if worst == "note" else worst


def on_several_datasets(run: Run) -> frozenset[str]:
    """Return the experiments whose results are called by their data set too: with several in the run, or of folders with names."""
    keys = {*(r.key for r in run.results), *(skip.key for skip in run.skipped)}
    datasets = Counter(experiment for experiment, dataset in {(k.experiment, k.dataset) for k in keys if k.dataset})
    named = (name for name, one in all_experiments().items() if one.root is not None and one.root.is_named)
    return frozenset((*named, *(experiment for experiment, n in datasets.items() if n > 1)))


def verdict_line(run: Run, problems: Sequence[str] = ()) -> str:
    """Return one sentence: the verdict of the run, the counts behind it, and what was held to nothing or not measured.

    PASS is said only where each model's quality was held to a reference that names it; IN PART where something was skipped, or
    nothing but a contract (which holds of any model) speaks of one.
    """
    count = Counter(v.outcome for r in run.results for v in r.verdicts)
    counts = ", ".join(f"{count[word]} {word}" for word in ("pass", "fail", "inconclusive"))
    if problems:
        counts += f"; {len(problems)} test(s) or reference(s) failed"
    held = judged_by(run)
    unjudged = _listed(run, [r.key for r in run.results if overall(r.verdicts) == "note"])
    absent = _listed(run, [skip.key for skip in run.skipped if not any(skip.reason in line for line in problems)])
    general = ", ".join(label for label, kinds in held.items() if kinds == {"contract"})
    more = {"measured, not judged": unjudged, "held to a contract alone": general, "not measured": absent}
    if count["fail"] or problems:
        word = "FAIL"
    elif not run.results:
        return f"NOTHING WAS MEASURED: {absent or 'nothing was asked for'}"
    elif count["inconclusive"]:
        word = "INCONCLUSIVE"
    elif not any(held.values()):
        word, counts = "MEASURED, NOT JUDGED", f"{more.pop('measured, not judged')}; {counts}"
    else:
        word = "PASS IN PART" if absent or general or not all(held.values()) else "PASS"
    return "; ".join([f"{word}: {counts}", *(f"{what}: {which}" for what, which in more.items() if which)])


def summary_blocks(
    run: Run,
    figures: Mapping[Key, str],
    problems: Sequence[str] = (),
    missing_figures: Sequence[str] = (),
    compared: Compared | None = None,
    gallery: Gallery | None = None,
    timings: Sequence[Timing] = (),
    earlier: Sequence[Run] = (),
    confronted: Sequence[Block] = (),
) -> list[Block]:
    """Return the summary of a run: ten seconds for each model, what changed since the base, which items; then all else, folded.

    `figures`: paths relative to the summary, by result. `problems`: tests that failed, one line each. `missing_figures`: why a
    figure is not there, one line each. `confronted`: what several models' ranking says. The rest as `write_report`.
    """
    gallery = gallery or Gallery([run])
    several = len({r.model.name for r in run.results}) > 1
    judged = [(r, v) for r in run.results for v in r.verdicts]
    stated = [(r, v) for r, v in judged if v.kind not in ("baseline", "anchor")] if compared else judged
    cells = [cell.id for cell in compared.comparison.cells] if compared else []
    others = [line for line in problems if not any(cell in line for cell in cells)]
    skips = ("model", "experiment", "reason")
    before = compared.before(run) if compared else {}
    return [
        Heading("clipbench summary", 1),
        *answers(run, compared, problems),
        *(
            [Paragraph(f"{'References: ' if compared else ''}{verdict_line(run, others)}")]
            if stated or others or not compared
            else []
        ),
        *(Paragraph(f"Note: {line}.") for line in _resumed(run)),
        *_section("Failed tests and references", ("what failed",), [(line,) for line in others]),
        *_verdicts("What does not pass", [(r, v) for r, v in stated if v.outcome in ("fail", "inconclusive")]),
        *(change_blocks(compared.comparison, compared.name, several) if compared else ()),
        *(item_blocks(compared.comparison, gallery) if compared else ()),
        *_results(run, before),
        *confronted,
        *_section("Not measured", skips, _skips(run)),
        *(history_blocks([*earlier, run]) if earlier else ()),
        *_evidence(run, before, gallery, is_open=compared is None and not earlier),
        *_figure_blocks(run, figures),
        *_section("Missing figures", ("what is missing, and why",), [(line,) for line in missing_figures]),
        *slice_blocks(run),
        *_confusions(run),
        *speed_blocks(run, before, timings),
        *_tables(run, stated, compared, several),
        *exclusion_blocks(run),
        *encoding_blocks(run),
        *_environment(run),
    ]


def _tables(
    run: Run, stated: Sequence[tuple[Result, Verdict]], compared: Compared | None, several: bool
) -> Iterator[Block]:
    """Everything that was measured and judged, folded."""
    if compared and (table := metric_table(compared.comparison, several)):
        yield Details(f"All {len(table.rows)} metrics held to the base", [table])
    if stated:
        yield Details(f"All {len(stated)} verdicts", _verdicts("Verdicts", stated))
    yield from _all_metrics(run)
    yield from _not_enforced(run)


def _evidence(run: Run, before: Mapping[Key, Result], gallery: Gallery, is_open: bool) -> Iterator[Block]:
    """What there is to look at of each result; the first matrix of own pairs is open where nothing stands before it."""
    found = []
    for r in run.results[:MOST_DRAWN]:
        if blocks := list(evidence_blocks(r, before.get(r.key), gallery)):
            found.append((f"{name_of(r.key, '')}, {short_label(r.model)}", blocks))
    if not found:
        return
    yield Heading("To look at")
    for title, blocks in found:
        if (
            is_open
            and any(m.is_matching for r in run.results for m in r.matrices.values())
            and (title, blocks) == found[0]
        ):
            yield from [Heading(title, 3), *blocks]
        else:
            yield Details(title, blocks)
    yield from model_differences(run.results, gallery)


def exclusion_blocks(run: Run) -> list[Block]:
    """Return, folded, a table with one row per result that has something to say, and a note; [] where none has."""
    rows = []
    for r in run.results:
        counted = [f"{name} {count:,}" for name, count in r.provenance.exclusions.items() if count]
        names = f" ({', '.join(r.provenance.broken)})" if r.provenance.broken else ""
        if counted:
            rows.append((r.model.name, r.experiment, r.dataset.name, ", ".join(counted) + names))
    header = ("model", "experiment", "data set", "counts")
    return _folded("Exclusions and data quality", header, rows, EXCLUSIONS_NOTE)


def encoding_blocks(run: Run) -> list[Block]:
    """Return, folded, a table with a row for each tower of a result that took or dropped an optimization, and a note."""
    rows = [
        (
            r.model.name,
            r.experiment,
            tower,
            ", ".join(r.provenance.optimizations) or "-",
            _encoding_text(how, r.provenance.resumed),
        )
        for r in run.results
        for tower, how in r.provenance.encoding.items()
        if r.provenance.optimizations or how.dropped or r.provenance.resumed
    ]
    header = ("model", "experiment", "rows of", "optimizations of the result", "made")
    return _folded("How rows were made", header, rows, ENCODING_NOTE)


def most_confused(answers: Answers) -> list[tuple[int, int, int, int]]:
    """Return up to 12 of (right class, class picked, how often, items of the right class), most often first.

    Equally frequent pairs in the order of their shares of the right class, then of classes; [] when nothing is confused. Raises:
    ValueError without labels.
    """
    if answers.labels is None:
        raise ValueError("several classes are right for an item, so none can be confused with another")
    pairs = np.stack([answers.labels, answers.top[:, 0]], axis=1)
    confused, count = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0, return_counts=True)
    right, picked = confused.T
    size = np.bincount(answers.labels)[right]
    order = np.lexsort((picked, right, -count / size, -count))[:CONFUSED_PAIRS]
    columns = (column[order].tolist() for column in (right, picked, count, size))
    return list(zip(*columns, strict=True))


def _experiment_name(key: Key, several: Collection[str], separator: str = ":") -> str:
    return f"{key.experiment}{separator}{key.dataset}" if key.experiment in several and key.dataset else key.experiment


def _skips(run: Run) -> list[tuple[str, str, str]]:
    """(Model, experiment, reason) of each skip, as people call them."""
    several = on_several_datasets(run)
    labels = {r.model.name: r.model.label for r in run.results}
    return [(labels.get(s.key.model, s.key.model), _experiment_name(s.key, several), s.reason) for s in run.skipped]


def _listed(run: Run, keys: Sequence[Key]) -> str:
    """The keys in words, as in "natural, speed of RN50, RN101; medical of lite"."""
    several = on_several_datasets(run)
    labels = {r.model.name: r.model.label for r in run.results}
    by_model: dict[str, dict[str, None]] = {}
    for key in keys:
        by_model.setdefault(labels.get(key.model, key.model), {})[_experiment_name(key, several)] = None
    models: dict[tuple[str, ...], list[str]] = {}
    for label, experiments in by_model.items():
        models.setdefault(tuple(experiments), []).append(label)
    return "; ".join(f"{', '.join(experiments)} of {', '.join(names)}" for experiments, names in models.items())


def _about(result: Result) -> str:
    on = f" on {result.dataset.name}" if result.dataset.n else ""
    return f"{result.experiment} of {result.model.label}{on}"


def _values_text(result: Result) -> str:
    """The scores that a summary leads with, each with the values it was held to."""
    texts = []
    for name, score in result.scores.items():
        held = [
            f"{v.kind} {value_text(Score(score.spec, float(stated), score.n))}"
            for v in result.verdicts
            if v.metric == name and isinstance(stated := v.expected if v.base is None else v.base, int | float)
        ]
        if score.spec.headline:
            texts.append(f"{name} {value_text(score)}" + (f" ({', '.join(dict.fromkeys(held))})" if held else ""))
    return ", ".join(texts)


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str | Shown]], note: str = "") -> list[Block]:
    """A heading and a table, with a note under it; nothing without rows."""
    if not rows:
        return []
    return [Heading(title), Table(header, rows), *([Paragraph(note)] if note else [])]


def _folded(title: str, header: Sequence[str], rows: Sequence[Sequence[str | Shown]], note: str = "") -> list[Block]:
    """The blocks of `_section` under its heading, folded."""
    found = _section(title, header, rows, note)
    return [Details(title, found[1:])] if found else []


def _results(run: Run, before: Mapping[Key, Result]) -> Iterator[Block]:
    """A row for each metric that a summary leads with, base and head side by side."""
    rows: list[list[str | Shown]] = []
    for r in run.results:
        items = f"{r.dataset.name} (n={r.dataset.n:,})" if r.dataset.n else "-"
        leading = [(name, score) for name, score in r.scores.items() if score.spec.headline]
        for name, score in leading:
            old = before[r.key].scores.get(name) if r.key in before else None
            own = [v for v in r.verdicts if v.metric == name]
            word = overall(own)
            row: list[str | Shown] = [short_label(r.model), r.experiment, items, name]
            row += [plain_value(old.spec, old.value) if old else "-"] if before else []
            row += [Shown(value_text(score), (), _bar(score, old)), _held_to(score, own)]
            rows.append([*row, MEASURED_ONLY if word == "note" else word])
        if not leading:
            row = [
                short_label(r.model),
                r.experiment,
                items,
                "-",
                *(["-"] if before else []),
                "nothing could be measured",
                "-",
            ]
            rows.append([*row, worst_verdict(r)])
    yield Heading("Results")
    sides = ("base", "head, 95 % interval") if before else ("value, 95 % interval",)
    yield Table(("model", "experiment", "data set", "metric", *sides, "held to", "verdict"), rows)
    if any(r.model.name == "lite" for r in run.results):
        yield Paragraph(LITE_NOTE)
    if len({short_label(r.model) for r in run.results}) > 1:
        yield Paragraph(COSINE_NOTE)


def _bar(score: Score, old: Score | None) -> Bar | None:
    """A picture of a share, with its interval."""
    if score.spec.kind not in ("rate", "mean", "probability") or not 0 <= score.value <= 1:
        return None
    low, high = score.interval or (score.value, score.value)
    return Bar(score.value, low, high, old.value if old else None)


def _held_to(score: Score, verdicts: Sequence[Verdict]) -> str:
    """What a score was held to by references that state a value."""
    held = [
        f"{v.kind} {plain_value(score.spec, float(v.expected))}"
        for v in verdicts
        if v.base is None and isinstance(v.expected, int | float)
    ]
    return ", ".join(dict.fromkeys(held)) or "-"


def _verdicts(title: str, judged: Sequence[tuple[Result, Verdict]]) -> list[Block]:
    rows = [
        (v.outcome, short_label(r.model), r.experiment, r.dataset.name, v.metric, v.finding, v.kind, v.reference)
        for r, v in sorted(judged, key=lambda pair: SEVERITY.index(pair[1].outcome))
    ]
    return _section(
        title, ("verdict", "model", "experiment", "data set", "metric", "reason", "kind", "reference"), rows
    )


def _not_enforced(run: Run) -> list[Block]:
    """Published values under another protocol than the run's: to look at, never to be held to."""
    rows = [
        (short_label(r.model), r.experiment, s.metric, value_text(s.measured), f"{s.published:.4f}", s.why, s.source)
        for r in run.results
        for s in unenforced(r)
    ]
    header = ("model", "experiment", "metric", "measured", "published", "what differs", "source")
    return _folded("Published values, shown but not enforced", header, rows)


def _figure_blocks(run: Run, figures: Mapping[Key, str]) -> Iterator[Block]:
    if figures:
        yield Heading("Figures")
    for r in run.results:
        if r.key in figures:
            yield Picture(figures[r.key], f"{r.experiment} of {r.model.label} on {r.dataset.name}")


def _confusions(run: Run) -> list[Block]:
    rows = []
    for r in run.results:
        names, answers = r.protocol.classes, class_answers(r)
        for right, picked, count, size in most_confused(answers) if answers is not None else ():
            share = f"{count} of {size} ({count / size:.0%})"
            rows.append((short_label(r.model), r.experiment, names[right], names[picked], share))
    header = ("model", "experiment", "is", "was taken for", "how often")
    return _folded("Most confused classes", header, rows)


def slice_blocks(run: Run) -> list[Block]:
    """Return a heading, a table with the rates that models are ranked by on each slice, the lowest first, and a note; [] without any."""
    rows = []
    for r in run.results:
        for name, score in r.scores.items():
            answers, o = r.answers.get(score.spec.answers), score.outcomes
            if (
                not (score.spec.ranked and score.spec.kind == "rate")
                or answers is None
                or o is None
                or answers.ids != o.ids
            ):
                continue
            found = []
            for part, places in answers.slices.items():
                values, clusters = o.values[places], None if o.clusters is None else [o.clusters[k] for k in places]
                n, hits = len(places), float(values.sum())
                low, high = (
                    wilson_interval(hits, n) if clusters is None else clustered_wilson_interval(values, clusters)
                )
                text = f"{hits / n:.3f} [{low:.3f}, {high:.3f}]" + (" (one item says nothing)" if n == 1 else "")
                found.append((hits / n, (r.model.label, r.experiment, r.dataset.name, part, name, text, f"{n:,}")))
            rows += [row for _, row in sorted(found)[:MOST_SLICES]]
    header = ("model", "experiment", "data set", "slice", "metric", "value", "n")
    return _section("Slices", header, rows, SLICES_NOTE)


def _all_metrics(run: Run) -> list[Block]:
    rows = [
        (short_label(r.model), r.experiment, name, value_text(score), str(score.n))
        for r in run.results
        for name, score in r.scores.items()
    ]
    return _folded("All metrics", ("model", "experiment", "metric", "value", "n"), rows)


def _environment(run: Run) -> list[Block]:
    parts = [run.environment.get(part, {}) for part in ("machine", "software")]
    pairs = [(name, str(value)) for part in parts for name, value in part.items() if value != ""]
    for model in dict.fromkeys(r.model for r in run.results):
        weights = f"sha256 {model.weights_sha256[:16]}..." if model.weights_sha256 else "the encoder's own"
        activation = f", {model.activation}" if model.activation else ""
        pairs.append((f"model {model.label}", f"weights {weights}, {model.precision} on {model.device}{activation}"))
    return [Details("Environment", [Table(("what", "value"), pairs)])]


def _encoding_text(how: Encoding, resumed: str) -> str:
    words = [f"{how.n:,} rows", *([f"by the unfinished session that began {resumed}"] if resumed else [])]
    words += [f"{n:,} {name}" for n, name in ((how.shared, "shared"), (how.cached, "from the cache")) if n]
    if how.checked:
        words.append(f"{how.checked} checked, at most {how.largest_distance:.1e} away")
    return "; ".join([*words, f"dropped: {how.dropped}"] if how.dropped else words)


def _written(path: Path, content: str | bytes, unwritten: list[str]) -> bool:
    try:
        write_atomically(path, content)
    except OSError as error:
        unwritten.append(f"{path.name}: {error}")
        return False
    return True


def _error_text(error: BaseException) -> str:
    text = sanitize(" ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."
