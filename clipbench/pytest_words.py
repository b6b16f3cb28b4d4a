"""What a session says of itself: its header, which experiment a benchmark is about, and what to do next."""

from collections.abc import Collection, Iterable, Iterator

import pytest

from clipbench.models.zoo import ModelSpec, zoo
from clipbench.pytest_baseline import Outcome
from clipbench.settings import Request, Settings

SUGGESTED = "ViT-B/16"


def header_lines(specs: Iterable[ModelSpec], request: Request, settings: Settings | None) -> list[str]:
    """Return which models, weights, device and precision will run; `settings` is None where nothing is measured."""
    lines = []
    for spec in specs:
        own = {"lite": "embedded smoke model", "factory": "your own encoder"}
        activation = f", {spec.activation} ({spec.why})" if spec.activation else ""
        lines.append(f"clipbench model: {spec.name}, {own.get(spec.source, f'weights {spec.pretrained}')}{activation}")
    device, size, workers = request.device, request.batch_size or "default", request.workers or "default"
    if settings is not None:
        device, size, workers = settings.device, settings.batch_size, settings.workers
    lines.append(f"clipbench device: {device}, precision {request.precision}, batch size {size}, workers {workers}")
    if request.plain:
        lines.append("clipbench rows: every one by the plain call (--plain)")
    elif request.cache is not None:
        lines.append(f"clipbench cache: {request.cache}")
    return lines


def experiment_of(item: pytest.Function) -> str:
    """Return the experiment that a benchmark is about: test_NAME.py, with the name of zero_shot's data set."""
    name = item.path.stem.removeprefix("test_")
    dataset = item.callspec.params.get("zero_shot_name")
    return f"{name}:{dataset}" if dataset else name


def to_junit(config: pytest.Config, outcome: Outcome) -> None:
    """Put the verdicts against baseline and anchor into JUnit's file (--junitxml), as properties of the suite.

    Pytest's own plugin writes it, and is only there with that option.
    """
    said = [(line.partition(" ")[0], line) for line in outcome.lines if not line.startswith(" ")]
    for r in outcome.run.results:
        found = [v for v in r.verdicts if v.kind in ("baseline", "anchor")]
        said += [(f"{r.experiment}:{r.model.name}:{v.metric}:{v.kind}", f"{v.verdict}: {v.reason}") for v in found]
    for plugin in config.pluginmanager.get_plugins():
        add = getattr(plugin, "add_global_property", None)
        if add is not None:
            for name, value in said:
                add(f"clipbench:{name}", value)


def next_step(models: Collection[str]) -> Iterator[str]:
    """Return what to run next when only the smoke model ran."""
    if set(models) == {"lite"}:
        size = zoo()[SUGGESTED].download_bytes / 1e6
        yield f"lite is a smoke model, not CLIP. Next, a real CLIP (downloads {size:,.0f} MB once):"
        yield f"    pytest benchmarks --model {SUGGESTED}"
