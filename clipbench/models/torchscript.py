"""OpenAI's TorchScript archives, read as data: a restricted unpickler over the zip, and nothing in the file ever runs.

An archive `NAME/` holds `data.pkl` (the tree of modules), `data/KEY` (one storage each, stored uncompressed) and
`code/__torch__/...` (source text). torch's own loader executes that source, `__setstate__` included; here it is only
searched, as text, for the names that the modules declare as parameters and buffers.

Source: the layout is that of torch's `torch/csrc/jit/serialization` (export_module.cpp, pickler.cpp).
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import torch

_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
# Bounds on what a hostile file may ask for, far above what any CLIP needs.
_MAX_TEXT_BYTES = 1 << 24
_MAX_MODULES = 100_000
_MAX_DEPTH = 64
_DECLARED = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)


class _StorageType(NamedTuple):
    dtype: torch.dtype


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    numel: int


class _Tensor(NamedTuple):
    """The arguments of a tensor as the pickle gave them, unchecked: `(storage, offset, size, stride, ...)`."""

    arguments: tuple[object, ...]


class _Inert:
    """Stands for an object of any `__torch__` class: takes whatever the pickle gives it and does nothing."""

    __slots__ = ("state",)
    class_name = ""

    state: object

    def __new__(cls, *_arguments: object) -> Self:
        self = super().__new__(cls)
        self.state = None
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Call(NamedTuple):
    """A callable that the pickle may call. A tuple, so that no BUILD instruction can alter it."""

    function: Callable[..., object]

    def __call__(self, *arguments: object) -> object:
        return self.function(*arguments)


_FIRST = _Call(lambda value, *_rest: value)
_CALLABLE = {
    "torch._utils._rebuild_tensor_v2": _Call(lambda *arguments: _Tensor(arguments)),
    "collections.OrderedDict": _Call(lambda *_arguments: {}),  # a tensor's backward hooks: never looked at
    # The typed lists and dicts among a module's attributes: (plain value, name of its type).
    "torch.jit._pickle.build_boollist": _FIRST,
    "torch.jit._pickle.build_doublelist": _FIRST,
    "torch.jit._pickle.build_intlist": _FIRST,
    "torch.jit._pickle.build_tensorlist": _FIRST,
    "torch.jit._pickle.restore_type_tag": _FIRST,
}


class _Unpickler(pickle.Unpickler):
    """Makes the records above and no other object: every name is looked up in this module, none is imported."""

    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Inert", (_Inert,), {"__slots__": (), "class_name": full})
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        if full in _CALLABLE:
            return _CALLABLE[full]
        raise pickle.UnpicklingError(f"it asks for {full}, which is no part of a tensor or module")

    def persistent_load(self, identity: object) -> _Storage:
        match identity:
            case ("storage", _StorageType(dtype=dtype), str(key), str(), int(numel)) if numel >= 0:
                return _Storage(dtype, key, numel)
        raise pickle.UnpicklingError(f"it refers to {str(identity)[:80]!r}, which is no storage")


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a TorchScript archive, on the CPU, named as in its module's `state_dict()`.

    Tensors that share a storage in the archive share it here. A tensor without elements keeps its shape.

    Raises: pickle.UnpicklingError when the archive wants anything but tensors in modules; ValueError, KeyError,
    zipfile.BadZipFile and the unpickler's other errors when it is malformed: no message names the file.
    """
    with zipfile.ZipFile(path) as archive:
        return _Reader(archive).state_dict()


class _Reader:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.root = next(name.removesuffix("data.pkl") for name in archive.namelist() if is_data_pkl(name))
        self.storages: dict[str, torch.Tensor] = {}
        self.declared: dict[str, frozenset[str] | None] = {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        self._require_little_endian()
        content = self._record("data.pkl", _MAX_TEXT_BYTES)
        _check_instructions(content)
        root = _Unpickler(io.BytesIO(content)).load()
        tensors = {}
        for prefix, module in _modules(root):
            declared = self._declared_names(module.class_name)
            if declared == frozenset():
                continue
            if not isinstance(module.state, dict):
                raise pickle.UnpicklingError(f"only the code of {module.class_name} could restore what it saved")
            for name, value in module.state.items():
                if isinstance(value, _Tensor) and (declared is None or name in declared):
                    tensors[f"{prefix}{name}"] = self._tensor(f"{prefix}{name}", value)
        return tensors

    def _record(self, name: str, limit: int) -> bytes:
        info = self.archive.getinfo(self.root + name)
        if info.file_size > limit:
            raise ValueError(f"record {name} has {info.file_size} bytes, expected at most {limit}")
        return self.archive.read(info)

    def _require_little_endian(self) -> None:
        name = "byteorder"
        if self.root + name in self.archive.namelist() and self._record(name, 16).strip() != b"little":
            raise ValueError("its storages are big-endian, expected little-endian")

    def _declared_names(self, class_name: str) -> frozenset[str] | None:
        """The names of the class's parameters and buffers; None where the source does not tell them (old torch)."""
        if class_name not in self.declared:
            self.declared[class_name] = self._search_source(class_name)
        return self.declared[class_name]

    def _search_source(self, class_name: str) -> frozenset[str] | None:
        module, _, name = class_name.rpartition(".")
        record = f"code/{module.replace('.', '/')}.py"
        if self.root + record not in self.archive.namelist():
            return None
        text = self._record(record, _MAX_TEXT_BYTES).decode()
        parts = re.split(r"^class ", text, flags=re.MULTILINE)
        source = next((part for part in parts if part.startswith((f"{name}(", f"{name}:"))), "")
        if "\n  def __setstate__(" in source:
            # Its saved state is only an input to that code: taking it for the attributes would misread it.
            raise pickle.UnpicklingError(f"{class_name} restores itself by code of its own (__setstate__)")
        if not source.startswith(f"{name}(Module)"):
            return frozenset() if source else None
        if "\n  __buffers__ = [" not in source:
            return None
        return frozenset(name for names in _DECLARED.findall(source) for name in re.findall(r'"([^"]*)"', names))

    def _tensor(self, name: str, record: _Tensor) -> torch.Tensor:
        match record.arguments:
            case (_Storage() as storage, int(offset), tuple(size), tuple(stride), _, _, *rest) if not any(rest):
                pass
            case _:
                raise ValueError(f"{name}: not the arguments of a plain tensor")
        if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
            raise ValueError(f"{name}: size {size}, stride {stride}, offset {offset} are not those of a tensor")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= storage.numel:
            reach = f"size {size}, stride {stride}, offset {offset}"
            raise ValueError(f"{name}: {reach} reach beyond its storage of {storage.numel} elements")
        if 0 in size:
            return torch.empty(size, dtype=storage.dtype)
        return self._elements(storage).as_strided(size, stride, offset)

    def _elements(self, storage: _Storage) -> torch.Tensor:
        """All elements of a storage, (numel,) of its dtype; the bytes are read once per storage."""
        n_bytes = storage.numel * storage.dtype.itemsize
        if storage.key not in self.storages:
            info = self.archive.getinfo(f"{self.root}data/{storage.key}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"storage {storage.key} is compressed, which torch never does")
            content = bytearray(self.archive.read(info) if info.file_size == n_bytes else b"")
            if len(content) != n_bytes:
                raise ValueError(f"storage {storage.key} has {info.file_size} bytes, expected {n_bytes}")
            self.storages[storage.key] = torch.frombuffer(content, dtype=torch.uint8)
        raw = self.storages[storage.key]
        if raw.numel() != n_bytes:
            raise ValueError(f"storage {storage.key} has {raw.numel()} bytes, expected {n_bytes} as well")
        return raw.view(storage.dtype)


def is_data_pkl(name: str) -> bool:
    """Return whether a zip record is the one that makes the zip a file of torch: `NAME/data.pkl`."""
    return name.endswith("/data.pkl") and name.count("/") == 1


def _check_instructions(content: bytes) -> None:
    """Unpickling takes memory by the numbers in a pickle: refuse lengths and places beyond the pickle's own length.

    Raises: ValueError; the walk itself raises it for lengths.
    """
    for instruction, argument, _position in pickletools.genops(content):
        if instruction.name.endswith("PUT") and isinstance(argument, int) and argument > len(content):
            raise ValueError(f"its data.pkl remembers objects at place {str(argument)[:20]}")


def _modules(root: object) -> Iterator[tuple[str, _Inert]]:
    """Every module with its dotted prefix ("" for the root). A module reachable by two names comes under both."""
    if not isinstance(root, _Inert):
        raise pickle.UnpicklingError("its data.pkl holds no module")
    waiting = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        yield prefix, module
        seen += 1
        if seen > _MAX_MODULES or depth > _MAX_DEPTH:
            raise ValueError(f"its modules contain each other, or are over {_MAX_MODULES}, or over {_MAX_DEPTH} deep")
        children = module.state.items() if isinstance(module.state, dict) else ()
        waiting.extend((f"{prefix}{name}.", child, depth + 1) for name, child in children if isinstance(child, _Inert))
