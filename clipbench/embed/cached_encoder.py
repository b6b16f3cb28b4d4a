"""An encoder whose model is loaded only when something is asked that a cache cannot answer."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from clipbench.data.dataset import file_sha256
from clipbench.embed.known import KnownRows
from clipbench.embed.rows import text_name
from clipbench.errors import EncoderError
from clipbench.models.encoder import Encoder, Rows, Shortcuts, may_be_truncated
from clipbench.result import ModelIdentity
from clipbench.settings import Settings


@dataclass(frozen=True)
class Record:
    """What a model said of itself when it was loaded. `configuration`: a hash over the files that describe its architecture;
    `file` holds its weights ("" for random ones)."""

    identity: ModelIdentity
    preprocessing: str
    tokenizer: str
    context_length: int
    shortcuts: tuple[str, ...]
    configuration: str
    file: str

    @classmethod
    def read(cls, value: bytes) -> "Record | None":
        """Return what `written` wrote, None for anything else."""
        try:
            entry = json.loads(value)
            identity = ModelIdentity(**entry.pop("identity"))
            return cls(identity=identity, shortcuts=tuple(entry.pop("shortcuts")), **entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def written(self) -> bytes:
        """Return the record as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def is_current(self) -> bool:
        """False when the file of the weights moved or holds something else now."""
        path = Path(self.file)
        return not self.file or (path.is_file() and file_sha256(path) == self.identity.file_sha256)


class CachedEncoder:
    """An encoder of ours whose model is loaded when something is asked that the cache cannot answer."""

    def __init__(
        self,
        record: Record,
        load: Callable[[], tuple[Record | None, Encoder]],
        known: KnownRows,
        loaded: Encoder | None = None,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        """`load` gives the encoder with what it says of itself now; `forget` takes the record out of the cache."""
        self._record, self._load, self._loaded, self._forget = record, load, loaded, forget
        self._mismatch: EncoderError | None = None
        self.known = known
        self.identity, self.preprocessing = record.identity, record.preprocessing

    @property
    def is_loaded(self) -> bool:
        """False until the model was needed."""
        return self._loaded is not None

    @property
    def card(self) -> Mapping[str, int]:
        """Counts and sizes read off the live model: it is loaded for them."""
        return self._model().card

    def __getattr__(self, name: str) -> Any:
        """Whatever else the loaded encoder shows (`pixels`, `tokens`, `model`)."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model(), name)

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        """Return (images, dim) float32 unit rows, by the plain call."""
        return self._model().encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        """Return (texts, dim) float32 unit rows, by the plain call."""
        return self._model().encode_texts(texts)

    def shortcuts(self) -> Shortcuts:
        """Return the same rows with less work; the model is loaded when a row has to be made."""
        return _LaterShortcuts(self._model)

    def count_truncated(self, texts: Sequence[str]) -> int | None:
        """Return how many texts the tokenizer cuts; remembered text by text for those long enough to be cut at all."""
        long = sorted({text for text in texts if may_be_truncated(text, self._record.context_length)})
        names = {text: f"truncated:{text_name(text)}" for text in long}
        flags = self.known.flags(list(names.values()))
        new: dict[str, bool] = {}
        for text in (t for t in long if names[t] not in flags):
            count = self._model().count_truncated([text])
            if count is None:
                return None
            new[names[text]] = bool(count)
        self.known.add_flags(new)
        return sum((flags | new)[names[text]] for text in texts if text in names)

    def ready_images(self, images: Sequence[Image.Image]) -> Callable[[], object]:
        """Return a call of the model alone on one prepared batch."""
        return self._model().ready_images(images)

    def ready_texts(self, texts: Sequence[str]) -> Callable[[], object]:
        """Return a call of the model alone on one prepared batch."""
        return self._model().ready_texts(texts)

    def other_activation(self) -> AbstractContextManager[str] | None:
        """Return the loaded model's."""
        return self._model().other_activation()

    def close(self) -> None:
        """Let go of the model, if it was loaded."""
        if self._loaded is not None:
            self._loaded.close()

    def _model(self) -> Encoder:
        if self._mismatch is not None:
            raise self._mismatch
        if self._loaded is None:
            record, loaded = self._load()
            if record is None or replace(record, file=self._record.file) != self._record:
                loaded.close()
                self._forget()
                self._mismatch = EncoderError(
                    f"{self.identity.name}: the cache remembered other weights, preprocessing or tokenizer than were loaded now; "
                    f"it has forgotten them: run again"
                )
                raise self._mismatch
            self._loaded = loaded
        return self._loaded


class _LaterShortcuts:
    """The shortcuts of a model that is loaded when one of them is used."""

    def __init__(self, model: Callable[[], Encoder]) -> None:
        self._model = model

    @property
    def of_images(self) -> tuple[str, ...]:
        return self._of_model.of_images

    @property
    def of_texts(self) -> tuple[str, ...]:
        return self._of_model.of_texts

    def prepare(self, image: Image.Image) -> Any:
        return self._of_model.prepare(image)

    def start_images(self, prepared: Sequence[Any]) -> Callable[[], Rows]:
        return self._of_model.start_images(prepared)

    def rows_of_texts(self, texts: Sequence[str], settings: Settings) -> Rows:
        return self._of_model.rows_of_texts(texts, settings)

    @cached_property
    def _of_model(self) -> Shortcuts:
        found = self._model().shortcuts()
        if found is None:
            raise EncoderError("the cache remembers an encoder of ours, and another was loaded")
        return found
