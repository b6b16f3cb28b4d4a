"""The experiments: one file each, found by looking. A new experiment is one file here and one in benchmarks/."""

import importlib
import pkgutil
from dataclasses import replace
from functools import cache, partial

from clipbench.errors import UsageError, closest
from clipbench.experiments.experiment import Experiment


@cache
def all_experiments() -> dict[str, Experiment]:
    """Return every experiment by name, in the order in which a summary shows them."""
    found: list[Experiment] = []
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        found += [value for value in vars(loaded).values() if isinstance(value, Experiment)]
    return {e.name: e for e in sorted(found, key=lambda e: (e.order, e.name))}


def experiment(name: str) -> Experiment:
    """Return the experiment of that name; `zero_shot:NAME` is zero_shot on the labelled folder that was given as NAME.

    Raises: UsageError with the closest names.
    """
    known = all_experiments()
    base, _, part = name.partition(":")
    load_part = known[base].load_part if part and base in known else None
    if load_part is not None:
        return replace(known[base], load=partial(load_part, part))
    if name not in known:
        raise UsageError(f"unknown experiment {name!r}; closest: {closest(name, known) or ', '.join(known)}")
    return known[name]
