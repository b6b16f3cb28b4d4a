"""The models clipbench knows by name, and the architectures of open_clip, as data. Imports neither torch nor open_clip."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

LITE = "lite"
LITE_IMAGE_SIZE, LITE_DIM = 224, 384
CARD_METRICS = ("params", "params_image", "params_text", "image_size", "context_length", "vocab_size", "embed_dim")
QUICKGELU_SUFFIX = "-quickgelu"


@dataclass(frozen=True)
class ZooModel:
    """One row of zoo.toml: an OpenAI model with its published card."""

    name: str
    open_clip: str
    study: bool
    params: int
    params_image: int
    params_text: int
    image_size: int
    context_length: int
    vocab_size: int
    embed_dim: int
    download_bytes: int
    openai_checkpoint_sha256: str
    source: str

    @property
    def card(self) -> dict[str, int]:
        """The published model card: metric name -> value."""
        return {name: getattr(self, name) for name in CARD_METRICS}


@dataclass(frozen=True)
class ModelSpec:
    """One model to load: what it is called, where its weights come from, and which activation it gets and why.

    `activation` is "" where the architecture leaves no choice.
    """

    name: str
    source: Literal["lite", "tag", "path", "random", "factory"]
    pretrained: str
    architecture: str = ""
    activation: str = ""
    why: str = ""

    @property
    def label(self) -> str:
        """The name for people: model and weights."""
        return self.name if self.source in ("lite", "factory") else f"{self.name} ({self.pretrained})"

    @property
    def download_bytes(self) -> int:
        """The size of the download that a first use of the `openai` tag costs, in bytes; 0 where nothing is known."""
        row = zoo().get(self.name)
        return row.download_bytes if row and self.pretrained == "openai" else 0


@cache
def zoo() -> dict[str, ZooModel]:
    """Return the table of OpenAI models by their own spelling, in the order of zoo.toml."""
    return {row["name"]: ZooModel(**row) for row in _tables()["model"]}


@cache
def cards() -> dict[str, tuple[dict[str, int], str]]:
    """Return the expected card of every model that has one, with its source: metric name -> value, by model name."""
    lite = dict(_tables()["lite"])
    return {LITE: (lite, lite.pop("source"))} | {row.name: (row.card, row.source) for row in zoo().values()}


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("zoo.toml").read_text(encoding="utf-8"))


@cache
def open_clip_configs() -> dict[str, Path]:
    """Return open_clip's architecture files by name, read from its package without importing it (that takes seconds)."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        return {}
    return {p.stem: p for p in sorted(Path(spec.submodule_search_locations[0], "model_configs").glob("*.json"))}


def is_two_flavoured(architecture: str) -> bool:
    """True for an architecture that open_clip has with GELU and with QuickGELU: the name alone does not say which."""
    return architecture + QUICKGELU_SUFFIX in open_clip_configs() and architecture in open_clip_configs()
