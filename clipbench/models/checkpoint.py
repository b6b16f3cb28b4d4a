"""Checkpoints from anywhere, as a plain state dict, and into a model: what does not fit exactly is refused.

Every way a file can be wrong ends in one CheckpointError that names it; nothing in it ever runs. First the state dict and the model,
then OpenAI's TorchScript archives, read as data by a restricted unpickler over the zip, last the containers, recognized by content.
"""

import hashlib
import io
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch

from clipbench.errors import CheckpointError, UsageError
from clipbench.models.zoo import is_torchscript, zoo

T = TypeVar("T")

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile
# Sizes that OpenAI's archives store among the weights.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
NESTED = ("state_dict", "model_state_dict", "model")  # open_clip's own name first
_NAMED = 5  # keys named in a message
_HINT = "choose with --model the architecture, image size included, that these weights were trained as"
_POSITIONS = ("positional_embedding", "pos_embed")
_MAX_EXPANDED = 1 << 24  # elements of a tensor that repeats its storage: a small file cannot fill memory


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's weights on the CPU, before any cast; they may be mapped from the file: valid as long as nobody writes into it.

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
    if not path.is_file():  # a pipe would be waited for
        kind = "a directory" if path.is_dir() else "no regular file"
        raise CheckpointError(f"{path} is {kind}, expected a checkpoint file; give the file inside it")
    try:
        with path.open("rb") as file:
            file_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found, container = _contents(path, file_sha256)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions and the disk") from error
    tensors = {n: tensor for n, tensor in strip_prefixes(_state_dict(found, path)).items() if n not in OPENAI_EXTRAS}
    return Checkpoint(_dense(tensors, path), file_sha256, container)


def _state_dict(found: object, path: Path) -> dict[str, torch.Tensor]:
    """The mapping of names to tensors, where it lies or one level down."""
    top = found if isinstance(found, Mapping) else {}
    chosen = next((top[name] for name in NESTED if isinstance(top.get(name), Mapping)), top)
    other = [name for name, value in chosen.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if chosen and not [name for name in other if name not in OPENAI_EXTRAS]:
        return {name: value for name, value in chosen.items() if isinstance(value, torch.Tensor)}
    got = f"entries such as {_listed(map(repr, other))}" if other else f"an empty {type(found).__name__}"
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
    while carried := [p for p in WRAPPER_PREFIXES if all(n.startswith(p) and n != p for n in stripped) and stripped]:
        stripped = {name.removeprefix(carried[0]): value for name, value in stripped.items()}
    return stripped


def _dense(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
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


def load_into(model: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> dict[str, torch.Tensor]:
    """Copy a checkpoint's tensors, cast to the model's dtypes, into an open_clip model, every one of them; return them as they were.

    Buffers that the model computes itself and does not save, but a scripted archive does, are none of them where they are equal.

    open_clip's own conversions apply (`open_clip.factory.load_checkpoint`), except one: positional embeddings of another size are
    refused, not interpolated. `path` only names the file in messages. After an error the model is of no use.

    Raises: CheckpointError when a value is NaN or infinite, or when names, shapes or kinds of number are not the model's.
    """
    tensors = _without_derived(model, checkpoint.tensors)
    if broken := next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None):
        raise CheckpointError(f"{path}: {broken} holds NaN or infinite values; use a checkpoint from before they arose")
    try:
        state = _converted(model, dict(tensors))
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = f"open_clip's conversion fails ({type(error).__name__}: {error})"
        raise CheckpointError(f"{path} does not fit this model: {reason}; {_HINT}") from error
    _check_fit(path, state, model.state_dict())
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


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    # NaN and infinities show in the extremes; `isfinite().all()` takes 25 times as long.
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # torch orders no float8
    return all(bool(extreme.isfinite()) for extreme in wide.aminmax())


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
    listed = list(names)
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


def _contents(path: Path, file_sha256: str) -> tuple[object, str]:
    """What a file holds, on the CPU (of `torch.save` anything that torch's restricted loader makes), and its container."""
    with path.open("rb") as file:
        container = _container(path, file.read(512))
    if container == "torchscript" and file_sha256 not in openai_archives():
        raise CheckpointError(
            f"{path} is a TorchScript archive, and none of OpenAI's nine: its SHA-256 is {file_sha256}. clipbench never runs code from "
            f"a checkpoint. Download it again if it should be one of them; else load it where you trust it, save its state_dict() and "
            f"give that file"
        )
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
            is_torchs = bool(_torch_root(archive))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _unreadable(path, "zip", error) from error
    if not is_torchs:
        raise CheckpointError(
            f"{path} is a zip without data.pkl, so neither torch.save nor TorchScript wrote it; "
            f"if it is a folder of weights, unpack it and give the file inside"
        )
    return "torchscript" if is_torchscript(path) else "torch"


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
    "safetensors": safetensors.torch.load_file,
    "torch": _read_torch,
    "torchscript": read_torchscript,
}
