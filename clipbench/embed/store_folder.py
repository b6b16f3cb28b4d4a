"""The file beneath the embedding cache: is it damaged, what is in it, and its end.

`describe` and `clear` are for the person who asks: whatever is wrong is an error there.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clipbench.errors import UsageError

FILE = "clipbench-rows.sqlite3"
VERSION = 1  # PRAGMA user_version of our files
BUSY_SECONDS = 10.0  # for which other processes' transactions, of some 20 ms each, are waited for
FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError, OverflowError)
"""What a disk or a damaged file can raise; the last two where garbled bytes are no text, or no number that SQLite holds."""


@dataclass(frozen=True)
class Description:
    """What a folder holds. `bytes`: the size of the file `path`.

    `oldest_use`, `newest_use`: UTC, "YYYY-MM-DD HH:MM:SS", None where there is no entry. `is_current`: False for a file of
    another version of clipbench: nothing in it is counted, and the next run begins it anew.
    """

    path: Path
    exists: bool
    entries: int = 0
    bytes: int = 0
    oldest_use: str | None = None
    newest_use: str | None = None
    is_current: bool = True


def describe(folder: Path) -> Description:
    """Return what `folder` holds; creates nothing.

    Raises: UsageError for a folder that is a file, and for a store that is damaged or locked.
    """
    path = _file_in(folder)
    if not path.exists():
        return Description(path, exists=False)
    with _opened(path) as connection:
        if number(connection, "PRAGMA user_version") != VERSION:
            return Description(path, exists=True, bytes=path.stat().st_size, is_current=False)
        entries = number(connection, "SELECT count(*) FROM entries")
        oldest, newest = connection.execute(
            "SELECT datetime(min(used), 'unixepoch'), datetime(max(used), 'unixepoch') FROM entries"
        ).fetchone()
        return Description(path, True, entries, path.stat().st_size, oldest, newest)


def clear(folder: Path) -> int:
    """Remove the store's file and SQLite's side files, nothing else; return the bytes freed.

    Raises: UsageError as `describe`, and for a store in use: then nothing is removed.
    """
    path = _file_in(folder)
    if not path.exists():
        return 0
    with _opened(path) as connection:
        connection.execute("BEGIN EXCLUSIVE")  # nobody is in a transaction whose journal would be pulled away
        return remove(path)


def _file_in(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give the folder of a cache")
    return folder.absolute() / FILE


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file that is there, with UsageError for whatever is wrong with it."""
    # Not read-only: what a killed process left unfinished is rolled back before anything can be read.
    address = f"{path.as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            yield connection
    except FAILURES as error:
        if is_damage(error):
            hint = "the next run with this cache begins it anew"
            raise UsageError(f"{path} is damaged ({error}); it is left as it is, {hint}") from error
        raise UsageError(
            f"{path} cannot be used now ({error}); it is left as it is, try again when no run is using it"
        ) from error


def number(connection: sqlite3.Connection, query: str) -> int:
    """Return the whole number that a query gives."""
    return int(connection.execute(query).fetchone()[0])


def error_code(error: BaseException) -> int:
    """Return SQLite's primary code of an error, 0 for one that is not from SQLite."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_damage(error: BaseException, connection: sqlite3.Connection | None = None) -> bool:
    """Return True for a file whose content cannot be what we wrote: no database, malformed, cut short, a table missing."""
    code = error_code(error)
    if code == sqlite3.SQLITE_FULL and connection is not None:  # also said of a page number beyond all pages
        return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != (b"ok",))
    if code == sqlite3.SQLITE_ERROR:
        return "no such" in str(error)
    is_garbled = isinstance(error, sqlite3.IntegrityError | UnicodeDecodeError | OverflowError)
    return is_garbled or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def remove(path: Path) -> int:
    """Remove the file after SQLite's side files, which would be taken for a new one's own; return the bytes freed."""
    freed = 0
    for file in (path.with_name(path.name + end) for end in ("-journal", "-wal", "-shm", "")):
        with suppress(FileNotFoundError):
            freed += file.stat().st_size
            file.unlink()
    return freed
