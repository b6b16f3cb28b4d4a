"""The embedding cache (`--cache DIR`): rows addressed by everything they depend on, and models that need not be loaded.

A row's address is a hash over the weights' hash, activation, preprocessing, precision, kind of device, tokenizer, shortcuts, the
versions of the libraries that compute it, this package's own code, and the item's content. A model whose rows are all there is
not loaded: what it would have said of itself is kept, under everything that can be known without loading it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipbench.data.dataset import file_sha256
from clipbench.embed.cached_encoder import CachedEncoder, Record
from clipbench.embed.known import KnownRows
from clipbench.models.device import device_kind
from clipbench.models.encoder import Encoder, Shortcuts
from clipbench.models.zoo import ModelSpec, open_clip_configs
from clipbench.result import JsonObject
from clipbench.settings import Settings

if TYPE_CHECKING:
    from clipbench.embed.store import RowStore

COMPUTED_BY = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "pillow",
    "timm",
    "transformers",
    "tokenizers",
    "ftfy",
    "regex",
    "numpy",
    "pydicom",
)
_OWN_CODE = ("data", "embed", "models")


class EncoderCache:
    """The encoders and rows of one store."""

    def __init__(self, store: "RowStore") -> None:
        self.store = store
        self._made_by = {"versions": _versions(), "code": _own_code()}

    def encoder(self, spec: ModelSpec, settings: Settings, load: Callable[[], Encoder]) -> "Encoder":
        """Return the spec's encoder: not loaded yet where the cache knows it, else loaded by `load`.

        An encoder that is not ours is returned as it is: nothing of it is kept.
        """
        configuration = _configuration(spec)
        address = self._address({"spec": asdict(spec), "configuration": configuration}, settings)
        record = Record.read(self.store.get([address]).get(address, b""))

        def load_and_describe() -> tuple[Record | None, Encoder]:
            loaded = load()
            shortcuts = loaded.shortcuts()
            return (_record(loaded, shortcuts, configuration) if shortcuts else None), loaded

        if record is not None and record.is_current:
            known = self._known(record, settings)
            return CachedEncoder(record, load_and_describe, known, forget=lambda: self.store.discard([address]))
        record, loaded = load_and_describe()
        if record is None:
            return loaded
        if _knows_all_its_files(loaded, spec):
            self.store.put({address: record.written()})
        return CachedEncoder(record, load_and_describe, self._known(record, settings), loaded)

    def _known(self, record: Record, settings: Settings) -> KnownRows:
        depends = {k: v for k, v in asdict(record).items() if k != "file"}
        identity = depends.pop("identity")
        depends |= {k: identity[k] for k in ("weights_sha256", "activation", "precision")}
        return KnownRows(self.store, self._address({"rows_of": depends}, settings))

    def _address(self, what: JsonObject, settings: Settings) -> bytes:
        where = {"device": device_kind(settings.device), "precision": settings.precision}
        return hashlib.sha256(json.dumps([what, where, self._made_by], sort_keys=True, default=str).encode()).digest()


def _record(encoder: Any, shortcuts: Shortcuts, configuration: str) -> Record:
    names = (*shortcuts.of_images, *shortcuts.of_texts)
    return Record(
        encoder.identity,
        encoder.preprocessing,
        encoder.tokenizer_sha256(),
        encoder.card["context_length"],
        names,
        configuration,
        str(encoder.file or ""),
    )


def _knows_all_its_files(encoder: Any, spec: ModelSpec) -> bool:
    """False for a tokenizer that comes from a hub: whether it is still the same is known only when it is loaded."""
    return spec.source == "lite" or hasattr(encoder.tokenizer, "encode")


def _configuration(spec: ModelSpec) -> str:
    """What describes the architecture beside the weights, which do not tell (the number of heads is in no tensor): lite's recipe,
    or open_clip's file of this name and the configuration next to a checkpoint."""
    if spec.source == "lite":
        from clipbench.models.lite import lite_directory

        return lite_directory().name
    files = [open_clip_configs().get(spec.architecture)]
    files += [Path(spec.pretrained).parent / "open_clip_config.json"] if spec.source == "path" else []
    return " ".join(file_sha256(file) if file and file.is_file() else "-" for file in files)


def _versions() -> dict[str, str]:
    found = {}
    for name in COMPUTED_BY:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _own_code() -> str:
    """A hash over the modules of this package that rows pass through: an edit of ours makes every row anew."""
    digest = hashlib.sha256()
    for file in sorted(p for room in _OWN_CODE for p in (Path(__file__).parents[1] / room).glob("*.*") if p.is_file()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
