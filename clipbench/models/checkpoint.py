"""Checkpoints from anywhere, as a plain state dict, and into a model: what does not fit exactly is refused.

Every way a file can be wrong ends in one CheckpointError that names it, in time and memory linear in its size; nothing in it ever runs.
What is read is a private copy in memory: what was hashed is what is loaded, whatever somebody does to the file meanwhile or afterwards.
First the state dict and the model, then OpenAI's TorchScript archives, read as data by a restricted unpickler over the zip, then the
containers, recognized by content, last what a pickle may ask for.
"""

import hashlib
import io
import json
import os
import pickle
import pickletools
import re
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors
import safetensors.torch
import torch

from clipbench.errors import CheckpointError, DataError, DataUnavailableError, UsageError
from clipbench.models.zoo import has_code, zoo
from clipbench.paths import LARGEST_DIRECTORY_BYTES, free_bytes, open_data, stored_records, zip_directory
from clipbench.types import short

T = TypeVar("T")

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile
# Sizes that OpenAI's archives store among the weights.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
NESTED = ("state_dict", "model_state_dict", "model")  # open_clip's own name first
_NAMED = 5  # keys named in a message
_HINT = "choose with --model the architecture, image size included, that these weights were trained as"
_POSITIONS = ("positional_embedding", "pos_embed")
_PLAIN = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip
_MAX_REPEATED = 4  # times the file's bytes, for names that share a storage, and
_MAX_EXPANDED_BYTES = (
    1 << 26
)  # more, for small tensors that repeat theirs: a small file costs no time and fills no memory


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's weights on the CPU, before any cast; in memory that no other process has a name for.

    `container` is safetensors, torch (`torch.save`) or torchscript (OpenAI's archives).
    """

    tensors: dict[str, torch.Tensor]
    file_sha256: str
    container: str


def openai_archives() -> frozenset[str]:
    """Return the SHA-256 of the nine archives that OpenAI published: the only TorchScript that is read."""
    return frozenset(model.openai_checkpoint_sha256 for model in zoo().values())


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the state dict in a file: safetensors, `torch.save` (bare or nested under NESTED), one of OpenAI's archives.

    Prefixes that all names carry (WRAPPER_PREFIXES) and OPENAI_EXTRAS are dropped, nothing else.

    Raises: UsageError when there is no such file; CheckpointError when it is no checkpoint, is corrupt, wants to run code, or is a
    TorchScript archive of another maker.
    """
    if not path.exists():
        raise UsageError(f"checkpoint not found: {path}; give the path of a file")
    try:
        with open_data(path, free_bytes()) as file:
            size = os.fstat(file.fileno()).st_size
            container = _container(path, file, size)
            with _private_copy(file, size) as (copy, file_sha256):
                found = _contents(path, copy, container, file_sha256)
    except (DataError, DataUnavailableError) as error:
        raise CheckpointError(
            f"{error}; give the checkpoint file itself, of no more than the memory that is free"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions and the disk") from error
    tensors = {n: tensor for n, tensor in strip_prefixes(_state_dict(found, path)).items() if n not in OPENAI_EXTRAS}
    return Checkpoint(_dense(tensors, size, path), file_sha256, container)


@contextmanager
def _private_copy(file: BinaryIO, size: int) -> Iterator[tuple[Path, str]]:
    """A copy of an open file's `size` bytes, with a name for this process alone, and its SHA-256; mappings of it outlive the name."""
    digest = hashlib.sha256()
    with ExitStack() as stack:
        if sys.platform == "linux":
            copy: BinaryIO = stack.enter_context(os.fdopen(os.memfd_create("checkpoint"), "w+b"))
            path = Path(f"/proc/self/fd/{copy.fileno()}")
        else:  # in a folder that only this user may enter; Windows keeps it for as long as it is mapped
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)), "checkpoint")
            copy = stack.enter_context(path.open("w+b"))
        file.seek(0)
        while size > 0 and (block := file.read(min(size, 1 << 24))):
            digest.update(block)
            copy.write(block)
            size -= len(block)
        copy.flush()
        yield path, digest.hexdigest()


def _state_dict(found: object, path: Path) -> dict[str, torch.Tensor]:
    """The mapping of names to tensors, where it lies or one level down."""
    top = found if isinstance(found, Mapping) else {}
    chosen = next((top[name] for name in NESTED if isinstance(top.get(name), Mapping)), top)
    other = [name for name, value in chosen.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if chosen and not [name for name in other if name not in OPENAI_EXTRAS]:
        return {name: value for name, value in chosen.items() if isinstance(value, torch.Tensor)}
    named = (repr(short(name)) if isinstance(name, str) else f"a {type(name).__name__}" for name in other)
    got = f"entries such as {_listed(named)}" if other else f"an empty {type(found).__name__}"
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
    start = 0
    while carried := [
        p
        for p in WRAPPER_PREFIXES
        if all(n.startswith(p, start) and len(n) > start + len(p) for n in tensors) and tensors
    ]:
        start += len(carried[0])
    return {name[start:]: value for name, value in tensors.items()}


def _dense(tensors: Mapping[str, torch.Tensor], size: int, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of `size` bytes, detached; none that is not simply its elements (sparse, quantized, meta)."""
    allowed = _MAX_REPEATED * size + _MAX_EXPANDED_BYTES
    for name, tensor in tensors.items():
        if (
            tensor.dtype not in _PLAIN
            or tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.device.type != "cpu"
        ):
            raise CheckpointError(
                f"{path}: {short(name)} is no plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device}); "
                f"save dense, unquantized weights"
            )
        if (allowed := allowed - tensor.nbytes) < 0:
            raise CheckpointError(
                f"{path}: its {size:,} bytes repeat themselves, in {short(name)} up to {short(str(tuple(tensor.shape)))}; "
                f"save contiguous weights, each once"
            )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 (hex) of a state dict, whatever file, prefix or order it came in.

    Hashed, for each name in code point order: one ASCII line `["NAME","DTYPE",[SIZES]]` and a newline (JSON without
    spaces; the dtype as torch calls it, without `torch.`), then the elements' bytes in row-major order, little-endian.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        line = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        # Bytes by view: numpy has no bfloat16, and 1.7 GB should not be copied.
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensor_hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the first 64 bits (hex) of the SHA-256 of each tensor's dtype, shape and elements, by name: which one changed?"""
    return {name: weights_sha256({"": tensor})[:16] for name, tensor in tensors.items()}


def load_into(
    model: torch.nn.Module, checkpoint: Checkpoint, path: Path, resizes: bool = False
) -> dict[str, torch.Tensor]:
    """Copy a checkpoint's tensors, cast to the model's dtypes, into an open_clip model, every one of them; return them as they were.

    Buffers that the model computes itself and does not save, but a scripted archive does, are none of them where they are equal.

    open_clip's own conversions apply (`open_clip.factory.load_checkpoint`), except one: positional embeddings of another size are
    refused, unless somebody asked for another size: then `resizes` interpolates them as open_clip does. `path` only names the file in
    messages. After an error the model is of no use.

    Raises: CheckpointError when a value is NaN or infinite, also by the cast, or when names, shapes or kinds of number are not the model's.
    """
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    tensors = _without_derived(model, checkpoint.tensors)
    try:
        state = _converted(model, dict(tensors))
        if resizes:
            resize_pos_embed(state, model)
            resize_text_pos_embed(state, model)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = f"open_clip's conversion fails ({type(error).__name__}: {error})"
        raise CheckpointError(f"{path} does not fit this model: {reason}; {_HINT}") from error
    expected = model.state_dict()
    _check_fit(path, state, expected)
    if broken := next((name for name, tensor in state.items() if not _is_finite(tensor, expected[name].dtype)), None):
        raise CheckpointError(
            f"{path}: {broken} holds NaN or infinite values (in the model's {expected[broken].dtype}); use a checkpoint from before "
            f"they arose"
        )
    model.load_state_dict(state, strict=True)
    return tensors


def _without_derived(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the causal mask, say, which holds -inf: so this comes before the look for broken values."""
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


def _is_finite(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    # NaN and infinities show in the extremes; `isfinite().all()` takes 25 times as long.
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # torch orders no float8
    return all(bool(extreme.to(dtype).isfinite()) for extreme in wide.aminmax())


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], bool]:
    """What must agree: torch would cast quantized integers into floats, and take the first of many for a scalar."""
    return tuple(tensor.shape), tensor.is_floating_point()


def _check_fit(path: Path, state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raises: CheckpointError unless there is one tensor for each of the model's, of its shape and kind of number, and no other."""
    differing = [name for name in expected if name in state and _kind(state[name]) != _kind(expected[name])]
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if not (differing or missing or unexpected):
        return
    shapes = [f"{n} is {_shape(state[n])} in the file, {_shape(expected[n])} in the model" for n in differing]
    found = [f"{len(shapes)} differ: {_listed(shapes, '; ')}"] if shapes else []
    found += [f"{len(missing)} missing: {_listed(missing)}"] if missing else []
    found += [f"{len(unexpected)} unexpected: {_listed(unexpected)}"] if unexpected else []
    hint = _HINT
    if not missing and not unexpected and all(name.endswith(_POSITIONS) for name in differing):
        hint = f"positional embeddings are not interpolated, for that is another model: {_HINT}"
    raise CheckpointError(
        f"{path} does not fit this model of {len(expected)} tensors. {'. '.join(found)}. Next: {hint}"
    )


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    listed = [short(name, 200) for name in names]
    return separator.join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")


_STORAGES = {
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
_DECLARED = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)


class _Module:
    """Stands for an object of any `__torch__` class: keeps the state that the pickle gives it and runs nothing."""

    class_name = ""
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _first_argument(value: object, *_: object) -> object:
    return value


_CALLABLE: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: storage.as_strided(
        size, stride, offset
    ),
    "collections.OrderedDict": dict,  # a tensor's backward hooks: never looked at
    # The typed lists and dicts among a module's attributes: (plain value, name of its type).
    **{f"torch.jit._pickle.build_{kind}list": _first_argument for kind in ("bool", "double", "int", "tensor")},
    "torch.jit._pickle.restore_type_tag": _first_argument,
}


class _ArchiveUnpickler(pickle.Unpickler):
    """Makes modules and tensors and no other object: every name is looked up in this module, none is imported."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if module.partition(".")[0] == "__torch__":
            return type("Module", (_Module,), {"class_name": full})
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if full in _CALLABLE:
            return _CALLABLE[full]
        raise pickle.UnpicklingError(f"it asks for {full}, which is no part of a tensor or module")

    def persistent_load(self, identity: Any) -> torch.Tensor:
        """All elements of a storage, flat; read once, so that tensors that share it in the archive share it here."""
        _, dtype, key, _device, _n = identity
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype)
        return self._storages[key]


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of one of OpenAI's archives, on the CPU, named as in its module's `state_dict()`.

    An archive `NAME/` holds `data.pkl` (the tree of modules), `data/KEY` (one storage each) and `code/__torch__/...`: source that torch's
    own loader executes; here it is searched, as text, for the names that modules declare as parameters and buffers. Only for files
    whose SHA-256 is known: sizes and places are not looked at.

    Source: the layout is that of torch's `torch/csrc/jit/serialization` (export_module.cpp, pickler.cpp).
    """
    with zipfile.ZipFile(path) as archive:
        root = _torch_root(archive)
        return dict(_declared_tensors(archive, root, _ArchiveUnpickler(archive, root).load(), ""))


def _declared_tensors(
    archive: zipfile.ZipFile, root: str, module: Any, prefix: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that a module and those within it declare, with its dotted name. One reachable by two names comes under both."""
    declared = _declared_names(archive, root, module.class_name)
    for name, value in (module.state or {}).items():
        if isinstance(value, _Module):
            yield from _declared_tensors(archive, root, value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor) and (declared is None or name in declared):
            yield f"{prefix}{name}", value


def _declared_names(archive: zipfile.ZipFile, root: str, class_name: str) -> frozenset[str] | None:
    """The names of the class's parameters and buffers; None where the source does not tell them (old torch)."""
    module, _, name = class_name.rpartition(".")
    text = archive.read(f"{root}code/{module.replace('.', '/')}.py").decode()
    parts = re.split(r"^class ", text, flags=re.MULTILINE)
    source = next((part for part in parts if part.startswith(f"{name}(")), "")
    if "\n  __buffers__ = [" not in source:
        return None
    return frozenset(name for names in _DECLARED.findall(source) for name in re.findall(r'"([^"]*)"', names))


def _torch_root(archive: zipfile.ZipFile) -> str:
    """The folder `NAME/` whose `data.pkl` makes a zip a file of torch; "" where there is none."""
    found = (n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1)
    return next(found, "").removesuffix("data.pkl")


_SAFE = ".safetensors"
_ZIP = b"PK\x03\x04"
# What torch, zipfile, pickle and safetensors raise on malformed files. MemoryError: sizes claimed by a hostile file.
_MALFORMED = (
    safetensors.SafetensorError, zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, LookupError, ArithmeticError,
    AssertionError, AttributeError, EOFError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def _contents(path: Path, copy: Path, container: str, file_sha256: str) -> object:
    """What a file holds, on the CPU (of `torch.save` anything that torch's restricted loader makes). `path` is for messages."""
    if container == "torchscript" and file_sha256 not in openai_archives():
        raise CheckpointError(
            f"{path} is a TorchScript archive, and none of OpenAI's nine: its SHA-256 is {file_sha256}. clipbench never runs code from "
            f"a checkpoint. Download it again if it should be one of them; else load it where you trust it, save its state_dict() and "
            f"give that file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old pickle protocols, storages and escapes: the outcome is judged here
            return _READERS[container](copy)
    except _MALFORMED as error:
        raise _unreadable(path, container, error) from error


def _container(path: Path, file: BinaryIO, size: int) -> str:
    """safetensors, torch or torchscript, by the file's first bytes and, of a zip, its records, before anything large is read."""
    head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        problem = "is empty; download or copy it again"
    elif text.startswith(b"version https://git-lfs"):
        problem = "is a git-lfs pointer, not the weights; run `git lfs pull` in its repository"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        problem = "is a web page, not weights (a login or an error page, perhaps); download the file itself"
    elif head.startswith(_ZIP):
        return _zip_container(path, file, size)
    elif len(head) > 8 and head[8:9] == b"{":
        if (length := int.from_bytes(head[:8], "little")) > min(size, LARGEST_DIRECTORY_BYTES):
            raise _unreadable(path, "safetensors", ValueError(f"its header is said to have {length:,} bytes"))
        return "safetensors"
    elif head.startswith(b"\x80"):
        return "torch"
    elif path.suffix == _SAFE:
        problem = "has no safetensors header (8 bytes of length, then JSON); download or save it again"
    else:
        problem = f"is no checkpoint: it starts with {head[:8]!r}; give a safetensors, torch.save or TorchScript file"
    raise CheckpointError(f"{path} {problem}")


def _zip_container(path: Path, file: BinaryIO, size: int) -> str:
    try:
        archive = zip_directory(file)
        if not _torch_root(archive):
            raise CheckpointError(
                f"{path} is a zip without data.pkl, so neither torch.save nor TorchScript wrote it; "
                f"if it is a folder of weights, unpack it and give the file inside"
            )
        if has_code(archive.namelist()):
            return "torchscript"
        stored_records(archive, size)
    except CheckpointError:
        raise
    except ValueError as error:
        raise _unreadable(path, "zip", error) from error
    return "torch"


def _unreadable(path: Path, container: str, error: BaseException) -> CheckpointError:
    """Tells a file that wants code run from one that is damaged."""
    text = " ".join(str(error).partition("WeightsUnpickler error:")[2].split() or str(error).split())
    unsafe = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and "truncated" not in text:
        what = f"it asks for {short(unsafe[1], 200)}" if unsafe else text[:300]
        return CheckpointError(
            f"{path} was refused: {what}; clipbench never runs code from a checkpoint. Where you trust the file, "
            f"save its state_dict() as safetensors and give that file"
        )
    return CheckpointError(
        f"{path} is truncated or corrupt ({container}: {type(error).__name__}: {text[:300]}); download or copy it again"
    )


def _read_torch(copy: Path) -> object:
    with copy.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP  # else the format of torch before 1.6: five pickles, then the storages
        file.seek(0)
        if is_zip:
            _check_records(file, copy)
            return torch.load(str(copy), map_location="cpu", weights_only=True, mmap=True)
        for _ in range(5):
            _check_pickle(file)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_records(file: BinaryIO, copy: Path) -> None:
    """torch checks no checksums. Its reader of zips is another than Python's: they must see the same pickle."""
    archive = zip_directory(file)
    pickled = f"{_torch_root(archive)}data.pkl"
    if (size := archive.getinfo(pickled).file_size) > LARGEST_DIRECTORY_BYTES:
        raise ValueError(f"{pickled} has {size:,} bytes, which no state dict needs")
    if broken := archive.testzip():
        raise ValueError(f"record {broken} fails its checksum, or was saved without (torch's set_crc32_options)")
    content = archive.read(pickled)
    if content != torch._C.PyTorchFileReader(str(copy)).get_record("data.pkl"):
        raise ValueError(f"it has two records called {pickled}")
    _check_pickle(io.BytesIO(content))


_READERS: Mapping[str, Callable[[Path], object]] = {
    "safetensors": safetensors.torch.load_file,
    "torch": _read_torch,
    "torchscript": read_torchscript,
}

# What checkpoints of state dicts and optimizers are made of: less than torch's own list, on which a call of 100 bytes takes any memory.
_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\.(storage\.)?\w*Storage|torch\.(Size|device|(b?float|u?int|complex|q\w*)\w*|bool|per_\w+)"
    r"|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\._utils\._rebuild_(tensor(_v[23])?|parameter(_with_state)?|sparse_tensor|qtensor|meta_tensor_no_storage)"
)
_MAX_PICKLED, _MAX_KEY = 1 << 20, 64
_ATOMS = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "BINFLOAT",
    "LONG1",
    "BINUNICODE",
    "SHORT_BINSTRING",
}
_EMPTY = {"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ADDS = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}


@dataclass(eq=False)
class _Pickled:
    """One object of a pickle: how many it would be when written out, and whether another one holds it."""

    size: int = 1
    is_held: bool = False
    is_text: bool = False
    is_global: bool = False


def _check_pickle(stream: BinaryIO) -> None:
    """Read one pickle's steps, making nothing.

    Objects that hold others twice, level upon level, are exponentially large to whoever hashes or prints them, and torch does both.

    Raises: UnpicklingError for what is no part of a state dict, and for a pickle whose objects would be many more written out.
    """
    stack: list[_Pickled] = []
    below: list[list[_Pickled]] = []
    memo: dict[int, _Pickled] = {}
    steps: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for count, (opcode, argument, _) in enumerate(steps):
        name, taken = opcode.name, list[_Pickled]()
        if count > _MAX_PICKLED:
            raise pickle.UnpicklingError(f"it has more than {_MAX_PICKLED:,} steps")
        if name in ("TUPLE", "APPENDS", "SETITEMS"):
            taken, stack = stack, below.pop()
        elif n := _TUPLES.get(name, 0) or _ADDS.get(name, 0):
            taken = stack[-n:]
            del stack[-n:]
        if name == "GLOBAL":
            if not _GLOBALS.fullmatch(full := str(argument).replace(" ", ".")):
                raise pickle.UnpicklingError(f"GLOBAL {full}")
            stack.append(_Pickled(is_global=True))
        elif name in _ATOMS:
            is_text = isinstance(argument, str | bytes)
            stack.append(_Pickled(1 + (len(argument) >> 4 if is_text else 0), is_text=is_text))
        elif name in _EMPTY:
            stack.append(_Pickled())
        elif name == "TUPLE" or name in _TUPLES:
            stack.append(_holding(_Pickled(), taken))
        elif name in ("APPENDS", "SETITEMS") or name in _ADDS:
            keys = taken[::2] if name.startswith("SETITEM") else []
            if stack[-1].is_held or any(key.size > _MAX_KEY and not key.is_text for key in keys):
                raise pickle.UnpicklingError("its objects are built as no state dict's are")
            _holding(stack[-1], taken)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            if not called.is_global:
                raise pickle.UnpicklingError("it calls what is no function")
            stack.append(_holding(_Pickled(), [arguments]))
        elif name == "BINPERSID":
            if stack.pop().size > _MAX_KEY:
                raise pickle.UnpicklingError("a storage of it has no plain name")
            stack.append(_Pickled())
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in ("PROTO", "STOP"):
            raise pickle.UnpicklingError(f"its step {name} is none of torch.save's")


def _holding(holder: _Pickled, held: Sequence[_Pickled]) -> _Pickled:
    for one in held:
        one.is_held = True
        holder.size += one.size
    if holder.size > _MAX_PICKLED:
        raise pickle.UnpicklingError(
            f"its objects hold each other, and are more than {_MAX_PICKLED:,} when written out"
        )
    return holder
