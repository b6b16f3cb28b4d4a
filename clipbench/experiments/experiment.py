"""What an experiment is: a name, the items it asks for, and a pure function (encoder, data set) -> result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.data.dataset import Dataset
from clipbench.models.encoder import Encoder
from clipbench.result import DatasetIdentity, JsonObject, Metric, Result
from clipbench.settings import Settings
from clipbench.statistics import bootstrap_interval, wilson_interval

METRIC_VERSION = 1
Values = Sequence[float] | npt.NDArray[Any]


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    `load(settings)` returns its items or raises DataUnavailableError; `measure(encoder, dataset, settings)` is pure.
    `shown` are the metrics a summary's table leads with; `order` is the place in it. `load_part(part, settings)` loads one
    of several data sets of the experiment's own (zero_shot:NAME). `exists(settings)` is False where it was not asked for.
    """

    name: str
    order: int
    load: Callable[[Settings], Dataset]
    measure: Callable[[Encoder, Dataset, Settings], Result]
    shown: tuple[str, ...]
    load_part: Callable[[str, Settings], Dataset] | None = None
    exists: Callable[[Settings], bool] = lambda settings: True


def identity_of(dataset: Dataset, n: int) -> DatasetIdentity:
    """Return the data set's identity when n of its items were scored."""
    return DatasetIdentity(dataset.name, dataset.fingerprint, n)


def protocol_of(encoder: Encoder, dataset: Dataset, **more: Any) -> JsonObject:
    """Return what the result depends on beside model and data. `shortcuts` is empty unless `more` names some."""
    base = {"preprocessing": encoder.preprocessing, "metric_version": METRIC_VERSION, "shortcuts": [], "prompts": []}
    return base | dict(dataset.protocol) | ({"notes": dict(dataset.notes)} if dataset.notes else {}) | more


def rate(hits: Values) -> Metric:
    """Return the share of hits with its 95 % Wilson interval."""
    n, count = len(hits), float(np.sum(hits))
    low, high = wilson_interval(count, n)
    return Metric(count / n, n, low, high)


def mean(values: Values, seed: int) -> Metric:
    """Return the mean with its 95 % bootstrap interval (none for a single value)."""
    interval = bootstrap_interval(np.asarray(values, dtype=np.float64), seed=seed)
    low, high = interval if interval else (None, None)
    return Metric(float(np.mean(values)), len(values), low, high)
