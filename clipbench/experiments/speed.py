"""Speed: images and texts a second, latency at batch 1, peak memory. Every clock read waits for the device first.

Throughput times the model alone on a batch prepared beforehand; latency times the plain call that production makes, from
a decoded image to its unit row. Never through a shortcut. Rounds are not part of the protocol, the batch is.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
from PIL import Image

from clipbench.data.dataset import Dataset, held_bytes
from clipbench.errors import EncoderError
from clipbench.experiments.experiment import Experiment, identity_of, protocol_of
from clipbench.experiments.natural import load_natural
from clipbench.models.device import peak_memory_bytes, release, reset_peak_memory, synchronized
from clipbench.models.encoder import Encoder, Rows, unit_rows
from clipbench.result import Metric, Result
from clipbench.settings import Settings

ROUND_SECONDS = 3.0
ROUNDS = (2, 50)
SLOW_ROUND_SECONDS = 10.0
LATENCY_SECONDS = 5.0
LATENCY_SAMPLES = 200
QUANTILES = {"latency_p50": (0.50, 1), "latency_p90": (0.90, 20), "latency_p99": (0.99, 100)}

Timer = Callable[[Callable[[], object], int], Sequence[float]]
"""Runs a call that many rounds and returns the seconds of each; an empty list when timing is switched off."""


@dataclass(frozen=True)
class Workload:
    """What is timed: decoded images and texts, cycled to one batch."""

    images: tuple[Image.Image, ...]
    texts: tuple[str, ...]


def workload(dataset: Dataset, settings: Settings) -> Workload:
    """Return one batch of the data set's images (decoded) and prompted captions, cycled to `settings.batch_size`."""
    images = [item.image.open() for item in dataset.items]
    texts = [str(dataset.protocol["prompts"]).format(caption=item.captions[0]) for item in dataset.items]
    size = settings.batch_size
    return Workload(tuple(islice(cycle(images), size)), tuple(islice(cycle(texts), size)))


def perf_counter_timer(call: Callable[[], object], rounds: int) -> list[float]:
    """Time a call with the process's own clock; the plugin uses pytest-benchmark instead."""
    return [_seconds(call) for _ in range(rounds)]


def throughput(call: Callable[[], object], batch: int, timer: Timer) -> Metric | None:
    """Return items a second (batch / median round) of a call that waits for its device; None when the timer is switched off.

    The call has run once before, so it is warm. One more run says how many rounds fit in 3 s: 2 to 50, and a single one where
    a round takes more than 10 s.
    """
    estimate = _seconds(call)
    if estimate < ROUND_SECONDS / ROUNDS[1]:
        estimate = min(_seconds(call) for _ in range(3))
    low, high = (1 if estimate > SLOW_ROUND_SECONDS else ROUNDS[0]), ROUNDS[1]
    seconds = timer(call, max(low, min(high, int(ROUND_SECONDS / max(estimate, 1e-9)))))
    return Metric(batch / float(np.median(seconds)), len(seconds)) if len(seconds) else None


def check_timed(output: Any, batch: int, last_row: Rows, what: str) -> None:
    """Check that the timed call does the work: one row an input, and the last is the plain call's (cosine .999 or more).

    `last_row`: (1, dim), from the plain call. Raises: EncoderError when it is something else, so that no clock is ever read
    over another computation.
    """
    cosine = float(unit_rows(output, batch, what)[-1] @ last_row[0])
    if cosine < 0.999:
        raise EncoderError(f"{what}: the timed call gives other rows than the plain call (cosine {cosine:.4f})")


def images_per_second(encoder: Encoder, work: Workload, timer: Timer) -> dict[str, Metric]:
    """Return {"images_per_second": ...} (images/s), empty when timing is switched off."""
    call = encoder.ready_images(work.images)
    check_timed(call(), len(work.images), encoder.encode_images(work.images[-1:]), f"{encoder.identity.name}: images")
    found = throughput(call, len(work.images), timer)
    return {"images_per_second": found} if found else {}


def texts_per_second(encoder: Encoder, work: Workload, timer: Timer) -> dict[str, Metric]:
    """Return {"texts_per_second": ...} (texts/s), empty when timing is switched off."""
    call = encoder.ready_texts(work.texts)
    check_timed(call(), len(work.texts), encoder.encode_texts(work.texts[-1:]), f"{encoder.identity.name}: texts")
    found = throughput(call, len(work.texts), timer)
    return {"texts_per_second": found} if found else {}


def latency(encoder: Encoder, work: Workload) -> dict[str, Metric]:
    """Return seconds from one decoded image to its unit row: latency_p50, p90 from 20 samples, p99 from 100.

    Up to 200 samples or 5 s, whichever comes first, after one warm-up call.
    """
    encoder.encode_images(work.images[:1])
    samples: list[float] = []
    images = cycle(work.images)
    while len(samples) < LATENCY_SAMPLES and sum(samples) < LATENCY_SECONDS:
        image = next(images)
        samples.append(_seconds(partial(_one_row, encoder, image)))
    n = len(samples)
    return {name: Metric(float(np.quantile(samples, q)), n) for name, (q, least) in QUANTILES.items() if n >= least}


def peak_memory(encoder: Encoder, work: Workload) -> dict[str, Metric]:
    """Return peak_memory_bytes of one plain batch of images and one of texts: resident on a CPU, allocated on CUDA.

    Pictures that the session keeps for other experiments are not counted.

    Absent where the machine cannot start the count anew: then a peak of something else would be reported.
    """
    gc.collect()
    release(encoder.identity.device)  # what earlier work left behind would count, and differ from run to run
    if not reset_peak_memory(encoder.identity.device):
        return {}
    encoder.encode_images(work.images)
    encoder.encode_texts(work.texts)
    kept = held_bytes() if encoder.identity.device == "cpu" else 0
    return {"peak_memory_bytes": Metric(peak_memory_bytes(encoder.identity.device) - kept, 1)}


def speed_result(encoder: Encoder, dataset: Dataset, settings: Settings, metrics: Mapping[str, Metric]) -> Result:
    """Return the result that holds these speed metrics."""
    protocol = protocol_of(
        encoder,
        dataset,
        batch=settings.batch_size,
        throughput="model alone on a prepared batch, device synchronised",
        latency="decoded image to unit row, batch 1",
    )
    return Result("speed", encoder.identity, identity_of(dataset, len(dataset)), protocol, dict(metrics))


def speed(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return all speed metrics, timed by the process's own clock."""
    work = workload(dataset, settings)
    metrics = peak_memory(encoder, work)
    metrics |= images_per_second(encoder, work, perf_counter_timer)
    metrics |= texts_per_second(encoder, work, perf_counter_timer)
    return speed_result(encoder, dataset, settings, metrics | latency(encoder, work))


def _one_row(encoder: Encoder, image: Image.Image) -> Rows:
    return synchronized(encoder.encode_images([image]), encoder.identity.device)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


SPEED = Experiment(
    "speed", 90, load_natural, speed, ("images_per_second", "texts_per_second", "latency_p50", "peak_memory_bytes")
)
