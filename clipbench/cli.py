"""The command line: every command's options, and what it prints. Each imports what it needs when it runs: `--help` costs nothing."""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipbench.errors import UNREADABLE, ClipbenchError, DataUnavailableError, UsageError, sanitize
from clipbench.paths import CACHE_VARIABLE, LARGEST_RUN_BYTES

if TYPE_CHECKING:
    from clipbench.judge.compare import Comparison
    from clipbench.types import Run

FORMATS = ("text", "json", "markdown", "github")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 usage or unreadable input (one line on standard error).

    `compare` and `ab` also return 1 when head fails and 3 when the comparison is inconclusive.
    """
    own, passed = split_passed(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(own)
    options.passed = passed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal of few letters costs no verdict
    commands = {"models": _models, "report": _report, "compare": _compare, "power": _power, "ab": _ab, "cache": _cache}
    try:
        return commands[options.command](options)
    except (ClipbenchError, OSError) as error:
        print(f"clipbench: error: {sanitize(str(error))}", file=sys.stderr)
        return UNREADABLE


def split_passed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (clipbench's own arguments, those of `ab` after `--`, which go to both processes)."""
    given = list(arguments)
    if given[:1] != ["ab"] or "--" not in given:
        return given, []
    place = given.index("--")
    return given[:place], given[place + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clipbench",
        description="Benchmark and regression suite for CLIP models. The measuring itself is `pytest benchmarks`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    models = commands.add_parser("models", help="list the models that `pytest benchmarks --model` knows")
    models.add_argument("--all", action="store_true", help="also every other architecture of open_clip")
    report = commands.add_parser("report", help="write the summary and figures of a run file again")
    report.add_argument(
        "run",
        type=Path,
        help="a run's JSON file, or a folder of results: its latest run, also of a session that was killed",
    )
    report.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder to write into (default: that of results)"
    )
    _add_largest(report)
    _add_compare(commands)
    _add_power(commands)
    _add_ab(commands)
    _add_cache(commands)
    return parser


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = commands.add_parser(
        "compare",
        help="compare two runs: pass, fail, or inconclusive",
        description="Exit codes: 0 pass, 1 fail, 2 usage or unreadable input, 3 inconclusive (something could not be decided or "
        "compared, or is missing).",
    )
    _add_largest(compare)
    add = compare.add_argument
    # fmt: off
    add("base", type=Path, metavar="BASE.json", help="the run to hold the other one to")
    add("head", type=Path, metavar="HEAD.json", help="the run that is judged")
    add("--tolerance", action="append", default=[], metavar="[METRIC=]VALUE",
        help="allowed drop, a fraction: of every declared metric, or of one; repeatable")
    add("--alpha", type=float, metavar="A", help="one-sided error rate (default: 0.05)")
    add("--only", action="append", default=[], metavar="GLOB", help="judge these cells alone, by glob (or experiment); repeatable")
    add("--accept", action="append", default=[], metavar="CELL",
        help="accept what a cell says, by its id as it was printed, with --reason; repeatable")
    add("--reason", default="", metavar="TEXT", help="why that is accepted")
    add("--anchor", type=Path, metavar="RUN.json", help="hold the head to this run of a frozen release, too")
    add("--speed", choices=("off", "note", "gate"), default="note", help="what a change of speed does: off, note (default) or gate")
    add("--max-cosine-distance", type=float, metavar="D", help="fail where any item's row moved by more than this cosine distance")
    add("--format", choices=FORMATS, default="text", help="text (default), json, markdown or github")
    add("--rules", type=Path, metavar="FILE.toml",
        help="declared metrics, budgets and items that must pass, in place of fixtures/tolerances.toml")
    add("--index", type=Path, nargs="*", metavar="ROWS.npy",
        help="must I re-index? OLD.npy [NEW.npy] with --queries: rows of your index by the base model, and the same items by the "
        "head model; no file: the rows that both runs saved with --save-embeddings")
    add("--queries", type=Path, nargs="+", default=[], metavar="TEXTS.txt",
        help="texts, one per line, encoded here by --model (imports torch); or OLD.npy NEW.npy, their rows")
    add("--model", action="append", default=[], metavar="NAME",
        help="what encodes TEXTS.txt, as `pytest benchmarks --model`; twice where base and head differ, base's first. A run file "
        "only says which model it was, it never loads one")
    add("--pretrained", action="append", default=[], metavar="TAG|PATH|random[:SEED]",
        help="its weights; twice where base and head differ, base's first")
    add("--activation", choices=("quickgelu", "gelu"), help="its activation, where a checkpoint does not say it")
    add("--offline", action="store_true", help="take its weights from the caches only (HF_HUB_OFFLINE=1 too)")
    # fmt: on


def _add_power(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    power = commands.add_parser(
        "power",
        help="before a run: what a number of items decides, or how many items decide a drop",
        description="Without --items and --drop: a table of sizes. Each number is for one metric, and beside it for the worst of six "
        "that are judged together.",
    )
    add = power.add_argument
    asked = power.add_mutually_exclusive_group()
    asked.add_argument("--items", type=int, metavar="N", help="say which drop so many items decide")
    asked.add_argument("--drop", type=float, metavar="D", help="say how many items decide this drop, a fraction")
    add(
        "--flips",
        type=float,
        metavar="F",
        help="share of items that flip without any drop (default: 0, .01, .05 and .1)",
    )
    add("--tolerance", type=float, default=0.01, metavar="VALUE", help="allowed drop (default: 0.01)")
    add("--alpha", type=float, default=0.05, metavar="A", help="one-sided error rate (default: 0.05)")


def _add_largest(command: argparse.ArgumentParser) -> None:
    default = LARGEST_RUN_BYTES // 1_000_000
    help_text = "the largest run file that is read, in 1,000,000 bytes (default: %(default)s)"
    command.add_argument("--max-file-size", type=int, default=default, metavar="MB", help=help_text)


def _add_ab(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    add = commands.add_parser(
        "ab",
        usage="clipbench ab --base PYTHON --head PYTHON [--rounds N] [--tolerance VALUE] [--format text|json] [-- OPTIONS]",
        help="compare the speed of two environments on this machine, their processes taking turns",
        description="Options after -- are those of `pytest benchmarks` that decide what is timed: --model, --pretrained, "
        "--activation, --device, --precision, --batch-size, --offline. Exit codes: 0 a loss beyond the tolerance is excluded, 1 it "
        "is shown, 2 usage or a process that failed, 3 undecided.",
    ).add_argument
    # fmt: off
    add("--base", required=True, metavar="PYTHON", help="the environment to hold the other one to: its Python")
    add("--head", required=True, metavar="PYTHON", help="the environment that is judged: its Python")
    add("--rounds", type=int, default=7, metavar="N", help="pairs of fresh processes (default: 7)")
    add("--tolerance", type=float, default=0.05, metavar="VALUE",
        help="allowed loss of speed or growth of memory, a fraction (default: 0.05)")
    add("--format", choices=("text", "json"), default="text", help="text (default) or json")
    # fmt: on


def _add_cache(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    add = commands.add_parser(
        "cache",
        help="show or clear the folder in which `pytest benchmarks --cache DIR` keeps rows",
        description="Exit codes: 0 shown or cleared, also where there is nothing; 2 no folder given, or a cache that is damaged or "
        "in use: then nothing is removed.",
    ).add_argument
    add("folder", type=Path, nargs="?", metavar="DIR", help=f"the cache's folder (default: ${CACHE_VARIABLE})")
    add("--clear", action="store_true", help="remove the cache's own files, and nothing else in the folder")


def _models(options: argparse.Namespace) -> int:
    from clipbench.models.zoo import LITE_DIM, LITE_IMAGE_SIZE, open_clip_configs, zoo

    line = "{:16} {:14} {:>12} {:>5} {:>5} {:>9}  {}".format
    print(line("name", "open_clip", "params", "input", "dim", "download", "in the study"))
    print(line("lite", "-", "", LITE_IMAGE_SIZE, LITE_DIM, "none", "no (embedded smoke model, the default)"))
    for row in zoo().values():
        size, study = f"{row.download_bytes / 1e6:,.0f} MB", "yes" if row.study else "no"
        print(line(row.name, row.open_clip, f"{row.params:,}", row.image_size, row.embed_dim, size, study))
    rest = sorted(set(open_clip_configs()) - {row.open_clip for row in zoo().values()})
    if options.all:
        print("\n".join(rest))
    else:
        print(f"and {len(rest)} other architectures of open_clip (clipbench models --all), or package.module:factory")
    return 0


def _report(options: argparse.Namespace) -> int:
    from clipbench.data.dataset import DataOptions, Dataset
    from clipbench.experiments import all_experiments
    from clipbench.judge.references import judge
    from clipbench.parts import held, latest_run
    from clipbench.report.ranking import rankings_by_experiment
    from clipbench.report.summary import write_report
    from clipbench.storage import dump_json, read_run, run_to_json, write_atomically

    largest, output, parts = options.max_file_size * 1_000_000, options.output, False
    if options.run.is_dir():
        output = output or options.run
        run, parts = latest_run(options.run, largest)
        beside = {r.key: {s.experiment: s for s in run.results if s.key.model == r.key.model} for r in run.results}
        if parts:
            run = replace(run, results=tuple(replace(r, verdicts=judge(r, beside[r.key])) for r in run.results))
    else:
        run = read_run(options.run, largest)
    if output is None:
        raise UsageError(f"where to? {options.run} is a file: give a folder with -o DIR")
    pictured = {(r.experiment, r.dataset.name) for r in run.results if r.matrices}
    datasets: dict[str, Dataset] = {}
    for name, one in all_experiments().items():
        for source in one.sources(DataOptions()):
            if (name, source.name) in pictured:
                with suppress(DataUnavailableError):  # the figures show ids in place of pictures
                    datasets[source.name] = source.load()
    with held(output) if options.run.is_dir() else nullcontext():
        if parts:
            write_atomically(output / "run.json", dump_json({"clipbench": run_to_json(run)}))
        undrawn, unwritten = write_report(run, rankings_by_experiment(run), output, datasets)
    for line in undrawn:
        print(f"clipbench: no figure: {sanitize(line)}", file=sys.stderr)
    if unwritten:
        raise ClipbenchError(f"{output} is not complete: {'; '.join(unwritten)}")
    print(f"wrote {output / 'summary.md'}, summary.html and figures/" + (", run.json" if parts else ""))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from clipbench.judge.baseline import compare_with, read_base
    from clipbench.judge.compare import with_anchor
    from clipbench.judge.tolerances import read_rules, with_options
    from clipbench.report.comparison import to_github, to_json, to_pull_request, to_text
    from clipbench.storage import read_document, run_of, timings_of

    if options.accept and not options.reason.strip():
        raise UsageError("--accept needs --reason TEXT: why is that accepted?")
    largest = options.max_file_size * 1_000_000
    before, after = read_base(options.base, "baseline", largest), read_document(options.head, largest)
    base, head = before.run, run_of(options.head, after)
    known = [metric for run in (base, head) for result in run.results for metric in result.scores]
    rules = with_options(read_rules(options.rules), options.tolerance, options.alpha, known)
    rules = replace(rules, row_limit=options.max_cosine_distance)
    only = [name for pattern in options.only for name in pattern.split(",") if name]
    accepted = dict.fromkeys(options.accept, options.reason)
    comparison = compare_with(
        before, head, rules, timings_of(after), only, accepted, options.speed, rows=options.head.parent
    )
    if options.anchor is not None:
        anchor = read_base(options.anchor, "anchor", largest)
        comparison = with_anchor(comparison, compare_with(anchor, head, rules, None, only, {}, options.speed))
    comparison = _with_index(comparison, options, base, head)
    command = _compare_command(options)
    if options.format == "github":
        sys.stdout.write(to_github(comparison))
        if step_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(step_summary).open("a", encoding="utf-8") as file:
                file.write(to_pull_request(comparison, command))
    else:
        formats = {"text": to_text, "json": to_json, "markdown": to_pull_request}
        sys.stdout.write(formats[options.format](comparison, command))
    return comparison.exit_code


def _compare_command(options: argparse.Namespace) -> str:
    """The command that makes this comparison again."""
    words = ["clipbench", "compare", str(options.base), str(options.head)]
    words += [word for text in options.tolerance for word in ("--tolerance", text)]
    words += ["--alpha", f"{options.alpha:g}"] if options.alpha is not None else []
    if options.max_file_size * 1_000_000 != LARGEST_RUN_BYTES:
        words += ["--max-file-size", str(options.max_file_size)]
    for option in ("only", "accept"):
        words += [word for text in getattr(options, option) for word in (f"--{option}", text)]
    words += ["--reason", options.reason] if options.reason else []
    words += ["--anchor", str(options.anchor)] if options.anchor else []
    words += ["--speed", options.speed] if options.speed != "note" else []
    words += ["--max-cosine-distance", f"{options.max_cosine_distance:g}"] if options.max_cosine_distance else []
    words += ["--rules", str(options.rules)] if options.rules else []
    words += ["--index", *map(str, options.index)] if options.index is not None else []
    words += ["--queries", *map(str, options.queries)] if options.queries else []
    words += [word for text in options.model for word in ("--model", text)]
    words += [word for text in options.pretrained for word in ("--pretrained", text)]
    words += ["--activation", options.activation] if options.activation else []
    words += ["--offline"] if options.offline else []
    return shlex.join(words)


def _with_index(comparison: "Comparison", options: argparse.Namespace, base: "Run", head: "Run") -> "Comparison":
    """The comparison with the answer to --index, which fails, passes or is inconclusive like any verdict."""
    from clipbench.judge.reindex import QueryModels, reindex_answers
    from clipbench.report.comparison import index_verdicts
    from clipbench.types import by_severity

    if options.index is None:
        if options.queries:
            raise UsageError(
                "--queries goes with --index OLD.npy [NEW.npy]; without an index there is nothing to search"
            )
        return comparison
    from clipbench.options import is_offline  # loads the data sets: only for an index

    offline = options.offline or is_offline()
    by = QueryModels(options.model, options.pretrained, options.activation, offline)
    index = reindex_answers((options.base, base), (options.head, head), options.index, options.queries, by)
    return replace(comparison, verdicts=by_severity([*comparison.verdicts, *index_verdicts(index)]), index=index)


def _power(options: argparse.Namespace) -> int:
    from clipbench.judge.tolerances import check_alpha
    from clipbench.statistics import POWER_FLIPS, POWER_SIZES, TOGETHER, items_that_decide, power_table

    tolerance, alpha, drop = options.tolerance, options.alpha, options.drop
    check_alpha(alpha, "--alpha")
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance}: expected a fraction such as 0.01")
    if drop is not None and not 0 < drop < 1:
        raise UsageError(f"--drop {drop}: expected a fraction between 0 and 1, such as 0.01")
    if options.items is not None and options.items < 1:
        raise UsageError(f"--items {options.items}: expected 1 or more")
    if options.flips is not None and not 0 <= options.flips < 1:
        raise UsageError(f"--flips {options.flips}: expected a fraction from 0 up to 1, such as 0.01")
    flips = POWER_FLIPS if options.flips is None else (options.flips,)
    lines = [f"9 times in 10, one-sided alpha {alpha:g}; six: the worst of six metrics that are judged together."]
    lines += ["flips: share of items that flip without any drop, half of them either way."]
    if drop is not None:
        lines += [f"A drop of {drop:g} is decided (excluded where there is none) from so many items on:", ""]
        lines += [f"{'flips':>6}  {'one metric':>10}  {'six':>7}"]
        for share in flips:
            one, six = (items_that_decide(share, drop, alpha, tests) for tests in (1, TOGETHER))
            lines.append(f"{share:>6g}  {one:>10,}  {six:>7,}")
    else:
        lines += [
            f"excluded: so large a drop, where there is none; failed: by the gate, with an allowed drop of {tolerance:g}.",
            "",
        ]
        lines += [
            f"{'n':>7}  {'flips':>6}  {'excluded: one metric':>20}  {'six':>6}  {'failed: one metric':>18}  {'six':>6}"
        ]
        for row in power_table(tolerance, alpha, [options.items] if options.items else POWER_SIZES, flips):
            failed = ["none" if found is None else f"{found:.4f}" for found in row.failed]
            excluded = f"{row.excluded[0]:>20.4f}  {row.excluded[1]:>6.4f}"
            lines.append(f"{row.n:>7,}  {row.flips:>6g}  {excluded}  {failed[0]:>18}  {failed[1]:>6}")
    print("\n".join(lines))
    return 0


def _ab(options: argparse.Namespace) -> int:
    from clipbench.ab import Label, Worker, ab_json, ab_text, check_request, compare_speed, find_python

    check_request(options.passed, options.rounds, options.tolerance)
    start: dict[Label, Callable[[], Worker]] = {
        "base": partial(Worker, "base", find_python("base", options.base), options.passed),
        "head": partial(Worker, "head", find_python("head", options.head), options.passed),
    }
    report = compare_speed(
        start,
        options.rounds,
        tolerance=options.tolerance,
        progress=lambda line: print(f"clipbench ab: {line}", file=sys.stderr),
    )
    sys.stdout.write((ab_json if options.format == "json" else ab_text)(report))
    return report.exit_code


def _cache(options: argparse.Namespace) -> int:
    from clipbench.embed.store import clear, describe

    setting = os.environ.get(CACHE_VARIABLE, "")
    if options.folder is None and not setting:
        raise UsageError(f"which cache? Give its folder (clipbench cache DIR), or set {CACHE_VARIABLE}")
    folder = (options.folder or Path(setting)).expanduser()
    if options.clear:
        freed = clear(folder)
        print(f"cleared {folder}: {_size(freed)} freed" if freed else f"nothing to clear in {folder}")
        return 0
    found = describe(folder)
    if not found.exists:
        print(f"no cache in {found.path.parent}")
        return 0
    print(f"folder   {found.path.parent}")
    print(f"entries  {found.entries:,}")
    print(f"size     {_size(found.bytes)}")
    if found.entries:
        print(f"used     {found.oldest_use} to {found.newest_use} UTC")
    return 0


def _size(n: int) -> str:
    return f"{n / (1 << 20):,.1f} MiB"
