"""`clipbench ab`: its options, and the text that it prints. Imports no torch."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial


def add_ab(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    ab = commands.add_parser(
        "ab",
        usage="clipbench ab --base PYTHON --head PYTHON [--rounds N] [--tolerance VALUE] [--format text|json] [-- OPTIONS]",
        help="compare the speed of two environments on this machine, their processes taking turns",
        description="Options after -- are those of `pytest benchmarks` that decide what is timed: --model, --pretrained, "
        "--activation, --device, --precision, --batch-size, --offline. Exit codes: 0 a loss beyond the tolerance is excluded, 1 it "
        "is shown, 2 usage or a process that failed, 3 undecided.",
    )
    ab.add_argument(
        "--base", required=True, metavar="PYTHON", help="the environment to hold the other one to: its Python"
    )
    ab.add_argument("--head", required=True, metavar="PYTHON", help="the environment that is judged: its Python")
    ab.add_argument("--rounds", type=int, default=7, metavar="N", help="pairs of fresh processes (default: 7)")
    ab.add_argument("--tolerance", type=float, default=0.05, metavar="VALUE",
        help="allowed loss of speed or growth of memory, a fraction (default: 0.05)")  # fmt: skip
    ab.add_argument("--format", choices=("text", "json"), default="text", help="text (default) or json")


def split_passed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (clipbench's own arguments, those after `--`, which go to both processes)."""
    given = list(arguments)
    if given[:1] != ["ab"] or "--" not in given:
        return given, []
    place = given.index("--")
    return given[:place], given[place + 1 :]


def run_ab(options: argparse.Namespace, passed: Sequence[str], say: Callable[[str], None]) -> tuple[int, str]:
    """Return (exit code, output); `say` is told how far it is.

    Raises: UsageError for options that cannot be meant; AbError for a process that fails.
    """
    from clipbench.ab import Worker, check_request, compare_speed, find_python
    from clipbench.report.ab_text import ab_json, ab_text

    check_request(passed, options.rounds, options.tolerance)
    start = {
        "base": partial(Worker, "base", find_python("base", options.base), passed),
        "head": partial(Worker, "head", find_python("head", options.head), passed),
    }
    report = compare_speed(start, rounds=options.rounds, tolerance=options.tolerance, say=say)  # type: ignore[arg-type]  # labels
    return report.exit_code, (ab_json if options.format == "json" else ab_text)(report)
