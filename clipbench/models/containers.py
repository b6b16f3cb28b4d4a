"""The containers a checkpoint comes in, told apart by content and read without running anything in them."""

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from clipbench.errors import CheckpointError
from clipbench.models.torchscript import is_data_pkl, read_torchscript

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
