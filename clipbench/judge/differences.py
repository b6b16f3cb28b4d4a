"""What the two runs do not share beside their outcomes: machine, software, weights, precision, protocol. Most telling first."""

from collections.abc import Iterator, Mapping
from typing import Any

from clipbench.judge.finding import Difference
from clipbench.judge.matching_results import SUBJECT_KEYS, Matched, shown
from clipbench.result import ModelIdentity, Run

IDENTITY = ("pretrained", "activation", "precision", "device")
HASH_LETTERS = 12


def differences(base: Run, head: Run, matched: Matched) -> tuple[Difference, ...]:
    """Return what differs, and for each model whether its weights are the same ones."""
    found = dict.fromkeys(d for pair in matched.pairs for d in _models(pair.base.model, pair.head.model))
    found |= dict.fromkeys(_protocols(matched))
    for part in ("software", "machine"):
        before, after = base.environment.get(part, {}), head.environment.get(part, {})
        found |= dict.fromkeys(_tables(before, after))
    return tuple(found)


def _models(base: ModelIdentity, head: ModelIdentity) -> Iterator[Difference]:
    if base.weights_sha256 and head.weights_sha256:
        yield Difference(f"weights of {base.name}", _short(base.weights_sha256), _short(head.weights_sha256))
    for name in IDENTITY:
        before, after = getattr(base, name), getattr(head, name)
        if before != after:
            yield Difference(f"{name} of {base.name}", before or "none", after or "none")


def _protocols(matched: Matched) -> Iterator[Difference]:
    for pair in matched.pairs:
        before, after = pair.base.protocol, pair.head.protocol
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                aside = " (hinders no comparison)" if key in SUBJECT_KEYS else ""
                what = f"{key} of {pair.base.experiment}{aside}"
                yield Difference(what, *_apart(shown(before.get(key)), shown(after.get(key))))


def _tables(base: Mapping[str, Any], head: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted({*base, *head}):
        before, after = base.get(name, "absent"), head.get(name, "absent")
        if before != after:
            yield Difference(name, str(before) or "none", str(after) or "none")


def _apart(before: str, after: str) -> tuple[str, str]:
    """Two values that differ beyond what is shown of them."""
    return (before, after) if before != after else (before, f"{after} (differs further on)")


def _short(sha256: str) -> str:
    return sha256[:HASH_LETTERS]
