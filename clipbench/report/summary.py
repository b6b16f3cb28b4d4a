"""The summary of a run: what was measured, what was expected, what the verdict is and why.

`write_report` writes it with its figures as Markdown and HTML, `terminal_lines` is its short form. A run file is untrusted here.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from clipbench.data.dataset import Dataset
from clipbench.errors import sanitize
from clipbench.experiments import all_experiments
from clipbench.judge.references import dropped_optimizations, judged_by, unenforced
from clipbench.paths import file_name
from clipbench.report.document import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    fitted,
    to_html,
    to_markdown,
    value_text,
)
from clipbench.report.figures import class_answers, figure_of
from clipbench.report.ranking import Ranked, ranking_blocks, ranking_figure, ranking_file, ranking_lines
from clipbench.storage import write_atomically
from clipbench.types import Answers, Encoding, Key, Result, Run, Score, Verdict, overall

ORDER = {"inconclusive": 0, "fail": 1, "note": 2, "pass": 3}
"""A reader sees first what is inconclusive, then what failed."""
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

REPORT_ERRORS = (RuntimeError, ValueError, LookupError, ArithmeticError, OSError, ImportError, MemoryError)
"""What matplotlib raises for its settings, fonts and size, and what a damaged run file leads to: the loss of one file."""
LONGEST_ERROR = 300
SUMMARY_BYTES = 1_000_000
"""Of summary.md, which CI appends to a step summary: GitHub drops one beyond 1,024 kB."""
MOST_DRAWN = 100
"""Results of a run that get a figure, which takes about half a second."""


def write_report(
    run: Run, ranked: Ranked, folder: Path, datasets: Mapping[str, Dataset], problems: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Write the summary and the figures of a run into a folder; return (what could not be drawn, what could not be written).

    An error costs one figure, or one of the two pages, and no other file: it is returned in a line, and the summary lists the
    figures that are missing. `ranked`: the run's rankings, see `rankings_by_experiment`. `datasets` by name give the pictures
    and captions of the figures; a data set that is not at hand leaves ids in their place.
    """
    figures: dict[Key, str] = {}
    pictured: set[str] = set()
    undrawn: list[str] = []
    unwritten: list[str] = []
    several = on_several_datasets(run)
    if (beyond := len(run.results) - MOST_DRAWN) > 0:
        undrawn.append(f"{beyond} results after the first {MOST_DRAWN}")
    for result in run.results[:MOST_DRAWN]:
        try:
            content = figure_of(result, datasets.get(result.dataset.name))
        except REPORT_ERRORS as error:
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
        except REPORT_ERRORS as error:
            undrawn.append(f"ranking of {title}: {_error_text(error)}")
            continue
        if _written(folder / "figures" / ranking_file(title), ranking, unwritten):
            pictured.add(title)
    try:
        blocks = summary_blocks(run, figures, problems, [*undrawn, *unwritten])
        blocks += ranking_blocks(ranked, pictured)
        pages = {
            "summary.md": to_markdown(fitted(blocks, SUMMARY_BYTES)),
            "summary.html": to_html(blocks, "clipbench summary"),
        }
    except REPORT_ERRORS as error:
        return undrawn, [*unwritten, f"summary.md, summary.html: {_error_text(error)}"]
    for name, page in pages.items():
        _written(folder / name, page, unwritten)
    return undrawn, unwritten


def terminal_lines(run: Run, ranked: Ranked, problems: Sequence[str] = ()) -> Iterator[str]:
    """Return the lines: verdict; inconclusive and failed verdicts with reasons; one line per result, skip and ranking.

    Each names its data set and its metrics, with what they were held to. Between them stands what was left out, and which
    optimizations were dropped. All are sanitized.
    """
    return map(sanitize, _lines(run, ranked, problems))


def _lines(run: Run, ranked: Ranked, problems: Sequence[str]) -> Iterator[str]:
    yield verdict_line(run, problems)
    open_verdicts = [(r, v) for r in run.results for v in r.verdicts if v.outcome != "pass"]
    for result, verdict in sorted(open_verdicts, key=lambda pair: ORDER[pair[1].outcome]):
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
    yield from ranking_lines(ranked)


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
    run: Run, figures: Mapping[Key, str], problems: Sequence[str] = (), missing_figures: Sequence[str] = ()
) -> list[Block]:
    """Return the summary of a run: first what is inconclusive, then what failed.

    `figures`: paths relative to the summary, by result. `problems`: tests that failed, one line each. `missing_figures`: why a
    figure is not there, one line each.
    """
    judged = [(r, v) for r in run.results for v in r.verdicts]
    skips = ("model", "experiment", "reason")
    return [
        Heading("clipbench summary", 1),
        Paragraph(verdict_line(run, problems)),
        *_verdicts("Inconclusive", [(r, v) for r, v in judged if v.outcome == "inconclusive"]),
        *_verdicts("Failed", [(r, v) for r, v in judged if v.outcome == "fail"]),
        *_section("Failed tests and references", ("what failed",), [(line,) for line in problems]),
        *_results(run),
        *_verdicts("Verdicts", judged),
        *_not_enforced(run),
        *_section("Not measured", skips, _skips(run)),
        *_figure_blocks(run, figures),
        *_section("Missing figures", ("what is missing, and why",), [(line,) for line in missing_figures]),
        *_confusions(run),
        *_all_metrics(run),
        *exclusion_blocks(run),
        *encoding_blocks(run),
        *_environment(run),
    ]


def exclusion_blocks(run: Run) -> list[Block]:
    """Return a heading, a table with one row per result that has something to say, and a note; [] where none has."""
    rows = []
    for r in run.results:
        counted = [f"{name} {count:,}" for name, count in r.provenance.exclusions.items() if count]
        names = f" ({', '.join(r.provenance.broken)})" if r.provenance.broken else ""
        if counted:
            rows.append((r.model.name, r.experiment, r.dataset.name, ", ".join(counted) + names))
    header = ("model", "experiment", "data set", "counts")
    return _section("Exclusions and data quality", header, rows, EXCLUSIONS_NOTE)


def encoding_blocks(run: Run) -> list[Block]:
    """Return a heading, a table with a row for each tower of a result that took or dropped an optimization, and a note."""
    rows = [
        (r.model.name, r.experiment, tower, ", ".join(r.provenance.optimizations) or "-", _encoding_text(how))
        for r in run.results
        for tower, how in r.provenance.encoding.items()
        if r.provenance.optimizations or how.dropped
    ]
    header = ("model", "experiment", "rows of", "optimizations of the result", "made")
    return _section("How rows were made", header, rows, ENCODING_NOTE)


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


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> list[Block]:
    """A heading and a table, with a note under it; nothing without rows."""
    if not rows:
        return []
    return [Heading(title), Table(header, rows), *([Paragraph(note)] if note else [])]


def _results(run: Run) -> Iterator[Block]:
    rows = []
    for r in run.results:
        values = _values_text(r) or "nothing could be measured"
        items = f"{r.dataset.name} (n={r.dataset.n})" if r.dataset.n else "-"
        reasons = "; ".join(v.finding for v in r.verdicts if v.outcome != "pass")
        rows.append((r.model.label, r.experiment, items, values, worst_verdict(r), reasons or "-"))
    yield Heading("Results")
    yield Table(
        (
            "model",
            "experiment",
            "data set",
            "values with 95 % intervals (and what they were held to)",
            "verdict",
            "reason",
        ),
        rows,
    )
    if any(r.model.name == "lite" for r in run.results):
        yield Paragraph(LITE_NOTE)
    if len({r.model.label for r in run.results}) > 1:
        yield Paragraph(COSINE_NOTE)


def _verdicts(title: str, judged: Sequence[tuple[Result, Verdict]]) -> list[Block]:
    rows = [
        (v.outcome, r.model.label, r.experiment, r.dataset.name, v.metric, v.finding, v.kind, v.reference)
        for r, v in sorted(judged, key=lambda pair: ORDER[pair[1].outcome])
    ]
    return _section(
        title, ("verdict", "model", "experiment", "data set", "metric", "reason", "kind", "reference"), rows
    )


def _not_enforced(run: Run) -> list[Block]:
    """Published values under another protocol than the run's: to look at, never to be held to."""
    rows = [
        (r.model.label, r.experiment, s.metric, value_text(s.measured), f"{s.published:.4f}", s.why, s.source)
        for r in run.results
        for s in unenforced(r)
    ]
    header = ("model", "experiment", "metric", "measured", "published", "what differs", "source")
    return _section("Published values, shown but not enforced", header, rows)


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
            rows.append((r.model.label, r.experiment, names[right], names[picked], share))
    return _section("Most confused classes", ("model", "experiment", "is", "was taken for", "how often"), rows)


def _all_metrics(run: Run) -> list[Block]:
    rows = [
        (r.model.label, r.experiment, name, value_text(score), str(score.n))
        for r in run.results
        for name, score in r.scores.items()
    ]
    return _section("All metrics", ("model", "experiment", "metric", "value", "n"), rows)


def _environment(run: Run) -> list[Block]:
    parts = [run.environment.get(part, {}) for part in ("machine", "software")]
    pairs = [(name, str(value)) for part in parts for name, value in part.items() if value != ""]
    for model in dict.fromkeys(r.model for r in run.results):
        weights = f"sha256 {model.weights_sha256[:16]}..." if model.weights_sha256 else "the encoder's own"
        activation = f", {model.activation}" if model.activation else ""
        pairs.append((f"model {model.label}", f"weights {weights}, {model.precision} on {model.device}{activation}"))
    return [Heading("Environment"), Table(("what", "value"), pairs)]


def _encoding_text(how: Encoding) -> str:
    words = [f"{how.n:,} rows"]
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
