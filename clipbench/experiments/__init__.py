"""What an experiment is: metrics declared once, the data sets it can run on, and a pure function (embedder, data set) -> scores.

Experiments are found by looking: a file dropped into this folder needs no registering; `register` adds one that lives elsewhere.
Nothing here imports torch: an experiment sees an encoder through the `Embedder` that it is handed.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbench.data.dataset import Choice, DataOptions, Dataset, Root, Source
from clipbench.errors import DataError, UsageError, closest
from clipbench.statistics import bootstrap_interval, clustered_wilson_interval, wilson_interval
from clipbench.types import (
    Answers,
    DatasetIdentity,
    IntArray,
    Matrix,
    MetricSpec,
    Outcomes,
    Protocol,
    Provenance,
    Result,
    Score,
)  # fmt: skip

if TYPE_CHECKING:
    from clipbench.embed.embedder import Embedded, Embedder
    from clipbench.models.encoder import Encoder

METRIC_VERSION = 1


@dataclass(frozen=True)
class Measured:
    """What an experiment gives: scores, and what they come from.

    `images` and `texts` are the embedded items of each tower. `prompts` (the data set's, where empty) and `options` complete the
    protocol; `exclusions` count what was left out on purpose. `text_image`: (texts,) int64, the image of each text, where rows are
    worth saving for a search. `card`: what a CUDA card was doing.
    """

    scores: Sequence[Score]
    images: "Embedded | None" = None
    texts: "Embedded | None" = None
    matrices: Mapping[str, Matrix] = field(default_factory=dict)
    answers: Mapping[str, Answers] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    exclusions: Mapping[str, int] = field(default_factory=dict)
    text_image: IntArray | None = None
    card: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    `sources(options)` are the data sets it runs on with these options: none where it was not asked for, several for several
    results. `measure(embedder, data set)` is pure. `root`: the option by which users give a folder of theirs; `choices`: options
    that change how it is read. `order`: its place in a summary.
    """

    name: str
    metrics: tuple[MetricSpec, ...]
    sources: Callable[[DataOptions], Sequence[Source]]
    measure: Callable[["Embedder", Dataset], Measured]
    root: Root | None = None
    choices: tuple[Choice, ...] = ()
    order: int = 70


_registered: dict[str, Experiment] = {}


@cache
def _found() -> tuple[Experiment, ...]:
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return tuple(value for module in modules for value in vars(module).values() if isinstance(value, Experiment))


def all_experiments() -> dict[str, Experiment]:
    """Return every experiment by name, in the order in which a summary shows them."""
    found = [*_found(), *_registered.values()]
    return {e.name: e for e in sorted(found, key=lambda e: (e.order, e.name))}


def experiment(name: str) -> Experiment:
    """Return the experiment of that name. Raises: UsageError with the closest names."""
    known = all_experiments()
    if name not in known:
        raise UsageError(f"unknown experiment {name!r}; closest: {closest(name, known) or ', '.join(known)}")
    return known[name]


@contextmanager
def registered(*experiments: Experiment) -> Iterator[None]:
    """Add experiments that are defined elsewhere (a test, somebody's own conftest) for as long as the context lasts."""
    register(*experiments)
    try:
        yield
    finally:
        for one in experiments:
            _registered.pop(one.name, None)


def register(*experiments: Experiment) -> None:
    """Add experiments that are defined elsewhere. Raises: UsageError for a name that is taken."""
    for one in experiments:
        if one.name in all_experiments():
            raise UsageError(f"an experiment {one.name!r} is there already; give yours another name")
        _registered[one.name] = one


def score(spec: MetricSpec, outcomes: Outcomes) -> Score:
    """Return the mean of the outcomes with its 95 % interval, so that no value contradicts its outcomes.

    Rates: Wilson's, on the effective number where outcomes come in clusters. Others: bootstrap, clusters resampled whole; none for
    a single value.
    """
    values, clusters = outcomes.values, outcomes.clusters
    if clusters is not None and not spec.cluster:
        raise ValueError(f"{spec.name} has clusters; declare cluster=True, or a comparison would not know of them")
    if spec.kind != "rate":
        interval = bootstrap_interval(values, clusters=clusters)
    elif clusters is not None:
        interval = clustered_wilson_interval(values, clusters)
    else:
        interval = wilson_interval(float(values.sum()), len(values))
    return Score(spec, float(np.mean(values)), len(values), interval, outcomes)


def result_of(one: Experiment, encoder: "Encoder", dataset: Dataset, measured: Measured) -> Result:
    """Return the result of what an experiment measured, its scores in the order in which it declares them: the one builder.

    Raises: ValueError for a score that the experiment does not declare.
    """
    towers = {"images": measured.images, "texts": measured.texts}
    embedded = {tower: found for tower, found in towers.items() if found is not None}
    exclusions = dict(dataset.exclusions)
    for found in embedded.values():
        exclusions |= found.exclusions
    declared = [spec.name for spec in one.metrics]
    options: Mapping[str, Any] = json.loads(
        json.dumps({**dataset.options, **measured.options})
    )  # as a run file has them
    return Result(
        experiment=one.name,
        model=replace(encoder.identity, preprocessing=encoder.preprocessing),
        dataset=DatasetIdentity(
            dataset.name,
            dataset.fingerprint if len(dataset) else "",
            len(measured.images.ids) if measured.images is not None else len(dataset),
        ),
        protocol=Protocol(
            measured.prompts or dataset.prompts,
            METRIC_VERSION,
            dataset.classes,
            options,
        ),
        scores={s.spec.name: s for s in sorted(measured.scores, key=lambda s: declared.index(s.spec.name))},
        matrices=measured.matrices,
        answers=measured.answers,
        evidence={tower: found.evidence for tower, found in embedded.items()},  # type: ignore[misc]  # the two towers' names
        provenance=Provenance(
            tuple(sorted({name for found in embedded.values() for name in found.optimizations})),
            {tower: found.encoding for tower, found in embedded.items()},  # type: ignore[misc]  # the two towers' names
            exclusions | dict(measured.exclusions),
            measured.images.broken_names if measured.images is not None else (),
            measured.card,
            tuple(item.id for item in dataset.items if item.must_pass),
        ),
    )


def all_images(embedder: "Embedder", dataset: Dataset, reference: bool = False) -> "Embedded":
    """Return the embedded images of all items. Raises: DataError when one cannot be decoded: a matrix with a hole is no matrix."""
    images = embedder.images(dataset.items, reference=reference)
    if images.broken:
        raise DataError(f"{dataset.name}: {len(images.broken)} of {len(dataset)} images are broken: {images.broken[0]}")
    return images


def slices_of(groups: Iterable[str], languages: Iterable[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return the slice of each query by group and by language, None where nothing says any."""
    found = tuple(groups), tuple(languages)
    return (found[0] if any(found[0]) else None), (found[1] if any(found[1]) else None)


def check_dims(encoder: "Encoder", images: "Embedded", texts: "Embedded") -> None:
    """Raises: DataError when the towers give rows of different dim: no cosine is defined."""
    if images.rows.shape[1] != texts.rows.shape[1]:
        raise DataError(
            f"{encoder.identity.name} gives texts of dim {texts.rows.shape[1]} and images of dim {images.rows.shape[1]}; "
            f"a dual encoder gives both the same dim"
        )


def cosines_of(images: "Embedded", texts: "Embedded") -> Any:
    """Return the (images, texts) float64 cosines of unit rows."""
    return images.rows.astype(np.float64) @ texts.rows.astype(np.float64).T
