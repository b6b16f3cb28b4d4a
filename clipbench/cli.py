"""The command line. Each command imports what it needs when it runs: `clipbench --help` costs nothing."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clipbench.ab_command import add_ab, run_ab, split_passed
from clipbench.cache_command import CACHE_VARIABLE, add_cache, run_cache
from clipbench.compare_command import add_compare
from clipbench.errors import ClipbenchError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 usage or unreadable input (one line on standard error).

    `compare` and `ab` also return 1 when head fails and 3 when it cannot be told.
    """
    parser = argparse.ArgumentParser(
        prog="clipbench",
        description="Benchmark and regression suite for CLIP models. The measuring itself is `pytest benchmarks`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    models = commands.add_parser("models", help="list the models that `pytest benchmarks --model` knows")
    models.add_argument("--all", action="store_true", help="also every other architecture of open_clip")
    report = commands.add_parser("report", help="write the summary and figures of a run file again")
    report.add_argument("run", type=Path, help="a run's JSON file")
    report.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    add_compare(commands)
    add_ab(commands)
    add_cache(commands)
    own, passed = split_passed(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(own)
    options.passed = passed
    try:
        commands_by_name = {
            "models": _models,
            "report": _report,
            "compare": _compare,
            "power": _power,
            "ab": _ab,
            "cache": _cache,
        }
        return commands_by_name[options.command](options)
    except (ClipbenchError, OSError) as error:
        print(f"clipbench: error: {error}", file=sys.stderr)
        return 2


def _models(options: argparse.Namespace) -> int:
    from clipbench.models.zoo import LITE_DIM, LITE_IMAGE_SIZE, open_clip_configs, zoo

    print(f"{'name':16} {'open_clip':14} {'params':>12} {'input':>5} {'dim':>5} {'download':>9}  in the study")
    print(
        f"{'lite':16} {'-':14} {'':>12} {LITE_IMAGE_SIZE:>5} {LITE_DIM:>5} {'none':>9}  no (embedded smoke model, the default)"
    )
    for row in zoo().values():
        size = f"{row.download_bytes / 1e6:,.0f} MB"
        study = "yes" if row.study else "no"
        print(
            f"{row.name:16} {row.open_clip:14} {row.params:>12,} {row.image_size:>5} {row.embed_dim:>5} {size:>9}  {study}"
        )
    rest = sorted(set(open_clip_configs()) - {row.open_clip for row in zoo().values()})
    if options.all:
        print("\n".join(rest))
    else:
        print(f"and {len(rest)} other architectures of open_clip (clipbench models --all), or package.module:factory")
    return 0


def _report(options: argparse.Namespace) -> int:
    from clipbench.data.dataset import Dataset
    from clipbench.errors import DataUnavailableError
    from clipbench.experiments import all_experiments
    from clipbench.report.summary import write_report
    from clipbench.run_file import read_run
    from clipbench.settings import Settings

    run = read_run(options.run)
    experiments = all_experiments()
    datasets: dict[str, Dataset] = {}
    for name in {r.experiment for r in run.results if r.arrays} & experiments.keys():
        try:
            dataset = experiments[name].load(Settings())
        except DataUnavailableError:
            continue  # the figures show ids in place of pictures
        datasets[dataset.name] = dataset
    write_report(run, options.output, datasets, {name: e.shown for name, e in experiments.items()})
    print(f"wrote {options.output / 'summary.md'}, summary.html and figures/")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from clipbench.compare_command import run_compare

    code, output, summary = run_compare(options)
    sys.stdout.write(output)
    step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and step_summary:
        with Path(step_summary).open("a", encoding="utf-8") as file:
            file.write(summary)
    return code


def _power(options: argparse.Namespace) -> int:
    from clipbench.compare_command import power_text

    sys.stdout.write(power_text(options.tolerance, options.alpha))
    return 0


def _ab(options: argparse.Namespace) -> int:
    code, output = run_ab(options, options.passed, lambda line: print(f"clipbench ab: {line}", file=sys.stderr))
    sys.stdout.write(output)
    return code


def _cache(options: argparse.Namespace) -> int:
    sys.stdout.write(run_cache(options, os.environ.get(CACHE_VARIABLE, "")))
    return 0
