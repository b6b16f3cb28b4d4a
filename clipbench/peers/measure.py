"""All that was asked for, measured one after the other and put into one document."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from clipbench.environment import describe_environment
from clipbench.peers import table
from clipbench.peers.bench import MODEL, PRETRAINED, Bench
from clipbench.peers.coco_like import BOXES_AN_IMAGE, mean_file_bytes
from clipbench.peers.comparisons import COMPARISONS
from clipbench.peers.flops import matmul_flops_per_second
from clipbench.peers.growth import Growth, cost_against_size
from clipbench.peers.memory import Peak, memory_against_size, memory_ratio
from clipbench.peers.processes import cached_ratio, lite_seconds
from clipbench.peers.theirs import BATCH, WORKERS, clip_benchmark_version
from clipbench.peers.work import PeerError, timed
from clipbench.report.document import Block, Paragraph, to_markdown


@dataclass
class Findings:
    """What was found so far."""

    lines: list[table.Line] = field(default_factory=list)
    achieved: list[table.Achieved] = field(default_factory=list)
    seconds: list[Growth] = field(default_factory=list)
    memory: list[Growth] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when every target is reached, 1 when one is missed, else 3: one cannot be told, or was not measured."""
        words = {line.reached for line in self.lines}
        return 1 if "no" in words else 3 if words - {"yes"} else 0


def measure(names: Sequence[str], bench: Bench) -> Findings:
    """Return what was found for these names, in the order given.

    Raises: PeerError when two sides do not do the same work; any ClipbenchError of loading and encoding.
    """
    found = Findings()
    for name in names:
        if name in COMPARISONS:
            work = COMPARISONS[name](bench)
            ratio = timed(work, bench.say)
            found.lines.append(table.work_line(work, ratio))
            found.achieved.append(table.Achieved(work.what, work.flops, ratio, matmul_flops_per_second()))
            continue
        try:
            OTHERS[name](bench, found)
        except PeerError as error:
            found.lines.append(table.Line(name, "-", "-", "-", "-", "not measured"))
            found.notes.append(f"{name} was not measured: {error}")
    return found


def document(found: Findings, bench: Bench, load: float) -> str:
    """Return the findings as Markdown. `load`: the load average before the first of them."""
    blocks: list[Block] = [Paragraph(_setting(bench))]
    if found.lines:
        blocks.append(table.targets_table(found.lines))
    if found.achieved:
        blocks.append(table.flops_table(found.achieved))
    if found.seconds:
        blocks.append(table.growth_table(found.seconds, "seconds (items)", 1))
    if found.memory:
        blocks.append(table.growth_table(found.memory, "MB (images)", table.MEGA))
    blocks += [Paragraph(note) for note in found.notes]
    machine = table.machine_line(describe_environment("cpu"), clip_benchmark_version(), load)
    return to_markdown([*blocks, Paragraph(machine)])


def _setting(bench: Bench) -> str:
    images = bench.root(bench.sizes.images)
    return (
        f"{MODEL} with random weights ({PRETRAINED}), fp32, CPU; the same weights, inputs and threads on both sides, in turns, after a "
        f"check that both give the same rows; a ratio above 1 is clipbench being faster. Batch: {bench.settings.batch_size} here, "
        f"{BATCH} in clip-benchmark, the defaults; threads or processes that decode: {bench.settings.workers} here, {WORKERS} in "
        f"clip-benchmark. COCO-like images: {mean_file_bytes(images) / 1e3:.0f} kB on average, {BOXES_AN_IMAGE} boxes each."
    )


def _cached(bench: Bench, found: Findings) -> None:
    found.lines.append(table.cached_line(bench.sizes.cached_images, cached_ratio(bench)))


def _lite(bench: Bench, found: Findings) -> None:
    found.lines.append(table.lite_line(lite_seconds(bench)))


def _memory(bench: Bench, found: Findings) -> None:
    ratio, pair = memory_ratio(bench)
    found.lines.append(table.memory_line(bench.sizes.memory_images, ratio))
    found.notes.append(_added(pair))
    found.memory += memory_against_size(bench)


def _cost(bench: Bench, found: Findings) -> None:
    found.seconds += cost_against_size(bench)


def _added(pair: Mapping[str, Peak]) -> str:
    parts = [f"{(p.peak - p.before) / table.MEGA:.0f} MB in {side}" for side, p in pair.items()]
    return f"Of the peak, encoding itself added {' and '.join(parts)}; the rest is the process with its model."


OTHERS: Mapping[str, Callable[[Bench, Findings], None]] = {
    "cached": _cached,
    "lite": _lite,
    "memory": _memory,
    "cost": _cost,
}
