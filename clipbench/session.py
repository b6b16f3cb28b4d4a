"""A session: models are loaded one at a time, measured once an experiment, judged, and gathered into a run.

The plugin and `evaluate` are two faces of it.
"""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clipbench.data.dataset import Dataset
from clipbench.embed.probe import probed
from clipbench.environment import describe_environment
from clipbench.errors import ClipbenchError, DataUnavailableError, UsageError, WeightsUnavailableError
from clipbench.experiments import all_experiments, experiment
from clipbench.judge.medical import contracts
from clipbench.judge.verdict import judged
from clipbench.models.device import release
from clipbench.models.encoder import Encoder
from clipbench.models.load import load_encoder, wrap_encoder
from clipbench.models.resolve import resolve
from clipbench.models.weights import go_offline
from clipbench.models.zoo import ModelSpec
from clipbench.result import JsonObject, Result, Run, Skip
from clipbench.settings import PRECISIONS, Settings

PROBED = "natural"
"""The experiment whose items, eight packaged pictures and captions, the probe is taken on: no model is loaded for it alone."""

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
    _failed: dict[ModelSpec, ClipbenchError] = field(default_factory=dict)
    _errors: dict[tuple[str, str], ClipbenchError] = field(default_factory=dict)
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _unloadable: dict[str, ClipbenchError] = field(default_factory=dict)

    def encoder(self, spec: ModelSpec) -> Encoder:
        """Return the spec's encoder, loading it when it is not the one at hand; the one before is freed first.

        Raises: whatever loading raised, the first time; NotLoadedError, or WeightsUnavailableError again, after that.
        """
        if spec in self._failed:
            raise self._failed[spec]
        if self._spec != spec or self._encoder is None:
            self.free()
            self._failed[spec] = NotLoadedError(f"{spec.label} did not load; its first test says why")
            try:
                self._encoder = load_encoder(spec, self.settings)
            except WeightsUnavailableError as error:
                self._failed[spec] = error
                raise
            self._spec = spec
            del self._failed[spec]
        return self._encoder

    def adopt(self, spec: ModelSpec, encoder: Encoder) -> None:
        """Take an encoder that was made elsewhere as the one that the spec names."""
        self.free()
        self._spec, self._encoder = spec, encoder

    def free(self) -> None:
        """Free the loaded encoder's memory."""
        if self._encoder is not None:
            self._encoder.close()
        self._encoder = self._spec = None
        gc.collect()
        release(self.settings.device)

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
            self._errors[key] = NotLoadedError(f"{name} of {spec.label} failed; its first test says why")
            self.skip(spec, name, str(self._errors[key]))
            try:
                result = experiment(name).measure(encoder, dataset, self.settings)
                if name == PROBED:
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
        """Note that something was not measured, or not held to its references, and why."""
        entry = Skip(name, spec.label, reason)
        self.skipped[(entry.experiment, entry.model, entry.reason)] = entry

    def unskip(self, spec: ModelSpec, name: str) -> None:
        """Take back what was noted before measuring."""
        reason = f"{name} of {spec.label} failed; its first test says why"
        self.skipped.pop((name, spec.label, reason), None)

    def failed_to_load(self) -> list[str]:
        """Return the models that are there but could not be loaded: never a pass, whatever became of their tests."""
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
    workers: int = 0,
    offline: bool = False,
    **more: Any,
) -> Settings:
    """Return settings with the device looked up and defaults filled in.

    Raises: UsageError for a device, precision, batch size or number of workers that cannot be.
    """
    from clipbench.models.device import default_batch_size, resolve_device

    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected 1 or more")
    if workers < 0:
        raise UsageError(f"--workers {workers}: expected 0 or more")
    if offline:
        go_offline()
    found = resolve_device(device)
    size = batch_size or default_batch_size(found)
    return Settings(device=found, precision=precision, batch_size=size, workers=workers, offline=offline, **more)


def default_experiments(settings: Settings) -> list[str]:
    """Return every experiment that exists with these settings: those on full data sets only where the folder was given."""
    names = [e.name for e in all_experiments().values() if e.exists(settings)]
    return [part for n in names for part in ([f"{n}:{k}" for k, _ in settings.zero_shot] if n == "zero_shot" else [n])]


def evaluate(
    model: str | Sequence[str] | Any = "lite",
    experiments: Iterable[str] | None = None,
    *,
    pretrained: str | None = None,
    activation: str | None = None,
    **settings: Any,
) -> Run:
    """Return the run of these experiments (default: all) on these models: what `pytest benchmarks` measures, for a notebook.

    `model` is a name, a list of names, or an object with encode_images and encode_texts. `settings` are device ("auto"),
    precision ("fp32"), batch_size, workers, offline, seed. What cannot be had is noted in `Run.skipped`; nothing is asserted:
    read `Result.verdicts`. A model that fails beside others that were measured is noted there, too.

    Raises: UnknownModelError, UsageError; CheckpointError, DataError, EncoderError when nothing could be measured.
    """
    session = Session(make_settings(**settings))
    if isinstance(experiments, str):
        experiments = [experiments]
    if isinstance(model, Sequence) and not model:
        raise UsageError("no model was given; `clipbench models` lists the names")
    names = default_experiments(session.settings) if experiments is None else list(experiments)
    for name in names:
        experiment(name)  # an unknown name is refused before anything is loaded
    if isinstance(model, str) or (isinstance(model, Sequence) and all(isinstance(m, str) for m in model)):
        specs = resolve([model] if isinstance(model, str) else model, pretrained, activation)
    else:
        if pretrained or activation:
            raise UsageError(
                "pretrained and activation cannot be used with an encoder object, which brings its own weights"
            )
        encoder = wrap_encoder(model, session.settings)
        specs = (ModelSpec(encoder.identity.name, "factory", "factory"),)
        session.adopt(specs[0], encoder)
    failures: list[ClipbenchError] = []
    for spec in specs:
        for name in names:
            try:
                session.measure(spec, name)
            except ClipbenchError as error:
                session.skip(spec, name, str(error))
                if not isinstance(error, WeightsUnavailableError | DataUnavailableError):
                    failures.append(error)
    session.free()
    if failures and not session.results:
        raise failures[0]
    return session.run()
