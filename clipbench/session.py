"""A session: models are loaded one at a time, measured once an experiment, judged, and gathered into a run.

The plugin and `evaluate` (`clipbench.notebook`) are two faces of it.
"""

import gc
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from clipbench.data.dataset import Dataset
from clipbench.embed.cache import EncoderCache
from clipbench.embed.cached_encoder import CachedEncoder
from clipbench.embed.known import KnownRows
from clipbench.embed.probe import probed
from clipbench.environment import describe_environment
from clipbench.errors import ClipbenchError, UsageError, WeightsUnavailableError
from clipbench.experiments import all_experiments, experiment
from clipbench.judge.references import contracts, judged
from clipbench.judge.trace import TRACED
from clipbench.models import load_encoder
from clipbench.models.device import ieee_float32, release
from clipbench.models.encoder import Encoder
from clipbench.models.weights import go_offline
from clipbench.models.zoo import ModelSpec
from clipbench.result import JsonObject, Result, Run, Skip
from clipbench.settings import PRECISIONS, Settings

RANDOM_REASON = "random weights: measured and recorded, not held to floors or published values"


class NotLoadedError(ClipbenchError):
    """A model that failed to load earlier in this session; the first failure was reported in full."""


@dataclass
class Session:
    """Holds at most one loaded encoder, the results so far, and what was skipped. Results survive any later failure."""

    settings: Settings
    results: dict[tuple[str, str], Result] = field(default_factory=dict)
    skipped: dict[tuple[str, str, str], Skip] = field(default_factory=dict)
    probes: dict[str, JsonObject] = field(default_factory=dict)
    _spec: ModelSpec | None = None
    _encoder: Encoder | None = None
    _known: KnownRows = field(default_factory=KnownRows)
    _float32: ExitStack = field(default_factory=ExitStack)
    _cache: EncoderCache | None = None
    _failed: dict[ModelSpec, ClipbenchError] = field(default_factory=dict)
    _errors: dict[tuple[str, str], ClipbenchError] = field(default_factory=dict)
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _unloadable: dict[str, ClipbenchError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: UsageError when the cache's folder cannot be one."""
        if self.settings.cache is not None:
            from clipbench.embed.store import RowStore

            self._cache = EncoderCache(RowStore(self.settings.cache, self.settings.cache_bytes))

    def encoder(self, spec: ModelSpec) -> Encoder:
        """Return the spec's encoder, loading it when it is not the one at hand; the one before is freed first.

        Raises: whatever loading raised, the first time; NotLoadedError, or WeightsUnavailableError again, after that.
        """
        if spec in self._failed:
            raise self._failed[spec]
        encoder = self._encoder
        if self._spec != spec or encoder is None:
            self.free()
            load = partial(self._loaded, spec)
            with ieee_float32(self.settings.device, self.settings.precision):  # the cache's key names it
                encoder = load() if self._cache is None else self._cache.encoder(spec, self.settings, load)
            self.adopt(spec, encoder)
        return encoder

    def _loaded(self, spec: ModelSpec) -> Encoder:
        if isinstance(self._failed.get(spec), NotLoadedError):
            raise self._failed[spec]
        self._failed[spec] = NotLoadedError(f"{spec.label} did not load; its first test says why")
        try:
            encoder = load_encoder(spec, self.settings)
        except WeightsUnavailableError as error:
            self._failed[spec] = error
            raise
        del self._failed[spec]
        return encoder

    def adopt(self, spec: ModelSpec, encoder: Encoder) -> None:
        """Take an encoder that was made elsewhere as the one that the spec names."""
        self.free()
        self._float32.enter_context(ieee_float32(self.settings.device, self.settings.precision))
        self._spec, self._encoder = spec, encoder
        self._known = encoder.known if isinstance(encoder, CachedEncoder) else KnownRows()

    def free(self) -> None:
        """Free the loaded encoder's memory."""
        if self._encoder is not None:
            self._encoder.close()
        self._float32.close()
        self._encoder = self._spec = None
        self._known = KnownRows()
        gc.collect()
        release(self.settings.device)

    def forget_rows(self) -> None:
        """Let go of rows in memory: what is measured next is the model's memory."""
        self._known.forget()

    def close(self) -> None:
        """Free the encoder and close the cache."""
        self.free()
        if self._cache is not None:
            self._cache.store.close()

    @property
    def cache_problems(self) -> list[str]:
        """What went wrong with the cache, in words; the results are as good without it."""
        return self._cache.store.problems if self._cache is not None else []

    def dataset(self, name: str) -> Dataset:
        """Return the items that an experiment asks for, loaded once a session.

        Raises: DataUnavailableError when they are not installed or not where they were said to be.
        """
        if name in self._unloadable:
            raise self._unloadable[name]
        if name not in self._datasets:
            try:
                self._datasets[name] = experiment(name).load(self.settings)
            except ClipbenchError as error:
                self._unloadable[name] = error
                raise
        return self._datasets[name]

    def replace_dataset(self, name: str, dataset: Dataset) -> None:
        """Give an experiment these items in place of its own."""
        self._datasets[name] = dataset

    def datasets(self) -> dict[str, Dataset]:
        """Return the data sets loaded so far, by their own name."""
        return {dataset.name: dataset for dataset in self._datasets.values()}

    def measure(self, spec: ModelSpec, name: str) -> Result:
        """Return the judged result of an experiment on a model, measured once a session.

        Raises: any ClipbenchError of loading or measuring.
        """
        key = (spec.label, name)
        if key in self._errors:
            raise self._errors[key]
        if key not in self.results:
            dataset = self.dataset(name)
            encoder = self.encoder(spec)
            # Whatever ends the measuring, it is not tried again for the experiment's other tests, and is in the run.
            self._errors[key] = NotLoadedError(self._unfinished(spec, name))
            self.skip(spec, name, str(self._errors[key]))
            try:
                settings = replace(self.settings, known=self._known)
                result = experiment(name).measure(encoder, dataset, settings)
                if name == TRACED:
                    result, self.probes[spec.label] = probed(encoder, dataset, self.settings, result)
                self.record(spec, result, name)
            except ClipbenchError as error:
                self._errors[key] = error
                self.unskip(spec, name)
                raise
            self.unskip(spec, name)
            del self._errors[key]
        return self.results[key]

    def record(self, spec: ModelSpec, result: Result, name: str = "") -> Result:
        """Judge a result and keep it; metrics of the same model and experiment recorded before are kept beside it.

        `name` is what the result was asked for by, where that is not its experiment (zero_shot:NAME).

        Contracts between two experiments are judged anew with every result of theirs, so that their order does not matter.
        """
        key = (spec.label, name or result.experiment)
        if key in self.results:
            result = replace(result, metrics={**self.results[key].metrics, **result.metrics})
        result.to_json()  # a number that is no number is refused here, before it can be compared with anything
        self.results[key] = result
        mine = {name: found for (label, name), found in self.results.items() if label == spec.label}
        for again in {key[1], *(c.experiment for c in contracts() if c.experiment in mine)}:
            self.results[(spec.label, again)] = replace(mine[again], verdicts=judged(mine[again], mine))
        if result.model.is_random and result.experiment not in ("model_card", "speed"):
            self.skip(spec, result.experiment, RANDOM_REASON)
        return self.results[key]

    def skip(self, spec: ModelSpec, name: str, reason: str) -> None:
        """Note that something was not measured or judged, and why; what only points to such a note is not added."""
        entry = Skip(name, spec.label, reason)
        told = any((s.experiment, s.model) == (entry.experiment, entry.model) for s in self.skipped.values())
        if told and isinstance(self._failed.get(spec), NotLoadedError) and reason == str(self._failed[spec]):
            return
        self.skipped[(entry.experiment, entry.model, entry.reason)] = entry

    def unskip(self, spec: ModelSpec, name: str) -> None:
        """Take back what was noted before measuring."""
        self.skipped.pop((name, spec.label, self._unfinished(spec, name)), None)

    def _unfinished(self, spec: ModelSpec, name: str) -> str:
        return f"{name} of {spec.label} did not finish: the session was interrupted, or its first test says why"

    def failed_to_load(self) -> list[str]:
        """Return the models that are there but could not be loaded: never a pass."""
        return [spec.label for spec, error in self._failed.items() if not isinstance(error, WeightsUnavailableError)]

    def run(self) -> Run:
        """Return everything measured so far with its environment: model after model, experiments in a summary's order."""
        environment = describe_environment(self.settings.device)
        place = {label: k for k, label in enumerate(dict.fromkeys(label for label, _ in self.results))}
        order = {e.name: e.order for e in all_experiments().values()}
        results = sorted(self.results.items(), key=lambda entry: (place[entry[0][0]], order[entry[1].experiment]))
        skipped, probes = tuple(self.skipped.values()), tuple(self.probes.values())
        return Run(environment, tuple(result for _, result in results), skipped, probes)


def make_settings(
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    workers: int | None = None,
    offline: bool = False,
    **more: Any,
) -> Settings:
    """Return settings with the device looked up and defaults filled in.

    Raises: UsageError for a device, precision, batch size or number of workers that cannot be.
    """
    from clipbench.models.device import default_batch_size, default_text_positions, default_workers, resolve_device

    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected 1 or more")
    if workers is not None and workers < 0:
        raise UsageError(f"--workers {workers}: expected 0 or more")
    if offline:
        go_offline()
    found = resolve_device(device)
    size = batch_size or default_batch_size(found)
    threads = default_workers() if workers is None else workers
    positions = 0 if batch_size else default_text_positions(found)
    return Settings(
        device=found,
        precision=precision,
        batch_size=size,
        workers=threads,
        text_positions=positions,
        offline=offline,
        **more,
    )
