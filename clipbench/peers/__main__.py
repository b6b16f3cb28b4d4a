"""`python -m clipbench.peers`: clipbench timed against clip-benchmark and plain open_clip on the same work; tables as Markdown.

A ViT-B/32 with random weights, fp32, CPU, COCO-like images made on the spot; about an hour on two cores. A part:
`python -m clipbench.peers --only captions,classifier`. Nothing is timed before both sides gave the same rows.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipbench.errors import ClipbenchError, UsageError, closest

if TYPE_CHECKING:
    from clipbench.peers.bench import Sizes

NAMES = ("captions", "classifier", "retrieval", "images", "harness", "cached", "memory", "lite", "cost")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and return 0; 1 when a target is missed, 3 when one cannot be told or measured, 2 for usage."""
    parser = argparse.ArgumentParser(prog="python -m clipbench.peers", description="clipbench against its peers.")
    parser.add_argument(
        "--only", action="append", metavar="NAMES", help=f"comma list of {', '.join(NAMES)}; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the machinery; its ratios say nothing")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of every comparison")
    parser.add_argument("--images", type=int, metavar="N", help="images of the cached run (default: 500)")
    parser.add_argument(
        "--templates", type=int, metavar="N", help="templates of the zero-shot classifier (default: 80)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch, for every side and process")
    parser.add_argument("--workers", type=int, metavar="N", help="threads of clipbench that decode (default: its own)")
    options = parser.parse_args(arguments)
    try:
        names = _names(options.only)
        for name, least in (("rounds", 2), ("images", 2), ("templates", 1), ("threads", 1)):
            value = getattr(options, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} {value}: expected {least} or more")
        if options.threads is not None:  # before torch is imported, and for every process that is started
            os.environ["OMP_NUM_THREADS"] = str(options.threads)
        with tempfile.TemporaryDirectory(prefix="clipbench-peers-") as folder:
            return _run(names, options, Path(folder))
    except (ClipbenchError, OSError) as error:
        sys.stderr.write(f"clipbench.peers: error: {error}\n")
        return 2


def _names(only: Sequence[str] | None) -> list[str]:
    names = [name for listed in only or [",".join(NAMES)] for name in listed.split(",")]
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--only {name}: closest: {closest(name, NAMES) or ', '.join(NAMES)}")
    return [name for name in NAMES if name in names]


def _run(names: Sequence[str], options: argparse.Namespace, folder: Path) -> int:
    import psutil

    from clipbench.peers.bench import Bench
    from clipbench.peers.measure import document, measure
    from clipbench.session import make_settings

    workers = {} if options.workers is None else {"workers": options.workers}
    settings = make_settings(device="cpu", offline=True, **workers)
    bench = Bench(settings, _sizes(options), folder, _say)
    load = psutil.getloadavg()[0]
    found = measure(names, bench)
    sys.stdout.write(document(found, bench, load))
    return found.exit_code


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _sizes(options: argparse.Namespace) -> "Sizes":
    from clipbench.peers.bench import QUICK, Sizes

    sizes = QUICK if options.quick else Sizes()
    if options.rounds:
        sizes = replace(
            sizes, **dict.fromkeys(("rounds", "slow_rounds", "close_rounds", "cached_rounds"), options.rounds)
        )
    if options.templates:
        sizes = replace(sizes, templates=options.templates)
    return replace(sizes, cached_images=options.images) if options.images else sizes


if __name__ == "__main__":
    sys.exit(main())
