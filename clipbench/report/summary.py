"""The summary of a run: what was measured, what was expected, what the verdict is and why.

`write_report` writes it with its figures as Markdown and HTML, `terminal_lines` is its short form. A run file is untrusted here.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbench.data.dataset import Dataset
from clipbench.judge.references import UNCONFIRMED, dropped_shortcuts, is_unconfirmed, shown_only
from clipbench.report.document import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    model_label,
    sanitize,
    to_html,
    to_markdown,
    value_text,
)
from clipbench.report.figures import figures_of
from clipbench.report.ranking import Ranked, ranking_blocks, ranking_figure, ranking_file, ranking_lines
from clipbench.result import Result, Run, Verdict, write_whole

ORDER = {"inconclusive": 0, "fail": 1, "pass": 2}
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
EXECUTION_NOTE = (
    "A shortcut gives the plain call's rows with less work; a sample of them is made again by the plain call in the same run, and "
    "where one is further away than rounding can bring it, all rows are made plainly (`dropped`). --no-optimizations takes none."
)

REPORT_ERRORS = (RuntimeError, ValueError, LookupError, ArithmeticError, OSError, ImportError, MemoryError)
"""What matplotlib raises for its settings, fonts and size, and what a damaged run file leads to: the loss of one file."""
LONGEST_ERROR = 300


def write_report(
    run: Run,
    ranked: Ranked,
    folder: Path,
    datasets: Mapping[str, Dataset],
    shown: Mapping[str, Sequence[str]],
    problems: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Write the summary and the figures of a run into a folder; return (what could not be drawn, what could not be written).

    An error costs one figure, or one of the two pages, and no other file: it is returned in a line, and the summary lists the
    figures that are missing. `ranked`: the run's rankings, see `rankings_by_experiment`. `datasets` by name give the pictures
    and captions of the figures; a data set that is not at hand leaves ids in their place.
    """
    figures: dict[tuple[str, str, str], list[str]] = {}
    pictured: set[str] = set()
    undrawn: list[str] = []
    unwritten: list[str] = []
    for result in run.results:
        key = (result.experiment, result.dataset.name, model_label(result.model))
        try:
            drawn = figures_of(result, datasets.get(result.dataset.name))
        except REPORT_ERRORS as error:
            undrawn.append(f"{result.experiment} of {key[2]} on {result.dataset.name}: {_error_text(error)}")
            continue
        for name, content in drawn:
            if _written(folder / "figures" / name, content, unwritten):
                figures.setdefault(key, []).append(f"figures/{name}")
    for title, found in ranked:
        try:
            content = ranking_figure(title, found)
        except REPORT_ERRORS as error:
            undrawn.append(f"ranking of {title}: {_error_text(error)}")
            continue
        if _written(folder / "figures" / ranking_file(title), content, unwritten):
            pictured.add(title)
    try:
        blocks = summary_blocks(run, figures, shown, problems, [*undrawn, *unwritten])
        blocks += ranking_blocks(ranked, pictured)
        pages = {"summary.md": to_markdown(blocks), "summary.html": to_html(blocks, "clipbench summary")}
    except REPORT_ERRORS as error:
        return undrawn, [*unwritten, f"summary.md, summary.html: {_error_text(error)}"]
    for name, page in pages.items():
        _written(folder / name, page, unwritten)
    return undrawn, unwritten


def terminal_lines(
    run: Run, ranked: Ranked, shown: Mapping[str, Sequence[str]], problems: Sequence[str]
) -> Iterator[str]:
    """Return the lines: verdict; inconclusive and failed verdicts with reasons; one line per result, skip and ranking."""
    yield verdict_line(run, problems)
    open_verdicts = [(r, v) for r in run.results for v in r.verdicts if v.verdict != "pass"]
    for result, verdict in sorted(open_verdicts, key=lambda pair: ORDER[pair[1].verdict]):
        yield f"  {verdict.verdict}: {result.experiment} of {model_label(result.model)}: {verdict.reason}"
    width = max((len(model_label(r.model)) for r in run.results), default=0)
    for result in run.results:
        names = [n for n in shown.get(result.experiment, ()) if n in result.metrics]
        values = ", ".join(f"{n} {value_text(n, result.metrics[n])}" for n in names)
        yield f"  {model_label(result.model):{width}}  {result.experiment:12} {worst_verdict(result.verdicts):13} {values}"
    together: dict[tuple[str, str], list[str]] = {}
    for skip in run.skipped:
        if any(skip.reason in problem for problem in problems):
            continue  # it failed, and was told in full
        together.setdefault((skip.model, skip.reason), []).append(skip.experiment)
    for (model, reason), experiments in together.items():
        yield f"  skipped: {', '.join(experiments)} of {model}: {reason}"
    yield from (f"  {line}" for line in (*left_out_lines(run), *execution_lines(run)))
    yield from ranking_lines(ranked)


def worst_verdict(verdicts: Sequence[Verdict]) -> str:
    """Return fail if any failed, else inconclusive if any is, else pass; "measured only" where nothing was judged."""
    words = {v.verdict for v in verdicts}
    return next((w for w in ("fail", "inconclusive", "pass") if w in words), "measured only")


def verdict_line(run: Run, problems: Sequence[str] = ()) -> str:
    """Return one sentence: the verdict of the run and the counts behind it. Nothing judged is never called a pass."""
    verdicts = [v for r in run.results for v in r.verdicts]
    count = {word: sum(v.verdict == word for v in verdicts) for word in ORDER}
    counts = (
        f"{count['pass']} pass, {count['fail']} fail, {count['inconclusive']} inconclusive, {len(run.skipped)} skipped"
    )
    if count["fail"] or problems:
        return f"FAIL: {counts}" + (f"; {len(problems)} test(s) or reference(s) failed" if problems else "")
    if not verdicts:
        return f"CANNOT TELL: nothing was held against a reference ({len(run.results)} result(s), {len(run.skipped)} skipped)"
    if count["inconclusive"]:
        return f"CANNOT TELL IN PART: {counts}"
    return f"{'PASS IN PART' if run.skipped else 'PASS'}: {counts}"


def summary_blocks(
    run: Run,
    figures: Mapping[tuple[str, str, str], Sequence[str]],
    shown: Mapping[str, Sequence[str]],
    problems: Sequence[str] = (),
    missing_figures: Sequence[str] = (),
) -> list[Block]:
    """Return the summary of a run.

    `figures`: (experiment, data set, model label) -> paths relative to the summary. `shown`: experiment -> the metrics the table
    leads with. `problems`: tests that failed, one line each. `missing_figures`: why a figure is not there, one line each.
    """
    blocks: list[Block] = [Heading("clipbench summary", 1), Paragraph(verdict_line(run, problems))]
    blocks += _open_questions(run, problems)
    blocks += [Heading("Results"), *_results(run, shown)]
    blocks += _verdict_table("Verdicts", [(r, v) for r in run.results for v in r.verdicts])
    blocks += _not_enforced(run)
    if run.skipped:
        rows = [(s.model, s.experiment, s.reason) for s in run.skipped]
        blocks += [Heading("Not measured, or not held to a reference"), Table(("model", "experiment", "reason"), rows)]
    blocks += _figure_blocks(run, figures)
    if missing_figures:
        blocks += [
            Heading("Missing figures"),
            Table(("what is missing, and why",), [(line,) for line in missing_figures]),
        ]
    blocks += _confusions(run)
    blocks += _all_metrics(run)
    blocks += exclusion_blocks(run)
    blocks += execution_blocks(run)
    blocks += _environment(run)
    return blocks


def exclusion_blocks(run: Run) -> Iterator[Block]:
    """Yield a heading, a table with one row per result that has something to say, and a note; nothing where none has."""
    rows = [(r.model.name, r.experiment, r.dataset.name, text) for r in run.results if (text := _counts(r))]
    if rows:
        yield Heading("Exclusions and data quality")
        yield Table(("model", "experiment", "data set", "counts"), rows)
        yield Paragraph(EXCLUSIONS_NOTE)


def left_out_lines(run: Run) -> Iterator[str]:
    """Return a line for each result that was measured without images it should have had."""
    for r in run.results:
        if lost := left_out(r):
            yield f"left out: {r.experiment} of {r.model.name} on {r.dataset.name}: {lost}"


def left_out(result: Result) -> str:
    """Return which images were asked for and not measured, "" where none were."""
    notes, found = _notes(result), []
    if absent := notes.get("images_absent", 0):
        found.append(f"{absent:,} absent image(s)")
    if broken := notes.get("broken_images", 0):
        found.append(f"{broken:,} broken image(s): {_names(result)}")
    return ", ".join(found)


def execution_blocks(run: Run) -> Iterator[Block]:
    """Return a heading, a table with a line for the images and one for the texts of each result that took a shortcut, and a word."""
    rows = [
        (r.model.name, r.experiment, kind, ", ".join(r.protocol.get("shortcuts", ())) or "-", _part_text(part))
        for r in run.results
        for kind, part in _parts(r)
        if r.protocol.get("shortcuts") or part.get("dropped")
    ]
    if rows:
        yield Heading("How rows were made")
        yield Table(("model", "experiment", "rows of", "shortcuts of the result", "made"), rows)
        yield Paragraph(EXECUTION_NOTE)


def execution_lines(run: Run) -> Iterator[str]:
    """Return what somebody must know at the end of a session: shortcuts that were dropped, rows that no model confirmed."""
    yield from (f"note: {line}" for line in dropped_shortcuts(run))
    for name in dict.fromkeys(r.model.name for r in run.results):
        unconfirmed = {r.experiment: None for r in run.results if r.model.name == name and is_unconfirmed(r)}
        if unconfirmed:
            yield f"{', '.join(unconfirmed)} of {name}: {UNCONFIRMED}"


def _open_questions(run: Run, problems: Sequence[str]) -> Iterator[Block]:
    """What a reader must see first: what could not be told, then what failed."""
    for word, title in (("inconclusive", "Cannot tell"), ("fail", "Failed")):
        yield from _verdict_table(title, [(r, v) for r in run.results for v in r.verdicts if v.verdict == word])
    if problems:
        yield Heading("Failed tests and references")
        yield Table(("what failed",), [(line,) for line in problems])


def _results(run: Run, shown: Mapping[str, Sequence[str]]) -> Iterator[Block]:
    models = {model_label(r.model) for r in run.results}
    rows = []
    for r in run.results:
        names = [n for n in shown.get(r.experiment, tuple(r.metrics)) if n in r.metrics]
        values = ", ".join(f"{n} {value_text(n, r.metrics[n])}" for n in names) or "nothing could be measured"
        items = f"{r.dataset.name} (n={r.dataset.n})" if r.dataset.n else "-"
        reasons = "; ".join(v.reason for v in r.verdicts if v.verdict != "pass")
        rows.append((model_label(r.model), r.experiment, items, values, worst_verdict(r.verdicts), reasons or "-"))
    yield Table(("model", "experiment", "data set", "values with 95 % intervals", "verdict", "reason"), rows)
    if any(r.model.name == "lite" for r in run.results):
        yield Paragraph(LITE_NOTE)
    if len(models) > 1:
        yield Paragraph(COSINE_NOTE)


def _verdict_table(title: str, judged: Sequence[tuple[Result, Verdict]]) -> Iterator[Block]:
    if not judged:
        return
    header = ("verdict", "model", "experiment", "metric", "reason", "kind", "reference")
    rows = [
        (v.verdict, model_label(r.model), r.experiment, v.metric, v.reason, v.kind, v.reference)
        for r, v in sorted(judged, key=lambda pair: ORDER[pair[1].verdict])
    ]
    yield Heading(title)
    yield Table(header, rows)


def _not_enforced(run: Run) -> Iterator[Block]:
    """Published values under another protocol than the run's: to look at, never to be held to."""
    rows = [
        (
            model_label(r.model),
            r.experiment,
            s.metric,
            value_text(s.metric, s.measured),
            f"{s.published:.4f}",
            s.why,
            s.source,
        )
        for r in run.results
        for s in shown_only(r)
    ]
    if rows:
        yield Heading("Published values, shown but not enforced")
        yield Table(("model", "experiment", "metric", "measured", "published", "what differs", "source"), rows)


def _confusions(run: Run) -> Iterator[Block]:
    rows = []
    for r in run.results:
        names = [str(name) for name in r.protocol.get("classes", ())]
        for true, picked, count, size in r.arrays.get("most_confused", np.empty((0, 4))).astype(int).tolist():
            share = f"{count} of {size} ({count / size:.0%})"
            rows.append((model_label(r.model), r.experiment, names[true], names[picked], share))
    if rows:
        yield Heading("Most confused classes")
        yield Table(("model", "experiment", "is", "was taken for", "how often"), rows)


def _figure_blocks(run: Run, figures: Mapping[tuple[str, str, str], Sequence[str]]) -> Iterator[Block]:
    if figures:
        yield Heading("Figures")
    for r in run.results:
        for path in figures.get((r.experiment, r.dataset.name, model_label(r.model)), ()):
            yield Picture(path, f"{r.experiment} of {model_label(r.model)} on {r.dataset.name}")


def _all_metrics(run: Run) -> Iterator[Block]:
    rows = [
        (model_label(r.model), r.experiment, name, value_text(name, metric), str(metric.n))
        for r in run.results
        for name, metric in r.metrics.items()
    ]
    if rows:
        yield Heading("All metrics")
        yield Table(("model", "experiment", "metric", "value", "n"), rows)


def _environment(run: Run) -> Iterator[Block]:
    yield Heading("Environment")
    pairs = [
        (k, str(v)) for part in ("machine", "software") for k, v in run.environment.get(part, {}).items() if v != ""
    ]
    for model in {r.model: None for r in run.results}:
        weights = f"sha256 {model.weights_sha256[:16]}..." if model.weights_sha256 else "the encoder's own"
        activation = f", {model.activation}" if model.activation else ""
        pairs.append(
            (f"model {model_label(model)}", f"weights {weights}, {model.precision} on {model.device}{activation}")
        )
    yield Table(("what", "value"), pairs)


def _counts(result: Result) -> str:
    counted = [f"{name} {count:,}" for name, count in _notes(result).items() if count]
    names = _names(result)
    return ", ".join(counted) + (f" ({names})" if names else "") if counted else ""


def _names(result: Result) -> str:
    names = result.protocol.get("broken_images")
    return ", ".join(str(name) for name in names) if isinstance(names, list) else ""


def _notes(result: Result) -> dict[str, int]:
    notes = result.protocol.get("notes")
    counts = notes.items() if isinstance(notes, dict) else ()
    return {str(name): count for name, count in counts if isinstance(count, int)}


def _part_text(part: dict[str, Any]) -> str:
    words = [f"{part.get('n', 0):,} rows"]
    words += [
        f"{part[key]:,} {name}" for key, name in (("shared", "shared"), ("cached", "from the cache")) if part.get(key)
    ]
    if part.get("checked"):
        words.append(f"{part['checked']} checked, at most {part.get('largest_distance', 0.0):.1e} away")
    if part.get("dropped"):
        words.append(f"dropped: {part['dropped']}")
    return "; ".join(words)


def _parts(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """(Images or texts, counts) of a result; empty where it does not say."""
    execution = result.protocol.get("execution")
    return list(execution.items()) if isinstance(execution, dict) else []


def _written(path: Path, content: str | bytes, unwritten: list[str]) -> bool:
    try:
        write_whole(path, content)
    except OSError as error:
        unwritten.append(f"{path.name}: {error}")
        return False
    return True


def _error_text(error: BaseException) -> str:
    text = sanitize(f"{type(error).__name__}: {error}")
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."
