"""What was found as Markdown that can stand in the README: the targets, achieved FLOP/s, cost and memory against size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clipbench.peers.bench import STEPS
from clipbench.peers.growth import Growth
from clipbench.peers.processes import spread
from clipbench.peers.work import Flops, Work
from clipbench.report.document import Table
from clipbench.result import JsonObject
from clipbench.statistics import Ratio

Reached = Literal["yes", "no", "cannot tell", "not measured"]
HEADER = ("work", "peer", "clipbench", "ratio (95 % interval)", "at least", "reached?")
UNDER_SECONDS = 30.0
GIGA, MEGA = 1e9, 1e6


@dataclass(frozen=True)
class Line:
    """One line of the table of targets, its cells in words."""

    what: str
    peer: str
    ours: str
    ratio: str
    at_least: str
    reached: Reached


@dataclass(frozen=True)
class Achieved:
    """A comparison's operations, the time that each side took for them, and the matmul's FLOP/s straight after."""

    what: str
    flops: Flops
    ratio: Ratio
    matmul: float


def reached(low: float | None, high: float | None, at_least: float) -> Reached:
    """Return whether a ratio is shown to be that high: by its whole interval; without one it cannot be told."""
    if low is None or high is None or low < at_least <= high:
        return "cannot tell"
    return "yes" if low >= at_least else "no"


def work_line(work: Work, ratio: Ratio) -> Line:
    """Return the line of timed work; a ratio above 1 is clipbench being faster."""
    seconds = f"{work.peer}, {ratio.head:.2f} s", f"{ratio.base:.2f} s"
    word = reached(ratio.low, ratio.high, work.at_least)
    return Line(work.what, *seconds, interval(ratio), f"{work.at_least:g}", word)


def cached_line(images: int, ratio: Ratio) -> Line:
    """Return the line of the second run against the first."""
    what = f"COCO experiments on {images} COCO-like images, second run from the cache, whole process"
    seconds = f"first run, {ratio.head:.1f} s", f"{ratio.base:.1f} s"
    return Line(what, *seconds, interval(ratio), "12", reached(ratio.low, ratio.high, 12))


def memory_line(images: int, ratio: Ratio) -> Line:
    """Return the line of peak memory; a ratio above 1 is clipbench needing less."""
    what = f"peak memory of encoding {images} images with their captions"
    peaks = f"clip-benchmark, {ratio.head / MEGA:.0f} MB", f"{ratio.base / MEGA:.0f} MB"
    return Line(what, *peaks, interval(ratio), "1", reached(ratio.low, ratio.high, 1))


def lite_line(seconds: Sequence[float]) -> Line:
    """Return the line of the main job: reached when every run was under the limit, missed when none was."""
    under = [each < UNDER_SECONDS for each in seconds]
    word: Reached = "yes" if all(under) else "cannot tell" if any(under) else "no"
    what = f"pytest benchmarks, lite, all experiments, whole process ({len(seconds)} runs)"
    return Line(what, "-", spread(seconds), "-", f"under {UNDER_SECONDS:.0f} s", word)


def targets_table(lines: Sequence[Line]) -> Table:
    """Return the targets as a table."""
    return Table(HEADER, [(x.what, x.peer, x.ours, x.ratio, x.at_least, x.reached) for x in lines])


def flops_table(found: Sequence[Achieved]) -> Table:
    """Return achieved GFLOP/s beside the best matmul's: the peer's of all it runs, clipbench's of what is useful."""
    best = max(a.matmul for a in found)
    rows = [(a.what, _rate(a.flops.peer / a.ratio.head, best), _rate(a.flops.ours / a.ratio.base, best)) for a in found]
    rows.append(("the matmul: best of five after each, fp32, 2048 cubed", f"{best / GIGA:.0f}", f"{best / GIGA:.0f}"))
    return Table(("achieved GFLOP/s (share of the matmul's)", "peer, all it runs", "clipbench, useful tokens"), rows)


def growth_table(found: Sequence[Growth], unit: str, divisor: float) -> Table:
    """Return values against size: an exponent of 1 is linear, 0 flat."""
    header = (f"against size, {unit}", *(f"items x {step}" for step in STEPS), "exponent")
    rows = []
    for growth in found:
        cells = [f"{value / divisor:.4g} ({size})" for size, value in zip(growth.sizes, growth.values, strict=True)]
        rows.append((growth.what, *cells, f"{growth.exponent:.2f}"))
    return Table(header, rows)


def machine_line(environment: JsonObject, clip_benchmark: str, load: float) -> str:
    """Return machine, threads, the load average at the start (what others took from the cores) and versions in one line."""
    machine, software = environment["machine"], environment["software"]
    versions = [f"{name} {software[name]}" for name in ("python", "torch", "open_clip_torch", "pillow", "clipbench")]
    where = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, load {load:.1f} at the start"
    )
    return f"{where}; {', '.join(versions)}, clip-benchmark {clip_benchmark}"


def interval(ratio: Ratio) -> str:
    """Return a ratio with its interval."""
    around = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.3g} to {ratio.high:.3g})"
    return f"{ratio.ratio:.3g}{around}"


def _rate(flops_per_second: float, matmul: float) -> str:
    return f"{flops_per_second / GIGA:.0f} ({flops_per_second / matmul:.0%})"
