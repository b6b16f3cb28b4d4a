"""Where files are, the package's own and those of installed packages, and how a text or a TOML row is read and refused."""

import importlib.util
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from clipbench.errors import DataError, DataUnavailableError, closest

Row = TypeVar("Row")

CACHE_VARIABLE = "CLIPBENCH_CACHE"
"""The environment variable that names the folder of the embedding cache."""

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


def installed_file(module: str, relative: str) -> Path | None:
    """Return where an installed top-level module keeps a file or folder, which may be missing there; None without the module.

    The module is looked up, never imported: that takes seconds and runs its code.
    """
    spec = importlib.util.find_spec(module)
    places = [Path(folder, relative) for folder in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if place.exists()), places[0] if places else None)


def read_text(path: Path) -> str:
    """Return the file's text, which must be UTF-8 (a byte order mark is taken off). Line ends stay as they are.

    Raises: DataUnavailableError when the file cannot be read; DataError with the byte's position when it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataUnavailableError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises: as `read_text`; DataError with line and column when it is not TOML."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not valid TOML: {error}") from error


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
