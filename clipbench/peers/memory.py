"""Peak memory of encoding, each time in a fresh process: clipbench against clip-benchmark, and clipbench against size.

As a module (`python -m clipbench.peers.memory SIDE ROOT IMAGES BATCH WORKERS`) it is that process: it prints one line of JSON.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clipbench.data.dataset import Item
from clipbench.models.device import peak_memory_bytes, release, reset_peak_memory
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.peers import ours, theirs
from clipbench.peers.bench import QUICK, STEPS, Bench
from clipbench.peers.growth import Growth
from clipbench.peers.work import PeerError
from clipbench.settings import Settings
from clipbench.statistics import Ratio, judged_ratio

SIDES = ("clipbench", "clip-benchmark")


@dataclass(frozen=True)
class Peak:
    """Resident memory of a process in bytes: `before` encoding, with the model loaded, and the `peak` while encoding."""

    before: int
    peak: int


def encoding_peak(side: str, encoder: OpenClipEncoder, items: Sequence[Item], settings: Settings) -> Peak:
    """Return this process's peak while one side encodes the items' images and captions.

    clip-benchmark decodes in this process, too: what its loader's processes would hold is not counted against it.

    Raises: PeerError where the machine cannot start the count anew.
    """
    release("cpu")
    if not reset_peak_memory("cpu"):
        raise PeerError("peak memory cannot be counted anew on this machine; leave memory out with --only")
    before = peak_memory_bytes("cpu")
    if side == "clipbench":
        ours.encoded(encoder, items, settings)
    else:
        theirs.retrieval(encoder, items, workers=0)
    return Peak(before, peak_memory_bytes("cpu"))


def fresh_peak(bench: Bench, side: str, images: int) -> Peak:
    """Return the peak of a fresh process. Raises: PeerError with what it said last when it fails."""
    bench.say(f"memory: {side}, {images} images")
    arguments = [side, str(bench.root(images)), images, bench.settings.batch_size, bench.settings.workers]
    command = [sys.executable, "-m", "clipbench.peers.memory", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # this module, this interpreter
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise PeerError(f"memory of {side}: the process ended with code {done.returncode}: {last}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def memory_ratio(bench: Bench) -> tuple[Ratio, Mapping[str, Peak]]:
    """Return the peer's peak over clipbench's from pairs of fresh processes, and the last pair by side."""
    rounds, pair = [], {}
    for number in range(bench.sizes.memory_rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            pair[side] = fresh_peak(bench, side, bench.sizes.memory_images)
        base, head = (pair[side].peak for side in SIDES)
        rounds.append((head / base, float(base), float(head)))
    return judged_ratio("memory", rounds, 0), pair


def memory_against_size(bench: Bench) -> list[Growth]:
    """Return the growth of clipbench's peak, and of what encoding added to the process with its model; one fresh process a size."""
    sizes = [step * bench.sizes.steps_images for step in STEPS]
    peaks = [fresh_peak(bench, "clipbench", images) for images in sizes]
    whole, added = tuple(float(p.peak) for p in peaks), tuple(float(max(1, p.peak - p.before)) for p in peaks)
    return [
        Growth("peak memory of clipbench", tuple(sizes), whole),
        Growth("of it, added by encoding", tuple(sizes), added),
    ]


def main(arguments: Sequence[str]) -> int:
    """Print the peak of one side as JSON."""
    side, root, images, batch, workers = arguments
    settings = Settings(batch_size=int(batch), workers=int(workers), offline=True)
    bench = Bench(settings, QUICK, Path(root).parent, lambda line: None)
    sys.stdout.write(json.dumps(asdict(encoding_peak(side, bench.encoder, bench.items(int(images)), settings))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
