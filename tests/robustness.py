"""The fault table: what is done to clipbench, and what must hold. `pytest tests -m fault` runs its tests alone and prints it.

A test says by `@pytest.mark.fault(ROW, ...)` which rows it is a part of. A case of it counts as one try, or as many as it gives to
`record_property("tries", n)`. This module is the plugin as well: `conftest.py` takes its hooks.
"""

from collections import Counter
from collections.abc import Iterable

import pytest

ROWS = {
    "code in a run file": (
        "run files that name a factory, a module or a data set of the folder; queries that need the model",
        "nothing is imported, no connection is opened; exit status 2 says to name the model with `--model`",
    ),
    "code in a checkpoint": (
        "pickles that call, in each container and protocol; archives and repositories that run code on loading; pickled rows",
        "refused by name with the next step; the call is never made",
    ),
    "an encoder or plugin that leaves": (
        "skip, xfail, exit, `SystemExit`, `os._exit(0)`, out of memory; plugins that skip tests or forgive failures",
        "the session is red and its run is written",
    ),
    "an error while judging": (
        "references, or the comparison with a baseline, that raise after everything was measured",
        "it is named, exit status 1; run and summary are written",
    ),
    "a name that is no UTF-8": (
        "folders of an old archive, half characters in JSON, a terminal of ASCII",
        "shown escaped; pages are written, verdict and exit status stay",
    ),
    "a session that is ended": (
        "SIGTERM, SIGHUP, SIGQUIT, SIGINT, and SIGKILL at random moments",
        "what was measured is in run.json, or in parts that `clipbench report` reads; no file is half written",
    ),
    "an unfinished session, continued": (
        "other options, code, weights, pictures, rows or traces since; parts that were cut, edited or hold NaN; a second end",
        "taken over where nothing differs, else measured anew, and said; a changed part is refused by name before anything is measured",
    ),
    "text that steers": (
        "workflow commands, escape sequences, NUL, markup and Markdown in every name of a run, a checkpoint and an error",
        "one plain line; no command, no tag, no link in any format",
    ),
    "text that hides or links": (
        "line separators, marks of direction, letters without width, addresses",
        "shown escaped; no address becomes a link",
    ),
    "a small checkpoint that asks for much": (
        "nested pickles, bombs, overlapping and sparse records, repeated elements, endless tables, names of 2 MB",
        "refused by name (long names: read) in 15 s and 800 MB at most",
    ),
    "what is no checkpoint": (
        "empty, a web page, an LFS pointer, a folder, a pipe, cut short, a flipped bit, a header that lies",
        "refused by name in one line that says what it is",
    ),
    "weights that no model holds": (
        "NaN, infinity, numbers that only the cast makes infinite",
        "refused by the tensor's name",
    ),
    "a checkpoint that changes": (
        "cut, overwritten or replaced between hashing, reading and use",
        "the tensors are those of the recorded hash; no signal ends the process",
    ),
    "a user without name or home": (
        "no entry in the list of users, no USER, no HOME",
        "the baseline is updated, `clipbench models` answers; what needs a folder is refused with the variable that names one",
    ),
    "files that cannot be written": (
        "a full or broken disk, a folder in a file's place, at results, rows, baseline and cache",
        "earlier files stay whole, exit status 1 (before measuring: 4), a baseline is not replaced",
    ),
    "a broken picture": (
        "whatever a decoder raises; formats that nobody has under a picture's name, PostScript among them",
        "the file is named; no program is started",
    ),
    "pictures larger than memory": (
        "bombs of 67 million to 3.6 billion pixels, boxes of 9 million pixels a side, DICOM that inflates to 600 MB",
        "refused by name before the pixels are made: 10 s and 200 MB at most (DICOM: 20 s, 700 MB; one of the bound is read: 500 MB)",
    ),
    "deep pictures": (
        "16 and 32 bits and floats, as PNG, TIFF and PGM",
        "left out by name with the option that converts them",
    ),
    "models of one spelling": (
        "names that differ in `:`, `/`, `_` alone, and weights of one file name",
        "figures and rows of their own",
    ),
    "JSON and TOML made to harm": (
        "nested 100,000 deep, numbers of millions of digits, keys of 100,000 dots, NaN, UTF-16, 50 MB of text",
        "refused in one line within 15 s (TOML: 5 s)",
    ),
    "a run file that lies": (
        "values of other kinds, columns that do not fit, shapes without end, texts as outcomes, 100,000 classes",
        "one line with exit status 2, or a verdict, within 30 s; never a traceback",
    ),
    "annotations that lie": (
        "COCO, Karpathy's split and ROCO: rows cut, doubled, of other kinds, with numbers that no float holds",
        "refused in one line with file, id and key",
    ),
    "paths that leave their folder": (
        "`..`, absolute, NUL, links out, in annotations, shards, tables and class lists",
        "refused by name; nothing is read or written elsewhere",
    ),
    "links in a folder of pictures": (
        "pictures and folders that are links, links to nothing and to devices",
        "followed and counted; one that leads to no file is an absent picture",
    ),
    "a figure that cannot be drawn": (
        "whatever drawing raises, a folder of figures that cannot be written, results by the hundred",
        "that figure is named; run and summary are written",
    ),
    "two sessions at once": (
        "one folder of results, one baseline (also behind a link)",
        "the second is refused in one line; a link stays one",
    ),
    "what is no file": (
        "pipe, device, folder, nothing, loops of links, endless names, a sparse terabyte, for every reader and command",
        "refused in one line within 5 s and 200 MB; commands end with exit status 2 within 10 s",
    ),
    "a writer that was killed": (
        "files that it left, folders that were not flushed",
        "gone with the next write, a live one's stay; the folder is flushed after the rename",
    ),
    "a cache that is damaged": (
        "bytes, pages, tables and header of the cache of rows, a view, a trigger, a clock set back, another version's file",
        "no wrong row; begun anew or off, said once",
    ),
    "a cache in use": (
        "killed amid writes, two processes, a full disk, a lock that is held, cleared by another process",
        "what was put before is there and right; off is said once",
    ),
    "the built model, exchanged": (
        "its weights cut, edited or exchanged, code brought along, builds that are killed or race",
        "built again from the pinned files; nothing of the folder is run",
    ),
    "rows that are none": (
        "NaN, infinity, zeros, complex numbers, other counts and shapes",
        "refused by the encoder's name and the input's number",
    ),
    "a mutated file": (
        "each of twenty-one formats, mutated where it is parsed, its checksums made anew",
        "a value or one printable line, within 5 s each and 1.5 GB",
    ),
    "options that cannot be meant": (
        "models, weights, devices, folders and runs that are not there, cannot be or contradict each other",
        "exit status 4 (`clipbench check`: 2) and one line, before anything is measured",
    ),
    "no network": (
        "the default job and a tag's weights with `--offline`; a server that counts requests",
        "no connection; what is not in a cache is unavailable, with the ways out",
    ),
}
"""By name: the input, and what must hold."""
HEADER = ("| fault | input | tries | what must hold | held |", "|---|---|---|---|---|")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note with each test the rows that it is a part of: reports carry that, also those of a worker of xdist."""
    for item in items:
        rows = [row for mark in item.iter_markers("fault") for row in mark.args]
        if unknown := [row for row in rows if row not in ROWS]:
            raise pytest.UsageError(f"{item.nodeid}: the fault table has no row {unknown[0]!r}; see robustness.ROWS")
        item.user_properties += [("fault", row) for row in rows]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table where a marker chose the tests, and all that were chosen are a part of it."""
    reports = [r for found in terminalreporter.stats.values() for r in found if isinstance(r, pytest.TestReport)]
    if config.option.markexpr and (lines := table(reports)):
        terminalreporter.write_sep("=", "fault table")
        for line in lines:
            terminalreporter.write_line(line)


def table(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Return the rows that were tried, as a table in Markdown; nothing where a test is in none.

    A case that failed holds with none of its tries. A row without any try that ran did not hold, whatever was skipped.
    """
    phases: dict[str, list[pytest.TestReport]] = {}
    for report in reports:
        phases.setdefault(report.nodeid, []).append(report)
    held, tried, skipped = Counter[str](), Counter[str](), Counter[str]()
    for ran in phases.values():
        noted = [(name, value) for report in ran for name, value in report.user_properties]
        rows = {value for name, value in noted if name == "fault"}
        if not rows:
            return []
        tries = max((value for name, value in noted if name == "tries"), default=1)
        has_failed, was_skipped = any(r.failed for r in ran), any(r.skipped for r in ran)
        for row in rows:
            skipped[row] += was_skipped and not has_failed
            tried[row] += tries * (has_failed or not was_skipped)
            held[row] += tries * (not has_failed and not was_skipped)
    lines = []
    for row, (given, holds) in ROWS.items():
        if tried[row] or skipped[row]:
            result = f"{held[row]:,} of {tried[row]:,}" if tried[row] else "not run"
            result = result if held[row] == tried[row] else f"**no**: {result}"
            result += f", {skipped[row]:,} skipped" if skipped[row] else ""
            lines.append(f"| {row} | {given} | {tried[row]:,} | {holds} | {result} |")
    return [*HEADER, *lines] if lines else []
