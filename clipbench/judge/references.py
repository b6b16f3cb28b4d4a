"""Expected values with a source: published cards and matrices, and the floors this project enforces. All of it is data."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from clipbench.models.zoo import zoo
from clipbench.paths import fixtures
from clipbench.result import ModelIdentity


@dataclass(frozen=True)
class Floor:
    """A claim: `metrics` of `experiment` on `dataset` are at least `at_least` for these models with these weights."""

    experiment: str
    dataset: str
    models: Sequence[str]
    weights: str
    metrics: Sequence[str]
    at_least: float
    source: str


@dataclass(frozen=True)
class PublishedMatrix:
    """A published square matrix of cosines (texts, images), both axes in the order of `names`; -1 marks no value."""

    model: str
    weights: str
    source: str
    differing_columns: Sequence[str]
    names: Sequence[str]
    printed: Sequence[Sequence[float]]
    decoded: Sequence[Sequence[float]] = ()

    def cell(self, row: int, column: int) -> tuple[float, float] | None:
        """Return (value, tolerance) of a cell, the finer value first, or None where nothing was published."""
        fine, coarse = tolerances()
        if self.decoded and self.decoded[row][column] >= 0:
            return self.decoded[row][column], fine
        return (self.printed[row][column], coarse) if self.printed[row][column] >= 0 else None


@cache
def floors() -> tuple[Floor, ...]:
    """Return every row of fixtures/floors.toml."""
    return tuple(Floor(**row) for row in _table("floors.toml")["floor"])


@cache
def published_matrices() -> tuple[PublishedMatrix, ...]:
    """Return every row of fixtures/published/natural_similarity.toml."""
    return tuple(PublishedMatrix(**row) for row in _table("published/natural_similarity.toml")["matrix"])


@cache
def tolerances() -> tuple[float, float]:
    """Return the tolerances on a re-run in cosine: of decoded cells, of printed cells."""
    table = _table("published/natural_similarity.toml")
    return table["tolerance_decoded"], table["tolerance_printed"]


def weights_of(model: ModelIdentity) -> str:
    """Return the tag whose weights these are: OpenAI's own files are recognised by their SHA-256, however they were given."""
    row = zoo().get(model.name)
    if row and model.file_sha256 == row.openai_checkpoint_sha256:
        return "openai"
    return model.pretrained


@cache
def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((fixtures() / name).read_text(encoding="utf-8"))
