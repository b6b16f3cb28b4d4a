"""What a session was asked to do: options read once, frozen, and handed down. Imports nothing of the package."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from clipbench.embed.rows import Known
    from clipbench.embeddings_file import SavedRows

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
CocoCrop = Literal["square", "tight"]
CACHE_BYTES = 4 << 30
T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable and shows how far it has come; `no_progress` shows nothing."""

    def __call__(self, iterable: Iterable[T], total: int, what: str) -> Iterable[T]: ...


def no_progress(iterable: Iterable[T], total: int, what: str) -> Iterable[T]:
    """Return the iterable as it is."""
    return iterable


def keep_nothing(rows: "SavedRows") -> None:
    """Let the rows of an experiment go once it is scored."""


@dataclass(frozen=True)
class Settings:
    """How to measure. `device` is resolved ("cpu", "cuda", "cuda:1", "mps"), never "auto"; `batch_size` is in items.

    `coco`, `roco` and `zero_shot` (pairs of name and folder) are full data sets; without them the packaged ones are used, or
    the experiment does not exist. `keep_rows` is handed the rows of every retrieval experiment.

    `workers` threads decode and preprocess images (0: the calling one). `text_positions`: how many token positions a batch of cut
    texts has (0: as many as `batch_size` whole texts). `plain`: no shortcut is taken. `known`: rows of the
    encoder at hand that need not be made again; `must_check`: they are checked against the plain call even where that alone loads
    the model. `cache`: the folder of the embedding cache, kept within `cache_bytes`.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    batch_size: int = 4
    workers: int = 0
    text_positions: int = 0
    offline: bool = False
    seed: int = 0
    coco: Path | None = None
    coco_crop: CocoCrop = "square"
    roco: Path | None = None
    zero_shot: tuple[tuple[str, Path], ...] = ()
    progress: Progress = no_progress
    keep_rows: Callable[["SavedRows"], None] = keep_nothing
    plain: bool = False
    must_check: bool = False
    known: "Known | None" = None
    cache: Path | None = None
    cache_bytes: int = CACHE_BYTES
