"""Speed: images and texts a second, latency at batch 1, peak memory. Every clock read waits for the device first.

Throughput times the model alone on a batch prepared beforehand; latency the call that production makes, from a decoded image to its
raw row, never an optimized one. Rounds are not part of the protocol, the batch is.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clipbench.data.dataset import DataOptions, Dataset, Source, held_bytes
from clipbench.data.packaged import packaged_dataset
from clipbench.errors import EncoderError
from clipbench.experiments import Experiment, Measured
from clipbench.types import MetricSpec, Score, Tower

if TYPE_CHECKING:
    from clipbench.embed.embedder import Embedder
    from clipbench.models.encoder import Encoder, Ready, Rows

IMAGES = MetricSpec("images_per_second", "per_second", headline=True, unit="images/s")
TEXTS = MetricSpec("texts_per_second", "per_second", headline=True, unit="texts/s")
LATENCY = tuple(
    MetricSpec(f"latency_{q}", "seconds", "lower", headline=q == "p50", unit="s") for q in ("p50", "p90", "p99")
)
MEMORY = MetricSpec("peak_memory_bytes", "bytes", "lower", headline=True, unit="bytes")
GROWTH = MetricSpec("memory_growth_bytes", "bytes", "lower", unit="bytes")
"""What a hundred calls of each kind add to the memory in use: measured by `--speed gate` alone, in processes of its own."""

DEVICE = tuple(
    MetricSpec(f"{what}_device_seconds", "seconds", "lower", unit="s") for what in ("images", "texts", "latency")
)
"""What a CUDA device takes for a batch of images, one of texts, and one image, by its own events: the host's noise is not in it."""

METRICS = (IMAGES, TEXTS, *LATENCY, MEMORY, GROWTH, *DEVICE)

ROUND_SECONDS = 3.0
ROUNDS = (2, 50)
SLOW_ROUND_SECONDS = 10.0
LATENCY_SECONDS = 5.0
STABLE, STABLE_CALLS, WARM_SECONDS = 0.02, 5, 5.0
DEVICE_SAMPLES = 30
LATENCY_SAMPLES = 200
QUANTILES = dict(zip(LATENCY, ((0.50, 1), (0.90, 20), (0.99, 100)), strict=True))

Timer = Callable[[Callable[[], object], int], Sequence[float]]
"""Runs a call that many rounds and returns the seconds of each; an empty list when timing is switched off."""


@dataclass(frozen=True)
class Workload:
    """What is timed: decoded images and texts, cycled to one batch."""

    images: tuple[Image.Image, ...]
    texts: tuple[str, ...]


def workload(dataset: Dataset, batch_size: int) -> Workload:
    """Return one batch of the data set's images (decoded) and prompted captions, cycled to `batch_size`."""
    images = [item.image.open() for item in dataset.items]
    texts = [dataset.prompts[0].format(caption=item.captions[0]) for item in dataset.items]
    return Workload(tuple(islice(cycle(images), batch_size)), tuple(islice(cycle(texts), batch_size)))


def perf_counter_timer(call: Callable[[], object], rounds: int) -> list[float]:
    """Time a call with the process's own clock; the plugin uses pytest-benchmark instead."""
    return [_seconds(call) for _ in range(rounds)]


def warm_up(call: Callable[[], object], device: str) -> None:
    """Run a call on a device of its own until the median of 5 is within 2 % of that of the 5 before, for 5 s at most.

    Clocks rise and kernels are chosen in the first calls. A CPU needs none.
    """
    if device == "cpu":
        return
    seconds: list[float] = []
    while sum(seconds) < WARM_SECONDS:
        seconds += [_seconds(call) for _ in range(STABLE_CALLS)]
        last, before = (np.median(seconds[k:][:STABLE_CALLS]) for k in (-STABLE_CALLS, -2 * STABLE_CALLS))
        if len(seconds) > STABLE_CALLS and abs(last - before) <= STABLE * before:
            return


def device_time(spec: MetricSpec, call: "Ready") -> list[Score]:
    """Return the median seconds that the device takes for a call, by its own clock; nothing where it has none."""
    from clipbench.models.device import device_seconds

    found = [device_seconds(call.start, call.device) for _ in range(DEVICE_SAMPLES if call.device != "cpu" else 0)]
    seconds = [one for one in found if one is not None]
    if not seconds:
        return []
    low, median, high = np.quantile(seconds, (0.05, 0.5, 0.95))
    return [Score(spec, float(median), len(seconds), spread=float((high - low) / median))]


def throughput(spec: MetricSpec, call: Callable[[], object], batch: int, timer: Timer) -> list[Score]:
    """Return items per second (batch / median round) of a call that waits for its device; nothing when the timer is switched off.

    The call is warm. One more run says how many rounds fit in 3 s: 2 to 50, and a single one where
    a round takes more than 10 s.
    """
    estimate = _seconds(call)
    if estimate < ROUND_SECONDS / ROUNDS[1]:
        estimate = min(_seconds(call) for _ in range(3))
    low, high = (1 if estimate > SLOW_ROUND_SECONDS else ROUNDS[0]), ROUNDS[1]
    seconds = timer(call, max(low, min(high, int(ROUND_SECONDS / max(estimate, 1e-9)))))
    if not len(seconds):
        return []
    low_seconds, median, high_seconds = np.quantile(seconds, (0.05, 0.5, 0.95))
    spread = float((high_seconds - low_seconds) / median) if len(seconds) > 1 else None
    return [Score(spec, float(batch / median), len(seconds), spread=spread)]


def check_timed(output: Any, batch: int, last_row: "Rows", what: str) -> None:
    """Check that the timed call does the work: one row per input, and the last is the reference path's (cosine .999 or more).

    `last_row`: (1, dim). Raises: EncoderError for something else, so that no clock is ever read over another computation.
    """
    from clipbench.models.encoder import checked_rows, unit_rows

    cosine = float(unit_rows(checked_rows(output, batch, what))[-1] @ unit_rows(last_row)[0])
    if cosine < 0.999:
        raise EncoderError(f"{what}: the timed call gives other rows than the reference path (cosine {cosine:.4f})")


def ready(encoder: "Encoder", work: Workload, tower: Tower) -> "Ready":
    """Return the call that is timed on a batch of a tower, warm and checked. Raises: as `check_timed`."""
    of_images = tower == "images"
    call = encoder.ready_images(work.images) if of_images else encoder.ready_texts(work.texts)
    output = call()
    last_row = encoder.encode_images(work.images[-1:]) if of_images else encoder.encode_texts(work.texts[-1:])
    check_timed(output, len(work.images), last_row, f"{encoder.identity.name}: {tower}")
    warm_up(call, encoder.identity.device)
    return call


def images_per_second(encoder: "Encoder", work: Workload, timer: Timer) -> list[Score]:
    """Return images per second by the model alone, and the device's seconds; nothing when timing is switched off."""
    call = ready(encoder, work, "images")
    found = throughput(IMAGES, call, len(work.images), timer)
    return found and found + device_time(DEVICE[0], call)


def texts_per_second(encoder: "Encoder", work: Workload, timer: Timer) -> list[Score]:
    """Return texts per second by the model alone, and the device's seconds; nothing when timing is switched off."""
    call = ready(encoder, work, "texts")
    found = throughput(TEXTS, call, len(work.texts), timer)
    return found and found + device_time(DEVICE[1], call)


def latency(encoder: "Encoder", work: Workload) -> list[Score]:
    """Return seconds from one decoded image to its raw row: latency_p50, p90 from 20 samples, p99 from 100.

    Up to 200 samples or 5 s, whichever comes first, after one warm-up call, or as many as the device needs; and the device's seconds
    for the model alone on one image.
    """
    encoder.encode_images(work.images[:1])
    warm_up(partial(one_row, encoder, work.images[0]), encoder.identity.device)
    samples: list[float] = []
    images = cycle(work.images)
    while len(samples) < LATENCY_SAMPLES and sum(samples) < LATENCY_SECONDS:
        samples.append(_seconds(partial(one_row, encoder, next(images))))
    n = len(samples)
    found = {spec: float(np.quantile(samples, q)) for spec, (q, least) in QUANTILES.items() if n >= least}
    spread = found[LATENCY[1]] / found[LATENCY[0]] - 1 if LATENCY[1] in found else None
    scores = [Score(spec, value, n, spread=spread if spec == LATENCY[0] else None) for spec, value in found.items()]
    return scores + device_time(DEVICE[2], encoder.ready_images(work.images[:1]))


def peak_memory(encoder: "Encoder", work: Workload) -> list[Score]:
    """Return peak_memory_bytes of one batch of images and one of texts by the reference path: resident on a CPU, allocated on CUDA.

    Pictures that the session keeps for other experiments are not counted. Absent where the machine cannot start the count anew.
    """
    from clipbench.models.device import peak_memory_bytes, release, reset_peak_memory

    gc.collect()
    release(encoder.identity.device)  # what earlier work left behind would count, and differ from run to run
    if not reset_peak_memory(encoder.identity.device):
        return []
    encoder.encode_images(work.images)
    encoder.encode_texts(work.texts)
    kept = held_bytes() if encoder.identity.device == "cpu" else 0
    return [Score(MEMORY, peak_memory_bytes(encoder.identity.device) - kept, 1)]


PARTS: dict[str, Callable[["Encoder", Workload, Timer], list[Score]]] = {
    LATENCY[0].name: lambda encoder, work, timer: [*peak_memory(encoder, work), *latency(encoder, work)],
    IMAGES.name: images_per_second,
    TEXTS.name: texts_per_second,
}
"""What is timed together, by the first metric that it gives; memory comes first, before anything else is timed."""


def measured(scores: Sequence[Score], embedder: "Embedder") -> Measured:
    """Return speed metrics with what was timed, and what the card was doing then."""
    from clipbench.models.device import card_state

    return Measured(
        scores,
        card=card_state(embedder.encoder.identity.device),
        options={
            "batch": embedder.batch_size,
            "throughput": "model alone on a prepared batch, device synchronised",
            "latency": "decoded image to raw row, batch 1",
        },
    )


def speed(embedder: "Embedder", dataset: Dataset) -> Measured:
    """Return all speed metrics, timed by the process's own clock."""
    embedder.release_rows()  # what is measured next is the model's memory
    work = workload(dataset, embedder.batch_size)
    found = [one for part in PARTS.values() for one in part(embedder.encoder, work, perf_counter_timer)]
    return measured(found, embedder)


def one_row(encoder: "Encoder", image: Image.Image) -> "Rows":
    """Return the raw row of one decoded image, once the device has it."""
    from clipbench.models.device import synchronized

    return synchronized(encoder.encode_images([image]), encoder.identity.device)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _sources(options: DataOptions) -> tuple[Source, ...]:
    return (Source("natural", partial(packaged_dataset, "natural")),)


SPEED = Experiment("speed", METRICS, _sources, speed, order=90)
