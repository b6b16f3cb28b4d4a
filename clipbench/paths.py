"""Where files are, the package's own and those of installed packages; how they are opened and read as data; how they are named.

A file that somebody else made is data: it makes nothing import, load, connect or run. Whatever reads one opens it by `open_data`, or
by what stands on it here: a regular file of a bounded size, without waiting. Numbers, depth and keys are bounded before they cost.
"""

import gc
import hashlib
import importlib.util
import json
import math
import os
import re
import stat
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from clipbench.errors import DataError, DataUnavailableError, TooLargeError, UsageError, closest

Row = TypeVar("Row")

CACHE_VARIABLE = "CLIPBENCH_CACHE"
"""The environment variable that names the folder of the embedding cache."""

LARGEST_RUN_BYTES = 100_000_000
"""Of a run file, unless an option says otherwise: some 20 times a run of three models on COCO."""

LARGEST_DATA_BYTES = 1_000_000_000
"""Annotations, captions, queries. COCO's largest file of those that are read has 450 MB."""

LARGEST_SETTINGS_BYTES = 1_000_000
"""TOML and the configurations beside weights: written by hand."""

LARGEST_DIRECTORY_BYTES = 1 << 25
"""A zip's table of contents; that of a checkpoint with optimizer has some 200 kB."""

_MAX_DIGITS, _MAX_DEPTH = 4_000, 64
# A dotted TOML key: `tomllib` takes time quadratic in its parts. Possessive, and begun at no letter's neighbour, so linear itself.
_PART = r"""(?:(?<![\w-])[\w-]++|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|'[^'\n]*+')[ \t]*+"""
_DEEP_KEY = re.compile(rf"(?:{_PART}\.[ \t]*+){{{_MAX_DEPTH}}}")

_CONTAINER_MEMORY = (  # limit and use, in cgroup v2 and v1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)

_PACKAGE = Path(__file__).resolve().parent

_EXPECTED: Mapping[object, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: isinstance(value, str) and bool(value.strip()), "a text that is not empty"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: type(value) is int, "a whole number"),
    float: (lambda value: type(value) in (int, float) and -math.inf < value < math.inf, "a finite number"),
    tuple[str, ...]: (
        lambda value: isinstance(value, list) and bool(value) and all(isinstance(v, str) and v.strip() for v in value),
        "a list of texts, none of them blank",
    ),
    Mapping[str, str]: (
        lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
        "a table of texts",
    ),
}


def bundled(folder: str) -> Path:
    """Return the folder `fixtures` or `benchmarks`: inside the package in a wheel, beside it in a checkout.

    Raises: FileNotFoundError when neither is there, which means a broken installation.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        if (parent / folder).is_dir():
            return parent / folder
    raise FileNotFoundError(f"{folder}/ is neither in {_PACKAGE} nor beside it; install clipbench again")


def fixtures() -> Path:
    """Return the folder with data set manifests, published values and floors."""
    return bundled("fixtures")


def benchmarks() -> Path:
    """Return the folder with the benchmark tests."""
    return bundled("benchmarks")


def user_cache() -> Path:
    """Return clipbench's folder in the user's cache (`$XDG_CACHE_HOME/clipbench` on Linux); it need not exist yet.

    Raises: DataUnavailableError for a user without a home folder.
    """
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("clipbench", appauthor=False)).expanduser()
    except RuntimeError as error:
        raise DataUnavailableError(f"there is no place for the user's cache: {error}; set XDG_CACHE_HOME") from error


def expanded(path: Path | str) -> Path:
    """Return a path that somebody typed, `~` being a home folder. Raises: UsageError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path} cannot be a path: {error}; write it out") from error


def installed_file(module: str, relative: str) -> Path | None:
    """Return where an installed top-level module keeps a file or folder, which may be missing there; None without the module.

    The module is looked up, never imported: that takes seconds and runs its code.
    """
    spec = importlib.util.find_spec(module)
    places = [Path(folder, relative) for folder in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if place.exists()), places[0] if places else None)


def file_name(words: Sequence[str], suffix: str, also: Sequence[str] = ()) -> str:
    """Return the name of a file about these words, safe everywhere: letters, digits, dot and dash.

    It ends in a hash over all of `words` and `also`, so that no two share a file: every file that is named after names is named here.
    """
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")[:100]
    return f"{readable}-{hashlib.sha256(json.dumps([*words, *also]).encode()).hexdigest()[:16]}{suffix}"


def open_data(path: Path, largest_bytes: int) -> BinaryIO:
    """Return a regular file, open for reading. Nothing is waited for, nothing is read.

    Raises: DataUnavailableError when it cannot be opened; DataError when it is no regular file (a folder, a pipe, a device); TooLargeError.
    """
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115  # returned
    except FileNotFoundError as error:
        raise DataUnavailableError(f"{path} is not there") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder; expected a file") from error
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise DataUnavailableError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= largest_bytes:
        return file
    file.close()
    if stat.S_ISREG(status.st_mode):
        raise TooLargeError(f"{path} has {status.st_size:,} bytes, and at most {largest_bytes:,} are read")
    raise DataError(f"{path} is no regular file; expected one that lies on a disk")


def free_bytes() -> int:
    """Return the memory that is free now on this machine, or in this container where that has a limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in _CONTAINER_MEMORY:
        if limit.is_file() and used.is_file() and limit.read_text().strip().isdecimal():
            free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
            break
    return free


def read_bytes(path: Path, largest_bytes: int = LARGEST_DATA_BYTES) -> bytes:
    """Return the content of a regular file. Raises: as `open_data`; DataUnavailableError when the disk fails."""
    with open_data(path, largest_bytes) as file:
        try:
            return file.read(min(largest_bytes, os.fstat(file.fileno()).st_size))  # no more, should it grow
        except OSError as error:
            raise DataUnavailableError(f"cannot read {path}: {error.strerror}") from error


def read_text(path: Path, largest_bytes: int = LARGEST_DATA_BYTES) -> str:
    """Return the file's text, which must be UTF-8 (a byte order mark is taken off). Line ends stay as they are.

    Raises: as `read_bytes`; DataError with the byte's position when it is not UTF-8.
    """
    try:
        return read_bytes(path, largest_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error


def read_json(
    path: Path,
    largest_bytes: int = LARGEST_DATA_BYTES,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    parse_float: Callable[[str], float] | None = None,
) -> Any:
    """Return the file's parsed JSON; the hooks are `json.loads`'s own, that of floats is for NaN and infinity, too.

    Raises: as `read_text`; DataError with line and column when it is not JSON, for what the hooks refuse, for nesting that is too deep,
    and for a whole number of more than 4,000 digits, which would take time quadratic in them.
    """
    text = read_text(path, largest_bytes)
    was_enabled = gc.isenabled()
    gc.disable()  # parsing makes millions of objects and no garbage: looking for some took 2.0 of 2.4 s on Karpathy's file
    try:
        return parse_json(text, str(path), object_hook, parse_float)
    finally:
        if was_enabled:
            gc.enable()


def parse_json(
    text: str,
    where: str,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    parse_float: Callable[[str], float] | None = None,
) -> Any:
    """Return parsed JSON of somebody else's, from `where`. Raises: DataError as `read_json`."""
    try:
        return json.loads(
            text, object_hook=object_hook, parse_float=parse_float, parse_constant=parse_float, parse_int=_whole_number
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{where} is not JSON, or cut short: {error.msg} at {place}; fetch or make it again") from error
    except RecursionError as error:
        raise DataError(f"{where} is not the expected JSON: it is nested too deeply to be read") from error
    except ValueError as error:
        raise DataError(f"{where} is not the expected JSON: {error}") from error


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises: as `read_text`; DataError with line and column when it is not TOML, or what it holds cannot be meant.
    """
    text = read_text(path, LARGEST_SETTINGS_BYTES)
    if _DEEP_KEY.search(text):
        raise DataError(
            f"{path} has a key of more than {_MAX_DEPTH} parts; expected tables and keys as the README shows"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not the expected TOML: {error}") from error


class _BoundedReads:
    """A file of which, until `is_open`, nobody reads more than a zip's table of contents at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self._file = file.seek, file.tell, file.seekable, file
        self.is_open = False

    def read(self, count: int = -1) -> bytes:
        if count > LARGEST_DIRECTORY_BYTES and not self.is_open:
            raise ValueError(f"a table of contents of {count:,} bytes")
        return self._file.read(count if count >= 0 or self.is_open else LARGEST_DIRECTORY_BYTES)


def zip_directory(file: BinaryIO) -> zipfile.ZipFile:
    """Return the zip in an open file, of which the table of contents is read, and nothing else.

    Raises: ValueError in words for one that is damaged, or larger than LARGEST_DIRECTORY_BYTES.
    """
    bounded = _BoundedReads(file)
    try:
        archive = zipfile.ZipFile(bounded)
    except Exception as error:  # its docs name BadZipFile, and a damaged table raises eight others
        raise ValueError(f"it is no zip, or damaged: {error}") from error
    bounded.is_open = True
    return archive


def stored_records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the records of a zip of `size` bytes by name: each once, none compressed, none over another.

    So their bytes are no more than the file's. Raises: ValueError naming the record.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.filename in found:
            raise ValueError(f"record {info.filename} is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise ValueError(f"record {info.filename} is compressed or encrypted, and is expected as it is")
        if info.header_offset < end or (end := info.header_offset + info.file_size + 30) > size:
            raise ValueError(f"record {info.filename} lies over another, or beyond the file")
        found[info.filename] = info
    return found


def strict_row(where: str, table: Mapping[str, Any], kind: type[Row]) -> Row:
    """Return a TOML table as a `kind`: a dataclass whose fields are the keys, required where they have no default.

    Fields of type str, bool, int, float, tuple[str, ...] and Mapping[str, str] are checked, others are left to the caller.
    A list becomes a tuple. `where` says in messages which table it is.

    Raises: DataError naming the first key that is unknown (with the likeliest), missing, or of another type.
    """
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # a dataclass, which `type[Row]` cannot say
    if (unknown := next((key for key in table if key not in known), None)) is not None:
        raise DataError(
            f"{where}: unknown key {unknown!r}; did you mean {closest(unknown, known) or ', '.join(known)}?"
        )
    for key, declared in known.items():
        if key in table:
            fits, expected = _EXPECTED.get(declared.type, (lambda value: True, ""))
            if not fits(table[key]):
                raise DataError(f"{where}: {key} = {repr(table[key])[:80]}; expected {expected}")
        elif declared.default is MISSING and declared.default_factory is MISSING:
            raise DataError(f"{where}: the key {key!r} is missing; expected {', '.join(known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})
