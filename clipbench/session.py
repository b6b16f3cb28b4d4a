"""A session: models are loaded one at a time, each key of the plan is measured once, judged once, and gathered into a run.

The pytest plugin and `evaluate` are its two entry points.
"""

import datetime
import gc
import platform
import sys
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clipbench.data.dataset import Dataset, Source, at_depth, kept_pictures, limited, picture_budget_bytes
from clipbench.embed.cache import cache_of
from clipbench.embed.embedder import Embedder, Progress, no_progress
from clipbench.embed.trace import trace_of
from clipbench.errors import (
    ClipbenchError,
    DataError,
    DataUnavailableError,
    EncoderError,
    UsageError,
    WeightsUnavailableError,
)
from clipbench.experiments import Experiment, Measured, all_experiments, experiment, result_of
from clipbench.judge.references import judge
from clipbench.models import load_encoder, wrap_encoder
from clipbench.models.device import Resources, describe_machine, float32_as_asked, release, resolve_resources
from clipbench.models.encoder import Encoder
from clipbench.models.weights import go_offline
from clipbench.models.zoo import ModelSpec, resolve
from clipbench.options import Options
from clipbench.parts import write_part
from clipbench.redact import LEFT_OUT, pseudonym, redacted
from clipbench.resume import (
    Left,
    data_sha256,
    made_with,
    package_sha256,
    rows_differ,
    sample_of,
    source_sha256,
    why_not,
)
from clipbench.storage import dump_json, result_to_json
from clipbench.types import JsonObject, Key, Plan, Result, Run, Skip, SubjectRecord, Verdict

SOFTWARE = (
    "clipbench", "torch", "torchvision", "open_clip_torch", "timm", "transformers", "tokenizers", "numpy", "pillow",
    "safetensors", "onnxruntime", "scikit-image", "pydicom", "pycocotools", "scipy", "pytest", "pytest-benchmark",
)  # fmt: skip


class NotLoadedError(ClipbenchError):
    """A model that failed to load, or a measurement that did not finish, earlier in this session; the first failure was reported."""


@dataclass
class Session:
    """Holds at most one loaded encoder, the results so far, and what was skipped. Results survive any later failure.

    `parts`: a folder into which each result is written as soon as it is measured. `unwritten`: what could not be written, in
    words; the results in memory are as good. `left`: what unfinished sessions left that this one continues. `notes`: what came of that.
    `absent`: what cannot be had here (weights, data), by key.
    """

    options: Options
    resources: Resources
    progress: Progress = no_progress
    parts: Path | None = None
    left: Mapping[Key, Sequence[Left]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    time: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    plan: Plan = ()
    results: dict[Key, Result] = field(default_factory=dict)
    skipped: dict[tuple[Key, str], Skip] = field(default_factory=dict)
    subjects: dict[str, SubjectRecord] = field(default_factory=dict)
    traces: dict[str, JsonObject] = field(default_factory=dict)
    unwritten: list[str] = field(default_factory=list)
    absent: set[Key] = field(default_factory=set)
    _source: str = ""
    _spec: ModelSpec | None = None
    _specs: set[ModelSpec] = field(default_factory=set)
    _embedder: Embedder | None = None
    _float32: ExitStack = field(default_factory=ExitStack)
    _failed: dict[ModelSpec, ClipbenchError] = field(default_factory=dict)
    _errors: dict[Key, ClipbenchError] = field(default_factory=dict)
    _datasets: dict[tuple[str, str], Dataset | ClipbenchError] = field(default_factory=dict)
    _verdicts: dict[Key, tuple[Verdict, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: UsageError when the cache's folder cannot be one."""
        package_sha256()  # of the code as it is now, not as it is when a result has been measured
        self._store = None
        if self.options.cache is not None:
            from clipbench.embed.store import RowStore

            self._store = RowStore(self.options.cache, self.options.cache_bytes)

    def embedder(self, spec: ModelSpec) -> Embedder:
        """Return the spec's embedder, loading its encoder when it is not the one at hand; the one before is freed first.

        Raises: whatever loading raised, the first time; NotLoadedError, or WeightsUnavailableError again, after that.
        """
        if spec in self._failed:
            raise self._failed[spec]
        if self._spec == spec and self._embedder is not None:
            return self._embedder
        self.encode_again()
        self.free()
        self._failed[spec] = NotLoadedError(f"{spec.label} did not load; its first test says why")
        try:
            with float32_as_asked(self.resources.device, self.resources.precision):
                encoder = load_encoder(spec, self.resources, self.options.offline)
        except WeightsUnavailableError as error:
            self._failed[spec] = error
            raise
        del self._failed[spec]
        return self.adopt(spec, encoder)

    def adopt(self, spec: ModelSpec, encoder: Encoder) -> Embedder:
        """Take an encoder that was made elsewhere as the one that the spec names."""
        self.free()
        self.subjects[spec.name] = subject_of(spec, encoder, self.options)
        self._float32.enter_context(float32_as_asked(self.resources.device, self.resources.precision))
        cache = cache_of(encoder, self.resources.device, self._store, reads=not self.options.is_gate)
        self._spec, self._source = spec, source_sha256(spec, encoder)
        self._specs.add(spec)
        self._embedder = Embedder(encoder, self.resources, cache, not self.options.no_optimizations, self.progress)
        return self._embedder

    def encode_again(self) -> None:
        """In a gate, encode a sample of the loaded encoder's rows again, once, and note in its trace how far they moved."""
        if not self.options.is_gate or self._spec is None or self._embedder is None:
            return
        trace = self.traces.get(self._spec.name)
        if trace is not None and "again" not in trace:
            try:
                trace["again"] = again = self._embedder.encode_again()
                for found in again.values() if self.options.redact else ():
                    found["items"] = [pseudonym(item) for item in found["items"]]
            except Exception as error:  # noqa: BLE001  # somebody else's encoder: the trace says so, and fails its cell
                trace["error"] = f"rows of this run could not be encoded again: {error or type(error).__name__}"

    def free(self) -> None:
        """Free the loaded encoder's memory."""
        if self._embedder is not None:
            self._embedder.encoder.close()
        self._float32.close()
        self._embedder = self._spec = None
        gc.collect()
        release(self.resources.device)

    def close(self) -> None:
        """Free the encoder and close the cache."""
        self.free()
        if self._store is not None:
            self._store.close()

    @property
    def cache_problems(self) -> list[str]:
        """What went wrong with the cache, in words; the results are as good without it."""
        return self._store.problems if self._store is not None else []

    def dataset(self, one: Experiment, name: str) -> Dataset:
        """Return the data set of that name of an experiment, loaded once per session.

        Raises: UsageError for a name that the experiment has not with these options; DataUnavailableError when items are not
        installed or not where they were said to be; DataError when they are malformed.
        """
        place = (one.name, name)
        if place not in self._datasets:
            try:
                found = source_of(one, name, self.options).load()
                if found.name != name:
                    raise DataError(
                        f"{one.name}: its source {name!r} loads the data set {found.name!r}; name both alike"
                    )
                if one.root is not None and one.root.is_named and name in self.options.settings.prompts:
                    found = replace(found, prompts=self.options.settings.prompts[name])
                self._datasets[place] = limited(at_depth(found, self.options.data), self.options.data)
            except ClipbenchError as error:
                self._datasets[place] = error
        loaded = self._datasets[place]
        if isinstance(loaded, ClipbenchError):
            raise loaded
        return loaded

    def datasets(self) -> list[Dataset]:
        """Return the data sets loaded so far whose pictures and captions may be shown."""
        loaded = self._datasets.items()
        return [d for (name, _), d in loaded if isinstance(d, Dataset) and not self._keeps(name)]

    def measure(self, spec: ModelSpec, key: Key) -> Result:
        """Return the result of a key, measured once per session.

        Raises: any ClipbenchError of loading or measuring.
        """
        if key in self._errors:
            raise self._errors[key]
        if key not in self.results:
            one = experiment(key.experiment)
            dataset, embedder = self.dataset(one, key.dataset), self.embedder(spec)
            try:
                made_with = self._made_with(spec, one)
                if not self._continued(spec, one, dataset, made_with):
                    measured = one.measure(embedder, dataset)
                    self.record(spec, one, dataset, measured, made_with)
                    if measured.images is not None and spec.name not in self.traces:
                        self._trace(spec)
                        self._keep()
            except ClipbenchError as error:
                self._errors[key] = error
                raise
            except BaseException:  # whatever ends the measuring, it is not tried again for the experiment's other tests
                reason = f"{key} did not finish: the session was interrupted, or its first test says why"
                self._errors[key] = NotLoadedError(reason)
                self.skip(key, reason)
                raise
        return self.results[key]

    def rescored(self, base: Run) -> list[Result]:
        """Return results on exactly the items and classes of base's, of data sets that hold more than these by now."""
        found = []
        by_name = {spec.name: spec for spec in self._specs}
        for before in base.results:
            after, images = self.results.get(before.key), before.evidence.get("images")
            if after is None or images is None or before.dataset.fingerprint == after.dataset.fingerprint:
                continue
            one = experiment(before.experiment)
            whole = self.dataset(one, before.key.dataset)
            names = (*(item.id for item in whole.items), *whole.classes) if self._keeps(one.name) else ()
            known = {pseudonym(name): name for name in names}
            classes = [known.get(name, name) for name in before.protocol.classes]
            if not set(classes) <= set(whole.classes):
                continue
            part = whole.part([known.get(name, name) for name in images.ids], classes or whole.classes)
            if len(part) > 1 and (len(part) < len(whole) or part.classes != whole.classes):
                spec = by_name[before.model.name]
                found.append(self._result(spec, one, part, one.measure(self.embedder(spec), part)))
        return found

    def _result(self, spec: ModelSpec, one: Experiment, dataset: Dataset, measured: Measured) -> Result:
        result = result_of(one, self.embedder(spec).encoder, dataset, measured)
        result = redacted(result) if self._keeps(one.name) else result
        return replace(result, model=replace(result.model, name=spec.name, known_as=spec.known_as))

    def _continued(self, spec: ModelSpec, one: Experiment, dataset: Dataset, now: Mapping[str, str]) -> bool:
        """Take a result over that an unfinished session left, where all that it depends on is the same; else note why not."""
        why, embedder, key = "", self.embedder(spec), Key(one.name, spec.name, dataset.name)
        now = {**now, "data": data_sha256(dataset)} if key in self.left else now
        for left in self.left.get(key, ()):
            trace = self._trace(spec)
            against = why_not(left, now, trace)
            if not against:
                try:
                    part = sample_of(dataset, left)
                    measured = one.measure(embedder.without_cache(), part)
                    against = rows_differ(left, self._result(spec, one, part, measured), trace)
                except Exception as error:  # noqa: BLE001  # whatever it is, the whole of it is measured, and may raise it
                    against = f"a sample of it could not be encoded again: {error}"
            if not against:
                provenance = replace(left.result.provenance, resumed=left.time)
                self.results[key] = replace(left.result, provenance=provenance, verdicts=())
                self._keep(self.results[key], now)
                return True
            why = why or against
        if why:
            self.notes.append(f"{key} is measured anew: {why}")
        return False

    def _trace(self, spec: ModelSpec) -> JsonObject:
        """The trace of a model, measured once per session."""
        if spec.name not in self.traces:
            self.traces[spec.name] = trace_of(self.embedder(spec).encoder)
        return self.traces[spec.name]

    def _made_with(self, spec: ModelSpec, one: Experiment) -> dict[str, str]:
        """Hashes of what a result will depend on beside its data, taken before it is measured; {} where no part is written."""
        if self.parts is None:
            return {}
        encoder, where = self.embedder(spec).encoder, environment(self.resources.device)
        return made_with(encoder, self._source, self.subjects[spec.name], one, where)

    def record(
        self,
        spec: ModelSpec,
        one: Experiment,
        dataset: Dataset,
        measured: Measured,
        made_with: Mapping[str, str] = MappingProxyType({}),
    ) -> Result:
        """Keep what was measured, on disk too; scores of the same key recorded before are kept beside it. `made_with`: see `resume`."""
        result = self._result(spec, one, dataset, measured)
        if result.key in self.results:
            result = replace(result, scores={**self.results[result.key].scores, **result.scores})
        dump_json(result_to_json(result))  # a number that is no number is refused here
        self.results[result.key] = result
        self._keep(result, {**made_with, "data": data_sha256(dataset)} if made_with else {})
        try:
            if self.options.save_embeddings and measured.text_image is not None:
                from clipbench.saved_rows import SavedRows, write_rows

                write_rows(self.options.results, SavedRows.of(result, measured))
        except OSError as error:
            self.unwritten.append(f"{result.key}: {error}")
        return result

    def _keep(self, result: Result | None = None, made_with: Mapping[str, str] | None = None) -> None:
        """Write what a session that is killed would lose: its plan, what is known of its models, and a result."""
        if self.parts is None:
            return
        models = tuple(self.subjects.values()), tuple(self.traces.values())
        opening = Run(environment(self.resources.device), (), (), *models, self.plan, self.id, self.time)
        try:
            write_part(self.parts, opening, self.options.hashes(), result, made_with)
        except OSError as error:
            self.unwritten.append(f"{result.key if result else 'the session'}: {error}")

    def verdicts(self, key: Key) -> tuple[Verdict, ...]:
        """Return the verdicts of a result against its references: judged when first asked, and only once."""
        if key not in self._verdicts:
            beside = {k.experiment: r for k, r in self.results.items() if k.model == key.model}
            self._verdicts[key] = judge(self.results[key], beside, self.options.settings.floors)
        return self._verdicts[key]

    def skip(self, key: Key, reason: str, is_absent: bool = False) -> None:
        """Note that something was not measured, and why. `is_absent`: what it needs cannot be had here."""
        self.absent |= {key} if is_absent else set()
        reason = LEFT_OUT if self._keeps(key.experiment) else reason
        self.skipped[key, reason] = Skip(key, reason)

    def _keeps(self, name: str) -> bool:
        """Are the names of an experiment's items kept inside? Those of data that somebody gave are, packaged ones are public."""
        return self.options.redact and bool(self.options.own_data(name))

    def unmeasured(self) -> list[Key]:
        """Return what was planned, could be had and has no result: a session with any is unfinished."""
        return [key for key in self.plan if key not in self.results and key not in self.absent]

    def failed_to_load(self) -> list[str]:
        """Return the models that are there but could not be loaded: never a pass."""
        return [spec.name for spec, error in self._failed.items() if not isinstance(error, WeightsUnavailableError)]

    def run(self) -> Run:
        """Return everything measured so far with its environment: model after model, experiments in a summary's order.

        Verdicts are those of results that were judged. What the plan asked for and nobody measured is a skip, never nothing.
        """
        noted = {skip.key for skip in self.skipped.values()}
        absent = [key for key in self.plan if key not in self.results and key not in noted]
        place = {model: k for k, model in enumerate(dict.fromkeys(key.model for key in self.results))}
        order = {name: k for k, name in enumerate(all_experiments())}
        keys = sorted(self.results, key=lambda key: (place[key.model], order[key.experiment]))
        return Run(
            environment(self.resources.device),
            tuple(replace(self.results[key], verdicts=self._verdicts.get(key, ())) for key in keys),
            (*self.skipped.values(), *(Skip(key, "asked for and not measured") for key in absent)),
            tuple(self.subjects.values()),
            tuple(self.traces.values()),
            self.plan,
            self.id,
            self.time,
        )


def source_of(one: Experiment, name: str, options: Options) -> Source:
    """Return the data set of that name that an experiment can load with these options. Raises: UsageError where it has none."""
    sources = {source.name: source for source in one.sources(options.data)}
    if name not in sources:
        how = f"give its folder with --{one.root.option} {one.root.metavar}" if one.root is not None else "it has none"
        raise UsageError(f"{one.name} has no data set {name!r} (it has {', '.join(sources) or 'none'}); {how}")
    return sources[name]


def planned(models: Iterable[str], experiments: Iterable[str], options: Options) -> Plan:
    """Return the keys of these experiments on every data set that they have with these options, model after model."""
    asked = [(name, dataset) for name in experiments for dataset in options.datasets_of(name)]
    return tuple(Key(name, model, dataset) for model in models for name, dataset in asked)


def subject_of(spec: ModelSpec, encoder: Encoder, options: Options) -> SubjectRecord:
    """Return what was chosen of a model, and what is observed of it."""
    asked: JsonObject = {
        "alias": spec.name,
        "loader": spec.loader,
        "weights": spec.pretrained,
        "precision": options.precision,
        "activation": options.activation or "",
        "device": options.device,
    }
    found = SubjectRecord(spec.name, asked | dict(encoder.asked()), dict(encoder.observed()))
    try:
        dump_json({"asked": found.asked, "observed": found.observed})
    except (TypeError, ValueError) as error:
        raise EncoderError(
            f"{spec.label}: what it says of itself is no finite JSON ({error}): {found.observed}"
        ) from error
    return found


def environment(device: str) -> JsonObject:
    """Return {"machine": ..., "software": ...} of this process; packages that are not installed are absent."""
    software = {"python": platform.python_version(), "implementation": sys.implementation.name}
    for name in SOFTWARE:
        with suppress(PackageNotFoundError):
            software[name] = version(name)
    return {"machine": describe_machine(device), "software": software}


def resources_of(options: Options) -> Resources:
    """Return what a session with these options encodes with. Raises: UsageError for a device that does not exist here."""
    if options.offline:
        go_offline()
    return resolve_resources(options.device, options.precision, options.batch_size, options.workers)


def evaluate(
    model: str | Sequence[str] | Any = "lite", experiments: Iterable[str] | None = None, **settings: Any
) -> Run:
    """Return the run of these experiments (default: all) on these models: what `pytest benchmarks` measures, for a notebook.

    `model` is a name, a list of names, an object with encode_images and encode_texts, or open_clip's (model, preprocess, tokenizer);
    `clipbench.wrap` gives those three a name. `settings` are those of
    `Options.from_kwargs`: pretrained, activation, device ("auto"), precision ("fp32"), batch_size, workers, offline,
    no_optimizations, cache (a folder), model_args={KEY: VALUE}, limit, and data (dataset={NAME: PATH}, coco, roco,
    zero_shot={NAME: ROOT}). Nothing is asserted: read
    `Result.verdicts`; what cannot be had, or fails beside others, is noted in `Run.skipped`. Warns of a cache that failed, and
    where nothing could be measured.

    Raises: UnknownModelError, UsageError; CheckpointError, DataError, EncoderError when nothing could be measured.
    """
    options = Options.from_kwargs(**settings)
    asked = [experiments] if isinstance(experiments, str) else list(experiments or ())
    for name in asked:  # an unknown one, and one without data, is refused before anything is loaded
        if not options.datasets_of(name):
            root = experiment(name).root
            raise UsageError(
                f"{name} has no data" + (f"; give its folder: {root.option.replace('-', '_')}=..." if root else "")
            )
    names = asked or list(all_experiments())
    with closing(Session(options, resources_of(options))) as session:
        specs = _specs(session, model)
        session.plan = planned([spec.name for spec in specs], names, options)
        failures = _measured(session, specs)
    if failures and not session.results:
        raise failures[0]
    for key in session.results:
        session.verdicts(key)
    problems = [*session.cache_problems, *(f"not measured: {error}" for error in failures)]
    if not session.results:
        problems.append(f"nothing was measured: {'; '.join(dict.fromkeys(s.reason for s in session.skipped.values()))}")
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return session.run()


def _specs(session: Session, model: Any) -> tuple[ModelSpec, ...]:
    options = session.options
    names = [model] if isinstance(model, str) else model
    if isinstance(model, Sequence) and not model:
        raise UsageError("no model was given; `clipbench models` lists the names")
    if isinstance(names, Sequence) and all(isinstance(name, str) for name in names):
        return resolve(names, options.pretrained, options.activation, options.model_args)
    if options.pretrained or options.activation:
        what = "an encoder object, which brings its own weights"
        raise UsageError(f"pretrained and activation cannot be used with {what}")
    encoder = wrap_encoder(model, session.resources)
    spec = ModelSpec(encoder.identity.name, "factory", "factory")
    session.adopt(spec, encoder)
    return (spec,)


def _measured(session: Session, specs: Sequence[ModelSpec]) -> list[Exception]:
    """Measure all; what failed for another reason than that it cannot be had."""
    failures: list[Exception] = []
    several = len(session.plan) > 1 and not session.options.no_optimizations
    by_name = {spec.name: spec for spec in specs}
    with kept_pictures(picture_budget_bytes() if several else 0):
        for key in session.plan:
            try:
                session.measure(by_name[key.model], key)
            except ClipbenchError as error:
                session.skip(key, str(error))
                if not isinstance(error, WeightsUnavailableError | DataUnavailableError):
                    failures.append(error)
            except Exception as error:  # noqa: BLE001  # somebody else's encoder: what was measured before is not lost
                session.skip(key, f"{type(error).__name__}: {error}")
                failures.append(error)
    return failures
