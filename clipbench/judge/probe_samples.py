"""The samples of a stored probe, read back and checked: what does not add up is damaged, and says where."""

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.embed.probe import POSITIONS, array_sha256
from clipbench.errors import ClipbenchError
from clipbench.result import JsonObject

PIXELS = ("decoded_pixels", "preprocessed_tensor")
_DTYPES = {"uint8": "<u1", "int32": "<i4", "float32": "<f4"}


class DamagedProbeError(ClipbenchError):
    """A stage that a probe lacks, or that cannot be read or compared: it is said, and nothing is concluded from it."""


@dataclass(frozen=True)
class Sample:
    """An array's hash and shape, and its `values` (float64), whole or at the positions that `embed.probe` takes."""

    shape: tuple[int, ...]
    sha256: str
    values: npt.NDArray[np.float64]


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


def _items(probe: JsonObject) -> tuple[Any, Any]:
    dataset = probe.get("dataset")
    return probe.get("images"), dataset.get("fingerprint") if isinstance(dataset, dict) else None


def samples_of(probe: JsonObject, stage: str, which: str) -> list[Sample]:
    """Return the samples of a stage, one an item; `which` (base or head) is for messages.

    Raises: DamagedProbeError when the stage is absent, or a sample lacks a key, is no base64, holds NaN, or has another number of
    values than its shape and dtype allow.
    """
    stages = probe.get("stages")
    entries = stages.get(stage) if isinstance(stages, dict) else None
    if entries is None:
        raise DamagedProbeError(f"not in the probe of {which}")
    if not isinstance(entries, list) or not entries:
        raise DamagedProbeError(f"the probe of {which} is damaged: no samples")
    try:
        samples = [_sample(entry) for entry in entries]
        if stage not in PIXELS and {(len(s.shape), s.shape) for s in samples} != {(1, samples[0].shape)}:
            raise ValueError("rows of several shapes")
        return samples
    except (AttributeError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise DamagedProbeError(f"the probe of {which} is damaged: {error or type(error).__name__}") from error


def _sample(entry: Any) -> Sample:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape = tuple(int(size) for size in entry["shape"])
    stored = np.frombuffer(base64.b64decode(entry["values"], validate=True), dtype=dtype)
    size = math.prod(shape)
    if not min(size, POSITIONS) <= stored.size <= size or not size:
        raise ValueError(f"{stored.size} values for shape {shape}")
    values = stored.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a value is NaN or infinite")
    sha256 = entry["sha256"]
    if not isinstance(sha256, str) or len(sha256) != 64:
        raise ValueError("a hash is no SHA-256")
    if stored.size == size and array_sha256(stored.reshape(shape)) != sha256:
        raise ValueError("a sample does not have its hash")
    return Sample(shape, sha256, values)
