"""Checkpoints from anywhere, as a plain state dict, and into a model: what does not fit exactly is refused.

Every way a file can be wrong ends in one CheckpointError that names it; nothing in it ever runs. First the state dict and the model,
then OpenAI's TorchScript archives, read as data by a restricted unpickler over the zip, last the containers, told apart by content.
"""

import hashlib
import io
import json
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import safetensors
import safetensors.torch
import torch

from clipbench.errors import CheckpointError, UsageError

T = TypeVar("T")

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile
# Sizes that OpenAI's archives store among the weights.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
NESTED = ("state_dict", "model_state_dict", "model")  # open_clip's own name first
_SHOWN = 5  # keys named in a message
_HINT = "choose with --model the architecture, image size included, that these weights were trained as"
_POSITIONS = ("positional_embedding", "pos_embed")
_MAX_EXPANDED = 1 << 24  # elements of a tensor that repeats its storage: a small file cannot fill memory


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's weights on the CPU, before any cast.

    `container` is safetensors, torch (`torch.save`) or torchscript (OpenAI's archives). `tensors` may be
    mapped from the file: they are valid as long as nobody writes into it.
    """

    tensors: dict[str, torch.Tensor]
    file_sha256: str
    container: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the state dict in a file: safetensors, `torch.save` (bare or nested under NESTED), OpenAI's TorchScript.

    Prefixes that all names carry (WRAPPER_PREFIXES) and OPENAI_EXTRAS are dropped, nothing else.

    Raises: UsageError when there is no such file; CheckpointError when it is no checkpoint, is corrupt, or wants to run
    code.
    """
    if not path.exists():
        raise UsageError(f"checkpoint not found: {path}; give the path of a file")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise CheckpointError(f"{path} is {kind}, expected a checkpoint file; give the file inside it")
    try:
        with path.open("rb") as file:
            file_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found, container = read_container(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions and the disk") from error
    tensors = strip_prefixes(_state_dict(found, path))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in OPENAI_EXTRAS}
    return Checkpoint(_plain(tensors, path), file_sha256, container)


def _state_dict(found: object, path: Path) -> dict[str, torch.Tensor]:
    """The mapping of names to tensors, where it lies or one level down."""
    top = found if isinstance(found, Mapping) else {}
    chosen = next((top[name] for name in NESTED if isinstance(top.get(name), Mapping)), top)
    other = [name for name, value in chosen.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if chosen and not [name for name in other if name not in OPENAI_EXTRAS]:
        return {name: value for name, value in chosen.items() if isinstance(value, torch.Tensor)}
    got = f"entries such as {_first(map(repr, other))}" if other else f"an empty {type(found).__name__}"
    if not isinstance(found, Mapping):
        got = f"a {type(found).__name__}"
    raise CheckpointError(
        f"{path} holds no state dict: expected names with tensors, bare or under {', '.join(NESTED)}, got {got}; "
        f"save model.state_dict()"
    )


def strip_prefixes(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the mapping without the WRAPPER_PREFIXES that all of its names carry, in any order and number.

    A prefix that one name lacks, or that is all of a name, stays. Empty in, empty out.
    """
    stripped = dict(tensors)
    while stripped:
        for prefix in WRAPPER_PREFIXES:
            if all(name.startswith(prefix) and name != prefix for name in stripped):
                stripped = {name[len(prefix) :]: value for name, value in stripped.items()}
                break
        else:
            break
    return stripped


def _plain(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors detached; none that is not simply its elements (sparse, quantized, meta)."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name} is no plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device}); "
                f"save dense, unquantized weights"
            )
        if tensor.numel() > max(tensor.untyped_storage().nbytes() // tensor.element_size(), _MAX_EXPANDED):
            raise CheckpointError(
                f"{path}: {name} repeats a few elements up to {tuple(tensor.shape)}; save contiguous weights"
            )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 (hex) of a state dict, whatever file, prefix or order it came in.

    Hashed, for each name in code point order: one ASCII line `["NAME","DTYPE",[SIZES]]` and a newline (JSON without
    spaces; the dtype as torch calls it, without `torch.`), then the elements' bytes in row-major order, little-endian.
    So any other name, dtype, shape or bit is another hash. An empty dict hashes no bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        line = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        # Bytes by view: numpy has no bfloat16, and 1.7 GB should not be copied.
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_into(model: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Copy a checkpoint's tensors, cast to the model's dtypes, into an open_clip model, every one of them.

    open_clip's own conversions apply (`open_clip.factory.load_checkpoint`), except one: positional embeddings of
    another size are refused, not interpolated. `path` only names the file in messages. After an error the model is of
    no use.

    Raises: CheckpointError when a value is NaN or infinite, or when names, shapes or kinds of number are not the
    model's.
    """
    state = without_derived(model, checkpoint.tensors)
    for name, tensor in state.items():
        if not _is_finite(tensor):
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite values; use a checkpoint from before they arose"
            )
    try:
        state = _converted(model, state)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = f"open_clip's conversion fails ({type(error).__name__}: {error})"
        raise CheckpointError(f"{path} does not fit this model: {reason}; {_HINT}") from error
    expected = model.state_dict()
    if any(_kind(state[name]) != _kind(expected[name]) for name in state.keys() & expected.keys()):
        raise _misfit(path, state, expected)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise _misfit(path, state, expected) from error


def without_derived(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without buffers that the model computes itself and does not save, but a scripted archive does (the causal mask).

    Only where they are equal. The mask holds -inf, so this comes before the look for broken values.
    """
    kept = dict(tensors)
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in saved and name in kept and torch.equal(kept[name].to(buffer), buffer):
            del kept[name]
    return kept


def _converted(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The steps of open_clip 3.3's `load_checkpoint`, in its order, without the resizing of positional embeddings."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(convert_state_dict(model, state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = dict(convert_to_custom_text_state_dict(state))
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if name in state and own is not None and own.numel() == state[name].numel():
            state[name] = state[name].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None and "logit_bias" not in state and "logit_scale" in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    state.pop("text.transformer.embeddings.position_ids", None)  # transformers before 4.31 saved it
    return state


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    # NaN and infinities show in the extremes; `isfinite().all()` takes 25 times as long.
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # torch orders no float8
    return all(bool(extreme.isfinite()) for extreme in wide.aminmax())


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], bool]:
    """What must agree: torch would cast quantized integers into floats, and take the first of many for a scalar."""
    return tuple(tensor.shape), tensor.is_floating_point()


def _misfit(path: Path, state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> CheckpointError:
    differing = [name for name in expected if name in state and _kind(state[name]) != _kind(expected[name])]
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = (f"{n} is {_shape(state[n])} in the file, {_shape(expected[n])} in the model" for n in differing)
    found = [
        f"{len(names)} {what}: {_first(listed, separator)}"
        for names, what, listed, separator in (
            (differing, "differ", shapes, "; "),
            (missing, "missing", missing, ", "),
            (unexpected, "unexpected", unexpected, ", "),
        )
        if names
    ]
    hint = _HINT
    if differing and not missing and not unexpected and all(name.endswith(_POSITIONS) for name in differing):
        hint = f"positional embeddings are not interpolated, for that is another model: {_HINT}"
    return CheckpointError(
        f"{path} does not fit this model of {len(expected)} tensors. {'. '.join(found)}. Next: {hint}"
    )


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _first(names: Iterable[str], separator: str = ", ") -> str:
    listed = list(names)
    return separator.join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")


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


_HEAD_BYTES = 512
_SAFE = ".safetensors"
_ZIP = b"PK\x03\x04"
# What torch, zipfile, pickle and safetensors raise on malformed files. MemoryError: sizes claimed by a hostile file.
_MALFORMED = (
    safetensors.SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    pickle.UnpicklingError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_container(path: Path) -> tuple[object, str]:
    """Return what a file holds, on the CPU, and its container: safetensors, torch (`torch.save`) or torchscript.

    What `torch.save` wrote may be anything that torch's restricted loader makes; the others hold names with tensors.
    Tensors may be mapped from the file: they are valid as long as nobody writes into it.

    Raises: CheckpointError when it is none of the three, is corrupt, or wants code run; OSError when it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    container = _container(path, head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old pickle protocols, storages and escapes: the outcome is judged here
            return _READERS[container](path), container
    except _MALFORMED as error:
        raise _unreadable(path, container, error) from error


def _container(path: Path, head: bytes) -> str:
    """safetensors, torch or torchscript, by the file's first bytes and, of a zip, its records."""
    text = head.lstrip().lower()
    if not head:
        problem = "is empty; download or copy it again"
    elif text.startswith(b"version https://git-lfs"):
        problem = "is a git-lfs pointer, not the weights; run `git lfs pull` in its repository"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        problem = "is a web page, not weights (a login or an error page, perhaps); download the file itself"
    elif head.startswith(_ZIP):
        return _zip_container(path)
    elif len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    elif head.startswith(b"\x80"):
        return "torch"
    elif path.suffix == _SAFE:
        problem = "has no safetensors header (8 bytes of length, then JSON); download or save it again"
    else:
        problem = f"is no checkpoint: it starts with {head[:8]!r}; give a safetensors, torch.save or TorchScript file"
    raise CheckpointError(f"{path} {problem}")


def _zip_container(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _unreadable(path, "zip", error) from error
    root = next((name.removesuffix("data.pkl") for name in names if is_data_pkl(name)), "")
    if not root:
        raise CheckpointError(
            f"{path} is a zip without data.pkl, so neither torch.save nor TorchScript wrote it; "
            f"if it is a folder of weights, unpack it and give the file inside"
        )
    return "torchscript" if f"{root}constants.pkl" in names else "torch"


def _unreadable(path: Path, container: str, error: BaseException) -> CheckpointError:
    """Tells a file that wants code run from one that is damaged."""
    text = " ".join(str(error).partition("WeightsUnpickler error:")[2].split() or str(error).split())
    unsafe = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and "truncated" not in text:
        what = f"it asks for {unsafe[1]}" if unsafe else text[:300]
        return CheckpointError(
            f"{path} was refused: {what}; clipbench never runs code from a checkpoint. Where you trust the file, "
            f"save its state_dict() as safetensors and give that file"
        )
    return CheckpointError(
        f"{path} is truncated or corrupt ({container}: {type(error).__name__}: {text[:300]}); download or copy it again"
    )


def _read_safetensors(path: Path) -> object:
    return safetensors.torch.load_file(path, device="cpu")


def _read_torch(path: Path) -> object:
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP  # else the format of torch before 1.6
        file.seek(0)
        if is_zip:
            _check_records(path)
        # Mapped, a storage that claims more bytes than its record has cannot reach beyond the file. Mapping takes a
        # path, and a path with that suffix torch hands on to safetensors.
        mapped = is_zip and path.suffix != _SAFE
        return torch.load(str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)


def _check_records(path: Path) -> None:
    """torch checks no checksums, and a mapped record cannot be decompressed."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"record {info.filename} is compressed, which torch.save never does")
        if broken := archive.testzip():
            raise ValueError(f"record {broken} fails its checksum, or was saved without (torch's set_crc32_options)")


_READERS: Mapping[str, Callable[[Path], object]] = {
    "safetensors": _read_safetensors,
    "torch": _read_torch,
    "torchscript": read_torchscript,
}
