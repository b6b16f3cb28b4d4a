"""The notebook's face of a session: `clipbench.evaluate`."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from clipbench.data.dataset import kept_pictures, picture_budget_bytes
from clipbench.errors import ClipbenchError, DataUnavailableError, UsageError, WeightsUnavailableError
from clipbench.experiments import all_experiments, experiment
from clipbench.judge.references import doubtful
from clipbench.models import wrap_encoder
from clipbench.models.zoo import ModelSpec, resolve
from clipbench.result import Run
from clipbench.session import Session, make_settings
from clipbench.settings import Settings


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

    `model` is a name, a list of names, or an object with encode_images and encode_texts. `settings` are device ("auto"), precision
    ("fp32"), batch_size, workers, offline, seed, plain, cache (a folder), coco, roco, zero_shot. What cannot be had is noted in
    `Run.skipped`; nothing is asserted: read `Result.verdicts`. A model that fails beside others that were measured is noted there,
    too. Warns of a cache that failed, and of a shortcut found wrong.

    Raises: UnknownModelError, UsageError; CheckpointError, DataError, EncoderError when nothing could be measured.
    """
    with closing(Session(make_settings(**settings))) as session:
        names = _named(session, experiments)
        specs = _specs(session, model, pretrained, activation)
        failures = _measured(session, specs, names)
        run = session.run()
    if failures and not session.results:
        raise failures[0]
    for problem in (*session.cache_problems, *doubtful(run)):
        warnings.warn(problem, stacklevel=2)
    return run


def _named(session: Session, experiments: Iterable[str] | None) -> list[str]:
    """The experiments by name. An unknown one is refused before anything is loaded."""
    if experiments is None:
        return default_experiments(session.settings)
    names = [experiments] if isinstance(experiments, str) else list(experiments)
    for name in names:
        experiment(name)
    return names


def _specs(session: Session, model: Any, pretrained: str | None, activation: str | None) -> tuple[ModelSpec, ...]:
    if isinstance(model, Sequence) and not model:
        raise UsageError("no model was given; `clipbench models` lists the names")
    if isinstance(model, str) or (isinstance(model, Sequence) and all(isinstance(m, str) for m in model)):
        return resolve([model] if isinstance(model, str) else model, pretrained, activation)
    if pretrained or activation:
        raise UsageError(
            "pretrained and activation cannot be used with an encoder object, which brings its own weights"
        )
    encoder = wrap_encoder(model, session.settings)
    spec = ModelSpec(encoder.identity.name, "factory", "factory")
    session.adopt(spec, encoder)
    return (spec,)


def _measured(session: Session, specs: Sequence[ModelSpec], names: Sequence[str]) -> list[ClipbenchError]:
    """Measure all; what failed for another reason than that it cannot be had."""
    failures: list[ClipbenchError] = []
    several = len(specs) * len(names) > 1 and not session.settings.plain
    with kept_pictures(picture_budget_bytes() if several else 0):
        for spec in specs:
            for name in names:
                try:
                    session.measure(spec, name)
                except ClipbenchError as error:
                    session.skip(spec, name, str(error))
                    if not isinstance(error, WeightsUnavailableError | DataUnavailableError):
                        failures.append(error)
    return failures
