"""Whole processes on the clock: `pytest benchmarks` as a user starts it, and a second run that finds the first one's cache."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from clipbench.cli import CACHE_VARIABLE
from clipbench.paths import benchmarks
from clipbench.peers.bench import MODEL, PRETRAINED, Bench
from clipbench.peers.work import PeerError
from clipbench.result import Run
from clipbench.run_file import read_run
from clipbench.statistics import Ratio, judged_ratio

Start = Callable[[Sequence[str], Path], float]
"""Runs `pytest benchmarks` with these arguments, results into the folder, and returns its seconds."""


def pytest_benchmarks(arguments: Sequence[str], results: Path) -> float:
    """Return the wall-clock seconds of a fresh `pytest benchmarks`. Raises: PeerError when it does not pass."""
    command = [sys.executable, "-m", "pytest", str(benchmarks()), "-q", "-p", "no:cacheprovider", "--offline"]
    command += ["--device", "cpu", "--results", str(results), *arguments]
    results.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != CACHE_VARIABLE}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=results, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # this suite
    seconds = time.perf_counter() - start
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        errors = [line for line in said if "error: " in line.lower()] or said
        raise PeerError(f"`pytest benchmarks {' '.join(arguments)}` ended with code {done.returncode}: {errors[-1]}")
    return seconds


def lite_seconds(bench: Bench, start: Start = pytest_benchmarks) -> list[float]:
    """Return the seconds of each run of the main job; one before it is not counted, since it may build the embedded model."""
    start(["-k", "card"], bench.folder / "lite_made")
    found = []
    for number in range(bench.sizes.lite_runs):
        bench.say(f"lite: run {number + 1} of {bench.sizes.lite_runs}")
        found.append(start([], bench.folder / f"lite_{number}"))
    return found


def cached_ratio(bench: Bench, start: Start = pytest_benchmarks) -> Ratio:
    """Return the seconds of a first run of the COCO experiments over those of a second one that finds the first one's cache.

    A round is such a pair, with a cache of its own.

    Raises: PeerError when a run fails, or a second one measures anything else than the first.
    """
    root, rounds = bench.root(bench.sizes.cached_images), []
    for number in range(bench.sizes.cached_rounds):
        cache = bench.folder / f"cache_{number}"
        arguments = [
            "--model",
            MODEL,
            "--pretrained",
            PRETRAINED,
            "--coco",
            str(root),
            "--cache",
            str(cache),
            "-k",
            "coco",
        ]
        folders = [bench.folder / f"{which}_{number}" for which in ("first", "second")]
        bench.say(f"cached: round {number + 1} of {bench.sizes.cached_rounds}")
        first, second = (start(arguments, folder) for folder in folders)
        check_same_run(*(read_run(folder / "run.json") for folder in folders))
        rounds.append((first / second, second, first))
    return judged_ratio("cached", rounds, 0)


def check_same_run(first: Run, second: Run) -> None:
    """Raises: PeerError when two runs do not hold the same experiments with the same metrics and outcomes."""
    measured = [{r.experiment: (r.metrics, r.items) for r in run.results} for run in (first, second)]
    if not measured[0] or measured[0].keys() != measured[1].keys():
        raise PeerError(f"the first run measured {sorted(measured[0])}, the second {sorted(measured[1])}")
    for name, found in measured[0].items():
        if found != measured[1][name]:
            raise PeerError(f"{name}: the run from the cache measures something else than the first one")


def spread(seconds: Sequence[float]) -> str:
    """Return the median and the range in words."""
    return f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"
