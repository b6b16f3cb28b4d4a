"""`clipbench compare` and `clipbench power`: their options, and the text that they print. Imports no torch."""

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipbench.judge.compare import Comparison
    from clipbench.result import Run

FORMATS = ("text", "json", "markdown", "github")


def add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the two commands to the command line."""
    compare = commands.add_parser(
        "compare",
        help="compare two runs: pass, fail, or cannot tell",
        description="Exit codes: 0 pass, 1 fail, 2 usage or unreadable input, 3 undecided (a declared metric is inconclusive, not "
        "comparable, or something the base had is missing).",
    )
    compare.add_argument("base", type=Path, metavar="BASE.json", help="the run to hold the other one to")
    compare.add_argument("head", type=Path, metavar="HEAD.json", help="the run that is judged")
    compare.add_argument("--tolerance", action="append", default=[], metavar="[METRIC=]VALUE",
        help="allowed drop, a fraction: of every declared metric, or of one; repeatable")  # fmt: skip
    compare.add_argument("--alpha", type=float, metavar="A", help="one-sided error rate (default: 0.05)")
    compare.add_argument("--only", default="", metavar="EXPERIMENT[,...]", help="compare these experiments alone")
    compare.add_argument("--format", choices=FORMATS, default="text", help="text (default), json, markdown or github")
    compare.add_argument("--rules", type=Path, metavar="FILE.toml",
        help="declared metrics, budgets and items that must pass, in place of fixtures/tolerances.toml")  # fmt: skip
    compare.add_argument("--index", type=Path, nargs="*", metavar="ROWS.npy",
        help="must I re-index? OLD.npy [NEW.npy] with --queries: rows of your index by the base model, and the same items by the "
        "head model; no file: the rows that both runs saved with --save-embeddings")  # fmt: skip
    compare.add_argument("--queries", type=Path, nargs="+", default=[], metavar="TEXTS.txt",
        help="texts, one per line, encoded here by --model (imports torch); or OLD.npy NEW.npy, their rows")  # fmt: skip
    compare.add_argument("--model", action="append", default=[], metavar="NAME",
        help="what encodes TEXTS.txt, as `pytest benchmarks --model`; twice where base and head differ, base's first. A run file "
        "only says which model it was, it never loads one")  # fmt: skip
    compare.add_argument("--pretrained", action="append", default=[], metavar="TAG|PATH|random[:SEED]",
        help="its weights; twice where base and head differ, base's first")  # fmt: skip
    compare.add_argument(
        "--activation", choices=("quickgelu", "gelu"), help="its activation, where a checkpoint does not say it"
    )
    compare.add_argument(
        "--offline", action="store_true", help="take its weights from the caches only (HF_HUB_OFFLINE=1 too)"
    )
    power = commands.add_parser("power", help="print which drop the gate detects nine times in ten, by number of items")
    power.add_argument("--tolerance", type=float, default=0.01, metavar="VALUE", help="allowed drop (default: 0.01)")
    power.add_argument("--alpha", type=float, default=0.05, metavar="A", help="one-sided error rate (default: 0.05)")


def run_compare(options: argparse.Namespace) -> tuple[int, str, str]:
    """Return (exit code, output, step summary in Markdown: "" unless the format is github).

    Raises: ClipbenchError for a file that is no run and for options that cannot be meant.
    """
    from clipbench.judge.compare import compare_runs
    from clipbench.judge.rules import read_rules, with_options
    from clipbench.report.comparison import to_github, to_json, to_pull_request, to_text
    from clipbench.run_file import read_document, run_of, timings_of

    before, after = read_document(options.base), read_document(options.head)
    base, head = run_of(options.base, before), run_of(options.head, after)
    known = [metric for run in (base, head) for result in run.results for metric in result.metrics]
    rules = with_options(read_rules(options.rules), options.tolerance, options.alpha, known)
    only = tuple(name for name in options.only.split(",") if name)
    comparison = compare_runs(base, head, rules, timings_of(before), timings_of(after), only)
    comparison = _with_index(comparison, options, base, head)
    command = _command(options)
    output = {
        "text": lambda: to_text(comparison, command),
        "json": lambda: to_json(comparison, command),
        "markdown": lambda: to_pull_request(comparison, command),
        "github": lambda: to_github(comparison),
    }[options.format]()
    summary = to_pull_request(comparison, command) if options.format == "github" else ""
    return comparison.exit_code, output, summary


def power_text(tolerance: float, alpha: float) -> str:
    """Return the power table. Raises: UsageError for a tolerance or alpha out of range."""
    from clipbench.errors import UsageError
    from clipbench.judge.rules import check_alpha
    from clipbench.statistics import power_table

    check_alpha(alpha, "--alpha")
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance}: expected a fraction such as 0.01")
    lines = [
        f"Drop of a rate that is detected 9 times in 10 (one metric, one-sided alpha {alpha:g}, allowed drop {tolerance:g}).",
        "flips: share of items that flip without any drop, half of them either way.",
        "",
        f"{'n':>7}  {'flips':>6}  {'excluded if none flips':>22}  {'shown to drop':>13}  {'failed by the gate':>18}",
    ]
    for row in power_table(tolerance, alpha):
        cells = ["none" if drop is None else f"{drop:.4f}" for drop in (row.shown, row.failed)]
        lines.append(f"{row.n:>7,}  {row.discordance:>6.2f}  {row.clean_bound:>22.4f}  {cells[0]:>13}  {cells[1]:>18}")
    return "\n".join(lines) + "\n"


def _command(options: argparse.Namespace) -> str:
    words = ["clipbench", "compare", str(options.base), str(options.head)]
    words += [word for text in options.tolerance for word in ("--tolerance", text)]
    words += ["--alpha", f"{options.alpha:g}"] if options.alpha is not None else []
    words += ["--only", options.only] if options.only else []
    words += ["--rules", str(options.rules)] if options.rules else []
    words += ["--index", *map(str, options.index)] if options.index is not None else []
    words += ["--queries", *map(str, options.queries)] if options.queries else []
    words += [word for text in options.model for word in ("--model", text)]
    words += [word for text in options.pretrained for word in ("--pretrained", text)]
    words += ["--activation", options.activation] if options.activation else []
    words += ["--offline"] if options.offline else []
    return shlex.join(words)


def _with_index(comparison: "Comparison", options: argparse.Namespace, base: "Run", head: "Run") -> "Comparison":
    """The comparison with the answer to --index, which fails, passes or is undecided like any finding."""
    from clipbench.errors import UsageError
    from clipbench.judge.compare import by_severity
    from clipbench.reindex import QueryModels, reindex_answers
    from clipbench.report.comparison import index_findings

    if options.index is None:
        if options.queries:
            raise UsageError(
                "--queries goes with --index OLD.npy [NEW.npy]; without an index there is nothing to search"
            )
        return comparison
    offline = options.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    by = QueryModels(options.model, options.pretrained, options.activation, offline)
    index = reindex_answers((options.base, base), (options.head, head), options.index, options.queries, by)
    return replace(comparison, findings=by_severity([*comparison.findings, *index_findings(index)]), index=index)
