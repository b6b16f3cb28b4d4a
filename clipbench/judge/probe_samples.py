"""The stages of a stored probe, read back and checked: what does not add up is damaged, and says where."""

from typing import Any

import numpy as np

from clipbench.embed.sample import Sample, read_sample
from clipbench.errors import ClipbenchError
from clipbench.result import JsonObject

PIXELS = ("decoded_pixels", "preprocessed_tensor")
"""Stages whose items may have several shapes; the others are rows of one length."""


class DamagedProbeError(ClipbenchError):
    """A stage that a probe lacks, or that cannot be read or compared: it is said, and nothing is concluded from it."""


def samples_of_both(base: JsonObject, head: JsonObject, stage: str) -> tuple[list[Sample], list[Sample]]:
    """Return the samples of a stage in two probes, item by item.

    Raises: DamagedProbeError as `samples_of`, and when the two are of other items or contradict their own hashes.
    """
    before, after = samples_of(base, stage, "base"), samples_of(head, stage, "head")
    if _items(base) != _items(head) or len(before) != len(after):
        raise DamagedProbeError("the probes are of other items")
    for b, a in zip(before, after, strict=True):
        if b.shape == a.shape and b.values.shape != a.values.shape:
            raise DamagedProbeError("the probes keep other positions")
        if b.sha256 == a.sha256 and not np.array_equal(b.values, a.values):
            raise DamagedProbeError("a probe is damaged: one hash, two arrays")
    return before, after


def samples_of(probe: JsonObject, stage: str, which: str) -> list[Sample]:
    """Return the samples of a stage, one an item; `which` (base or head) is for messages.

    Raises: DamagedProbeError when the stage is absent or empty, a sample is damaged, or rows have several lengths.
    """
    stages = probe.get("stages")
    entries = stages.get(stage) if isinstance(stages, dict) else None
    if entries is None:
        raise DamagedProbeError(f"not in the probe of {which}")
    if not isinstance(entries, list) or not entries:
        raise DamagedProbeError(f"the probe of {which} is damaged: no samples")
    try:
        samples = [read_sample(entry) for entry in entries]
    except ValueError as error:
        raise DamagedProbeError(f"the probe of {which} is damaged: {error}") from error
    if stage not in PIXELS and {(len(s.shape), s.shape) for s in samples} != {(1, samples[0].shape)}:
        raise DamagedProbeError(f"the probe of {which} is damaged: rows of several shapes")
    return samples


def _items(probe: JsonObject) -> tuple[Any, Any]:
    dataset = probe.get("dataset")
    return probe.get("images"), dataset.get("fingerprint") if isinstance(dataset, dict) else None
