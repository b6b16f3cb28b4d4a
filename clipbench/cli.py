# PYTHON_ARGCOMPLETE_OK
"""The command line: every command's options, and what it prints. Each imports what it needs when it runs: `--help` costs nothing."""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipbench.errors import UNREADABLE, ClipbenchError, DataUnavailableError, UsageError, sanitize
from clipbench.paths import CACHE_VARIABLE, LARGEST_RUN_BYTES, expanded

if TYPE_CHECKING:
    from clipbench.judge.compare import Comparison
    from clipbench.settings import Settings
    from clipbench.types import JsonObject, Run

NEEDS = {"hf": "clipbench[hf]", "onnx": "clipbench[onnx]"}
"""The extra of a kind of model that needs one."""

PROJECT = ("run", "check", "init")
"""Commands that read their own arguments."""

FORMATS = ("text", "json", "markdown", "github")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 usage or unreadable input (one line on standard error).

    `compare` and `ab` also return 1 when head fails and 3 when the comparison is inconclusive.
    """
    own, passed = split_passed(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow: eval "$(register-python-argcomplete clipbench)"
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(own[:1] if own[:1] and own[0] in PROJECT else own)
    options.passed = own[1:] if options.command in PROJECT else passed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal of few letters costs no verdict
    commands: dict[str, Callable[[argparse.Namespace], int]]
    commands = {
        **dict.fromkeys(PROJECT, _project),
        "list": _list,
        "models": _models,
        "report": _report,
        "compare": _compare,
        "power": _power,
        "ab": _ab,
        "cache": _cache,
    }
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
        description="Benchmark and regression suite for CLIP models. `clipbench run`, or `pytest benchmarks`, measures.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="this version, that of its run files and of its metrics"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "run", add_help=False, help="run the benchmarks here: `pytest benchmarks` without the host's conftest"
    )
    commands.add_parser("check", add_help=False, help="say in seconds whether settings, data and encoder are in order")
    commands.add_parser("init", add_help=False, help="write settings and a CI workflow for this repository")
    commands.add_parser(
        "list",
        help="list experiments, data sets and models, and what each needs",
        description="What `pytest benchmarks` can measure: --experiments takes the names, --model the models. Nothing is fetched.",
    )
    models = commands.add_parser("models", help="list the models that `pytest benchmarks --model` knows")
    models.add_argument("--all", action="store_true", help="also every other architecture of open_clip")
    _add_format(models)
    _add_report(commands)
    _add_compare(commands)
    _add_power(commands)
    _add_ab(commands)
    _add_cache(commands)
    return parser


class _Version(argparse.Action):
    """Looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        from clipbench.experiments import METRIC_VERSION
        from clipbench.storage import SCHEMA_VERSION

        found = "of a checkout"
        with suppress(PackageNotFoundError):
            found = version("clipbench")
        print(f"clipbench {found} (run schema {SCHEMA_VERSION}, metrics {METRIC_VERSION})")
        parser.exit()


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "report",
        help="write the summary of a run file again; of two, what changed; of more, their history",
        description="Runs are ordered by the time at which they were made, oldest first; the last one is reported. A folder stands for "
        "its latest run, also of a session that was killed, where it is one of results; else for all runs in it (.benchmarks).",
    )
    add = report.add_argument
    # fmt: off
    add("runs", type=Path, nargs="+", metavar="RUN", help="a run's JSON file, or a folder of results or runs")
    add("-o", "--output", type=Path, metavar="DIR", help="folder to write into (default: the folder of results itself)")
    add("--no-images", action="store_true", help="leave pictures out")
    add("--redact", action="store_true", help="leave out pictures, captions and the names of items")
    # fmt: on
    _add_largest(report)


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
    add("--speed", choices=("off", "note", "gate"), help="what a change of speed does: off, note (default) or gate")
    add("--max-cosine-distance", type=float, metavar="D", help="fail where any item's row moved by more than this cosine distance")
    add("--format", choices=FORMATS, default="text", help="text (default), json, markdown or github")
    add("--settings", metavar="FILE",
        help="tolerances, budgets and items that must pass, over those that ship (default: clipbench.toml, or [tool.clipbench] of "
        "pyproject.toml, here or above; none: no file)")
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
    _add_format(power)


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=("text", "json"), default="text", help="text (default) or json")


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
    command = commands.add_parser(
        "cache",
        help="show or clear the folder in which `pytest benchmarks --cache DIR` keeps rows",
        description="Exit codes: 0 shown or cleared, also where there is nothing; 2 no folder given, or a cache that is damaged or "
        "in use: then nothing is removed.",
    )
    _add_format(command)
    add = command.add_argument
    add("folder", type=Path, nargs="?", metavar="DIR", help=f"the cache's folder (default: ${CACHE_VARIABLE})")
    add("--clear", action="store_true", help="remove the cache's own files, and nothing else in the folder")


def _project(options: argparse.Namespace) -> int:
    from clipbench import project

    return {"run": project.run, "check": project.check, "init": project.init}[options.command](options.passed)


def _models(options: argparse.Namespace) -> int:
    from clipbench.models.zoo import known_models, other_architectures

    rows, rest = known_models(), other_architectures()
    rows += rest if options.all else []
    if options.format == "json":
        others = [] if options.all else [row["name"] for row in rest]
        return _print_json({"models": rows, "other_architectures": others})
    header = ("name", "tag", "params", "input", "GFLOPs", "dim", "ImageNet", "download", "cached", "in the study")
    _print_table(header, [_model_row(row) for row in rows])
    if not options.all:
        print(f"and {len(rest)} other architectures of open_clip (clipbench models --all), or package.module:factory")
    print("lite: the embedded smoke model, the default. ImageNet: published zero-shot accuracy of OpenAI's weights.")
    return 0


def _list(options: argparse.Namespace) -> int:
    from clipbench.data.dataset import DataOptions
    from clipbench.data.folders import ZERO_SHOT_ROOT, shipped_class_sets
    from clipbench.data.own import DATASET_ROOT
    from clipbench.experiments import all_experiments
    from clipbench.models.grammar import EXPECTED
    from clipbench.models.zoo import zoo

    line = "  {:18} {:52} {}".format
    print("experiments (--experiments NAMES)")
    for name, one in all_experiments().items():
        here = ", ".join(source.name for source in one.sources(DataOptions())).replace("none", "the model alone")
        given = f"--{one.root.option} {one.root.metavar}" if one.root is not None else ""
        given += f" or --{DATASET_ROOT.option} NAME=PATH" if one.root == ZERO_SHOT_ROOT else ""
        needs = f"runs on {here}" + (f", or {given}" if given else "") if here else f"needs {given}"
        metrics = [spec.name for spec in one.metrics if spec.headline] or [spec.name for spec in one.metrics]
        print(line(name, needs, ", ".join(metrics[:3])))
    print("data sets (--dataset NAME=PATH, and --coco, --roco, --zero-shot)")
    print(line("yours", "class folders, metadata.jsonl or .csv,", "COCO's annotations, webdataset shards"))
    print(line("with class names", "that ship, by NAME", ", ".join(shipped_class_sets())))
    print(line("by WordNet ids", "ImageNet's names", "imagenetv2, imagenet-r, imagenet-a, imagenet-sketch"))
    print("models (--model [NAME=]KIND:REST)")
    print(line("lite", "the embedded smoke model, the default", "clipbench[demo]"))
    print(line("OpenAI's", "by name; study, all", ", ".join(zoo())))
    for kind, expected in EXPECTED.items():
        needs = f"; needs {NEEDS[kind]}" if kind in NEEDS else ""
        print(f"  {kind:18} {expected}{needs}")
    print(line("package.module:f", "your own encoder", "an object with encode_images and encode_texts"))
    print(line("FILE.txt", "ARCH,TAG a line", "as CLIP_benchmark's models.txt"))
    return 0


def _model_row(row: "JsonObject") -> tuple[str, ...]:
    def text(name: str, style: str) -> str:
        return "-" if row.get(name) is None else format(row[name], style)

    size = "-" if row.get("download_bytes") is None else f"{row['download_bytes'] / 1e6:,.0f} MB"
    words = ["-" if row.get(name) is None else "yes" if row[name] else "no" for name in ("cached", "study")]
    numbers = (
        text("params", ",d"),
        text("input", "d"),
        text("gflops", ".1f"),
        text("dim", "d"),
        text("imagenet", ".3f"),
    )
    return (row["name"], row.get("tag") or "-", *numbers, size, *words)


def _print_json(entry: "JsonObject") -> int:
    import json

    print(json.dumps(entry, indent=1, sort_keys=True, allow_nan=False))
    return 0


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, plain and aligned in a pipe."""
    cells = [[sanitize(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*header)
        for row in cells:
            table.add_row(*map(Text, row))  # text, never rich's markup
        Console().print(table)
        return
    widths = [max(len(row[k]) for row in (header, *cells)) for k in range(len(header))]
    for row in (list(header), *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _report(options: argparse.Namespace) -> int:
    from clipbench.data.dataset import DataOptions, Dataset
    from clipbench.experiments import all_experiments
    from clipbench.judge.compare import compare_runs
    from clipbench.judge.references import judge
    from clipbench.judge.tolerances import read_rules
    from clipbench.parts import held
    from clipbench.report.ranking import rankings_by_experiment
    from clipbench.report.story import Compared
    from clipbench.report.summary import write_report
    from clipbench.report.thumbs import FOLDER
    from clipbench.storage import dump_json, run_to_json, timings_of, write_atomically

    read = _read_runs(options.runs, options.max_file_size * 1_000_000)
    output = options.output or (options.runs[0] if len(options.runs) == len(read) == 1 else None)
    if output is None or not (options.output or output.is_dir()):
        raise UsageError("where to? give a folder with -o DIR; a folder of results alone is written into itself")
    if len(read) > 2 or len(options.runs) < len(read):  # two that are named stand as they are: base, head
        read.sort(key=lambda one: one.run.time)
    *before, last = read
    run, earlier = last.run, [one.run for one in before]
    if last.is_unfinished:
        beside = {r.key: {s.experiment: s for s in run.results if s.key.model == r.key.model} for r in run.results}
        run = replace(run, results=tuple(replace(r, verdicts=judge(r, beside[r.key])) for r in run.results))
    compared = None
    if len(read) == 2:
        compared = Compared(earlier[0], compare_runs(earlier[0], run, read_rules()), before[0].path.name)
        earlier = []
    pictured = {(r.experiment, r.dataset.name) for r in run.results if r.matrices}
    datasets: list[Dataset] = []
    for name, one in all_experiments().items():
        for source in one.sources(DataOptions()):
            if (name, source.name) in pictured:
                with suppress(DataUnavailableError):  # ids stand in the place of pictures
                    datasets.append(source.load())
    shows: Literal["all", "texts", "numbers"] = "numbers" if options.redact else "texts" if options.no_images else "all"
    with held(output) if options.runs[0].is_dir() else nullcontext():
        if last.is_unfinished:
            write_atomically(output / "run.json", dump_json({"clipbench": run_to_json(run)}))
        undrawn, unwritten = write_report(
            run,
            rankings_by_experiment(run),
            output,
            datasets,
            compared=compared,
            timings=timings_of(last.document),
            earlier=earlier,
            folders=list(dict.fromkeys(one.path.parent / FOLDER for one in read)),
            shows=shows,
        )
    for line in undrawn:
        print(f"clipbench: no figure: {sanitize(line)}", file=sys.stderr)
    if unwritten:
        raise ClipbenchError(f"{output} is not complete: {'; '.join(unwritten)}")
    print(f"wrote {output / 'summary.md'}, summary.html and figures/" + (", run.json" if last.is_unfinished else ""))
    return 0


@dataclass(frozen=True)
class _Read:
    """A run that was read, and where from. `is_unfinished`: put together from what a session that was killed left."""

    path: Path
    document: "JsonObject"
    run: "Run"
    is_unfinished: bool = False


def _read_runs(given: Sequence[Path], largest: int) -> list[_Read]:
    """The runs of files, the latest one of folders of results, and all of other folders. Raises: UsageError for one without any."""
    from clipbench.parts import OPENING, latest_run, unfinished
    from clipbench.storage import read_document, run_of

    found: list[_Read] = []
    for path in given:
        files = [path]
        if unfinished(path) or (path / OPENING).exists():
            run, is_unfinished = latest_run(path, largest)
            if is_unfinished:
                found.append(_Read(path / "run.json", {}, run, True))
                continue
            files = [path / "run.json"]
        elif (path / "run.json").exists():
            files = [path / "run.json"]
        elif path.is_dir():
            files = [file for file in sorted(path.rglob("*.json")) if _holds_run(file)]
            if not files:
                raise UsageError(f"{path} holds no run; make some with `pytest benchmarks --benchmark-autosave`")
        documents = [(file, read_document(file, largest)) for file in files]
        found += [_Read(file, document, run_of(file, document)) for file, document in documents]
    return found


def _holds_run(path: Path) -> bool:
    """Whether a file looks like a run: a folder may hold others."""
    from clipbench.paths import read_json

    try:
        found = read_json(path, LARGEST_RUN_BYTES)
    except ClipbenchError:
        return False
    return isinstance(found, dict) and "clipbench" in found


def _compare(options: argparse.Namespace) -> int:
    from clipbench.judge.baseline import compare_with, read_base
    from clipbench.judge.compare import with_anchor
    from clipbench.judge.tolerances import with_options
    from clipbench.report.comparison import to_github, to_json, to_pull_request, to_text
    from clipbench.report.thumbs import FOLDER, Gallery
    from clipbench.storage import read_document, run_of, timings_of

    if options.accept and not options.reason.strip():
        raise UsageError("--accept needs --reason TEXT: why is that accepted?")
    largest = options.max_file_size * 1_000_000
    before, after = read_base(options.base, "baseline", largest), read_document(options.head, largest)
    base, head = before.run, run_of(options.head, after)
    known = [metric for run in (base, head) for result in run.results for metric in result.scores]
    settings = _settings(options.settings)
    options.settings = settings.path and str(settings.path)
    options.speed = options.speed or settings.options.get("speed", "note")
    if options.max_cosine_distance is None:
        options.max_cosine_distance = settings.options.get("max_cosine_distance")
    rules = with_options(settings.judged_by(), options.tolerance, options.alpha, known)
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
    gallery = Gallery([head, base], [path.parent / FOLDER for path in (options.head, options.base)], pictures=False)
    markdown, text = partial(to_pull_request, gallery=gallery, head=head), partial(to_text, head=head)
    if options.format == "github":
        sys.stdout.write(to_github(comparison))
        if step_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(step_summary).open("a", encoding="utf-8") as file:
                file.write(markdown(comparison, command))
    else:
        formats: dict[str, Callable[[Comparison, str], str]] = {
            "text": text,
            "json": to_json,
            "markdown": markdown,
        }
        sys.stdout.write(formats[options.format](comparison, command))
    return comparison.exit_code


def _settings(given: str | None) -> "Settings":
    """The settings that a command line names, or those of the project that it is called in."""
    from clipbench.settings import settings_for

    def declared() -> Mapping[str, Mapping[str, Any]]:  # loads the experiments: only for a file
        from clipbench.options import declared_options

        return declared_options()

    return settings_for(given, Path.cwd(), declared)


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
    words += ["--settings", options.settings] if options.settings else []
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
    entry: JsonObject = {"alpha": alpha, "tests_together": TOGETHER}
    lines = [f"9 times in 10, one-sided alpha {alpha:g}; six: the worst of six metrics that are judged together."]
    lines += ["flips: share of items that flip without any drop, half of them either way."]
    if drop is not None:
        found = [(share, *(items_that_decide(share, drop, alpha, tests) for tests in (1, TOGETHER))) for share in flips]
        entry |= {"drop": drop, "items": [{"flips": f, "one_metric": one, "six": six} for f, one, six in found]}
        lines += [f"A drop of {drop:g} is decided (excluded where there is none) from so many items on:", ""]
        lines += [f"{'flips':>6}  {'one metric':>10}  {'six':>7}"]
        lines += [f"{share:>6g}  {one:>10,}  {six:>7,}" for share, one, six in found]
    else:
        lines += [
            f"excluded: so large a drop, where there is none; failed: by the gate, with an allowed drop of {tolerance:g}.",
            "",
        ]
        lines += [
            f"{'n':>7}  {'flips':>6}  {'excluded: one metric':>20}  {'six':>6}  {'failed: one metric':>18}  {'six':>6}"
        ]
        table = power_table(tolerance, alpha, [options.items] if options.items else POWER_SIZES, flips)
        entry |= {"tolerance": tolerance, "sizes": [asdict(row) for row in table]}
        for row in table:
            failed = ["none" if found is None else f"{found:.4f}" for found in row.failed]
            excluded = f"{row.excluded[0]:>20.4f}  {row.excluded[1]:>6.4f}"
            lines.append(f"{row.n:>7,}  {row.flips:>6g}  {excluded}  {failed[0]:>18}  {failed[1]:>6}")
    if options.format == "json":
        return _print_json(entry)
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
        start, options.rounds, options.tolerance, lambda line: print(f"clipbench ab: {line}", file=sys.stderr)
    )
    sys.stdout.write((ab_json if options.format == "json" else ab_text)(report))
    return report.exit_code


def _cache(options: argparse.Namespace) -> int:
    from clipbench.embed.store import clear, describe

    setting = os.environ.get(CACHE_VARIABLE, "")
    if options.folder is None and not setting:
        raise UsageError(f"which cache? Give its folder (clipbench cache DIR), or set {CACHE_VARIABLE}")
    folder = expanded(options.folder or setting)
    if options.clear:
        freed = clear(folder)
        if options.format == "json":
            return _print_json({"folder": str(folder), "freed_bytes": freed})
        print(f"cleared {folder}: {_size(freed)} freed" if freed else f"nothing to clear in {folder}")
        return 0
    found = describe(folder)
    if options.format == "json":
        times = {"oldest_use": str(found.oldest_use), "newest_use": str(found.newest_use)} if found.entries else {}
        about = {
            "folder": str(found.path.parent),
            "exists": found.exists,
            "entries": found.entries,
            "bytes": found.bytes,
        }
        return _print_json(about | times)
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
