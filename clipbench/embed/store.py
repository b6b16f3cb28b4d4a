"""The store beneath the embedding cache: values by key in one SQLite file, bounded, shared between processes.

SQLite itself, and not diskcache over it, which is unmaintained since 2023 and has an open CVE for unpickling.
What the disk does is no error here: a value that is not what was put is absent, and a store whose disk fails is off.

The journal is SQLite's rollback journal: WAL needs shared memory, which network file systems lack, and leaves files beside
this one. Values stand apart from keys, so that marking an entry as used rewrites a few bytes in place and takes no new page.
"""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from clipbench.errors import UsageError

CACHE_BYTES = 4 << 30
"""The default bound of a cache."""

VERSION = 1  # PRAGMA user_version of our files
FILE = f"clipbench-rows-{VERSION}.sqlite3"  # two versions of clipbench on one folder leave each other's file alone
BUSY_SECONDS = 10.0  # for which other processes' transactions, of some 20 ms each, are waited for
FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError, OverflowError)
"""What a disk or a damaged file can raise; the last two where garbled bytes are no text, or no number that SQLite holds."""

_PAGE_BYTES = 1 << 14  # seven values of 2 KB fill 90 % of it; SQLite's usual 4,096 bytes would be half unused
_SPARE_PAGES = 10  # what a file needs beside one value
MINIMUM_LIMIT_BYTES = 2 * _SPARE_PAGES * _PAGE_BYTES

_LARGEST_BYTES = 16 << 20  # of a value
_AT_ONCE = 900  # entries in a transaction, and keys in a statement: SQLite before 3.32 takes 999
_BYTES_AT_ONCE = 4 << 20
_ROOM_BYTES = 64 << 20  # more than any transaction takes
_NOW = "CAST(strftime('%s', 'now') AS INTEGER)"
_SETTINGS = (f"page_size={_PAGE_BYTES}", "synchronous=NORMAL", "secure_delete=OFF", "cell_size_check=ON", "cache_size=-64000")  # fmt: skip
_NEXT_ID = "SELECT coalesce(max(id), 0) + 1 FROM entries"
_SCHEMA = (
    "CREATE TABLE entries(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, checksum BLOB NOT NULL)",
    "CREATE TABLE contents(id INTEGER PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TRIGGER gone AFTER DELETE ON entries BEGIN DELETE FROM contents WHERE id = old.id; END",
)
_UNWRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)

T = TypeVar("T")


class RowStore:
    """Values by key in one SQLite file, bounded, least recently used out first.

    Keys are digests of at most 64 bytes. Several processes, and several threads of one, may use one folder at once.
    """

    def __init__(self, folder: Path, limit_bytes: int = CACHE_BYTES) -> None:
        """Make folder and file where they are missing. Raises: UsageError for a folder that cannot be written to, or too small a limit."""
        if limit_bytes < MINIMUM_LIMIT_BYTES:
            raise UsageError(f"cache {folder}: a limit of {limit_bytes:,} bytes; give {MINIMUM_LIMIT_BYTES:,} or more")
        self._folder, self._path, self._pages = folder, folder.absolute() / FILE, limit_bytes // _PAGE_BYTES
        self._lock = threading.RLock()
        self._said: dict[str, None] = {}
        self._corrupt = 0
        self._connection: sqlite3.Connection | None = None
        self._may_begin_anew = self._is_marking = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except FAILURES as error:
            if isinstance(error, OSError) or (
                error_code(error) in _UNWRITABLE and not self._is_locked_by_its_header(error)
            ):
                self.close()
                raise UsageError(f"cache {folder} cannot be made or written to: {error}; give one that can") from error
            self._recover(error)

    @property
    def problems(self) -> list[str]:
        """What went wrong so far, in words, each once; empty when nothing did."""
        n, said = self._corrupt, [*self._said]
        what = (
            "1 entry of the cache was corrupt and is" if n == 1 else f"{n:,} entries of the cache were corrupt and are"
        )
        return [*said, f"{what} computed again"] if n else said

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values that are there and intact, by key, and mark them as used; a corrupt one is deleted."""
        found: dict[bytes, bytes] = {}
        corrupt, stale = [], []
        with self._lock:
            for part in _parts(list(dict.fromkeys(keys))):
                for key, value, checksum, is_stale in self._attempt(partial(_read, keys=part)) or ():
                    if not isinstance(value, bytes) or checksum != _checksum(key, value):
                        corrupt.append(key)
                        continue
                    found[key] = value
                    stale += [(key,)] if is_stale else []
            self._corrupt += len(corrupt)
            self.discard(corrupt)
            if stale and self._is_marking:
                self._attempt(partial(self._mark, keys=stale))
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep these values, in place of earlier ones of the same keys; a value larger than the limit is not kept."""
        largest = min((self._pages - _SPARE_PAGES) * (_PAGE_BYTES - 4), _LARGEST_BYTES)  # 4: a link in each page
        most = min(_BYTES_AT_ONCE, self._pages * _PAGE_BYTES // 8)
        part: list[tuple[bytes, bytes]] = []
        size = 0
        with self._lock:
            for key, value in values.items():
                if len(value) > largest:
                    self._say(f"without values of more than {largest:,} bytes, which it does not take")
                    continue
                if len(part) == _AT_ONCE or size + len(value) > most:
                    self._attempt(partial(self._write, part=part))
                    part, size = [], 0
                part.append((key, value))
                size += len(value)
            self._attempt(partial(self._write, part=part))

    def discard(self, keys: Sequence[bytes]) -> None:
        """Delete these entries; those that are not there are none."""
        with self._lock:
            for part in _parts([(key,) for key in keys]):
                self._attempt(partial(_change, statement="DELETE FROM entries WHERE key = ?", rows=part))

    def close(self) -> None:
        """Let go of the file; after that nothing is found and nothing kept."""
        with self._lock, suppress(*FAILURES):
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()  # rolls back

    def _open(self) -> None:
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection, self._seen = connection, self._path.stat()
        connection.text_factory = bytes  # garbled text is not decoded
        for setting in _SETTINGS:
            connection.execute(f"PRAGMA {setting}")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            version = number(connection, "PRAGMA user_version")
            if not version and not number(connection, "SELECT count(*) FROM sqlite_master"):
                for statement in _SCHEMA:
                    connection.execute(statement)
            elif version != VERSION:
                raise sqlite3.IntegrityError(f"version {version}, expected {VERSION}")
            made = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
            if made != {statement.encode() for statement in _SCHEMA}:
                raise sqlite3.IntegrityError("malformed: it has other tables than ours")
            connection.execute(f"PRAGMA user_version = {VERSION}")  # each time: fails where nothing can be written
        self._first = 1 << 63  # of the entries that this run puts; none while the file shrinks
        if number(connection, "PRAGMA page_count") > self._pages:
            while self._free(connection) < 0 and self._evict(connection):
                pass
            connection.execute("VACUUM")
        connection.execute(f"PRAGMA max_page_count = {self._pages}")
        self._first = number(connection, _NEXT_ID)

    def _attempt(self, act: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `act` returns, tried once more on a file begun anew; None where the store is off, or is from now on."""
        for _ in range(2):
            if self._connection is None:
                return None
            try:
                return act(self._connection)
            except FAILURES as error:
                self._recover(error)
        return None

    def _recover(self, error: Exception) -> None:
        """Begin anew where the file is damaged or no longer there, once in a store's life; else turn the store off."""
        if self._may_begin_anew:
            self._may_begin_anew = False
            try:
                is_damaged = is_damage(error, self._connection) or self._is_locked_by_its_header(error)
                if is_damaged or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_DBMOVED:
                    # Compared and removed before it is closed: until then no other file can have its inode.
                    if is_damaged and self._path.exists() and os.path.samestat(self._path.stat(), self._seen):
                        remove(self._path)
                        self._say(f"begun anew, since its file was damaged ({error})")
                    self.close()
                    return self._open()
            except FAILURES as another:
                error = another
        self.close()
        return self._say(f"off for the rest of this run, nothing is read from it or kept: {error}")

    def _is_locked_by_its_header(self, error: Exception) -> bool:
        """True where SQLite refuses to write, and the system does not: a damaged byte says that a newer SQLite wrote the file."""
        is_refused = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY
        return is_refused and os.access(self._path, os.W_OK) and os.access(self._path.parent, os.W_OK)

    def _say(self, problem: str) -> None:
        self._said[f"the cache {self._folder} is {problem}"] = None

    def _write(self, connection: sqlite3.Connection, part: Sequence[tuple[bytes, bytes]]) -> None:
        while part:
            try:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany("DELETE FROM entries WHERE key = ?", ((key,) for key, _ in part))
                    first = number(connection, _NEXT_ID)
                    entries = ((first + k, key, _checksum(key, value)) for k, (key, value) in enumerate(part))
                    connection.executemany(f"INSERT INTO entries VALUES (?, ?, {_NOW}, ?)", entries)  # noqa: S608
                    contents = ((first + k, value) for k, (_, value) in enumerate(part))
                    connection.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?)", contents)
                return
            except sqlite3.OperationalError as error:
                is_full = error_code(error) == sqlite3.SQLITE_FULL and self._free(connection) < _ROOM_BYTES
                disk = shutil.disk_usage(self._path.parent)  # "full" is said of the file's limit as of the disk
                if not is_full or disk.free < _ROOM_BYTES or not self._evict(connection):
                    raise

    def _mark(self, connection: sqlite3.Connection, keys: Sequence[tuple[bytes]]) -> None:
        try:
            _change(connection, f"UPDATE entries SET used = {_NOW} WHERE key = ?", keys)  # noqa: S608
        except sqlite3.OperationalError as error:
            if error_code(error) != sqlite3.SQLITE_BUSY:
                raise
            self._is_marking = False  # the order of use is a little less true, and the lock is not waited for again

    def _free(self, connection: sqlite3.Connection) -> int:
        """Bytes that the limit leaves, below 0 where a file from a larger one does not fit."""
        used = number(connection, "PRAGMA page_count") - number(connection, "PRAGMA freelist_count")
        return (self._pages - used) * _PAGE_BYTES

    def _evict(self, connection: sqlite3.Connection) -> bool:
        """Delete the least recently used tenth of the entries; False where nothing could be.

        First go those of the future, from before a clock was set back: nobody knows when they were used.
        """
        before = connection.total_changes
        count = number(connection, "SELECT count(*) FROM entries") // 10 + 1
        oldest = f"SELECT id FROM entries ORDER BY used <= {_NOW}, used, id LIMIT ?"  # noqa: S608
        ids = connection.execute(oldest, (count,)).fetchall()
        for part in _parts(ids):
            _change(connection, "DELETE FROM entries WHERE id = ?", part)
        if max(ids, default=(0,))[0] >= self._first:
            self._say(f"full: its limit of {self._pages * _PAGE_BYTES:,} bytes does not hold what this run uses")
        return connection.total_changes > before


def _read(connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[tuple[bytes, Any, Any, Any]]:
    """Key, value, checksum, and was it last used at another second: of the keys that are there, unchecked."""
    query = f"SELECT key, value, checksum, used <> {_NOW} FROM entries LEFT JOIN contents USING (id)"  # noqa: S608
    rows = connection.execute(f"{query} WHERE key IN ({','.join('?' * len(keys))})", keys).fetchall()
    if not {row[0] for row in rows} <= set(keys):
        raise sqlite3.IntegrityError("malformed: a key leads to another key's entry")
    return rows


def _change(connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # two that began as readers could block each other for good
        connection.executemany(statement, rows)


def _checksum(key: bytes, value: bytes) -> bytes:
    return blake2b(value, digest_size=16, key=key).digest()


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


# For the person who asks what is in a folder, or clears it: whatever is wrong is an error there.


@dataclass(frozen=True)
class Description:
    """What a folder holds. `bytes`: the size of the file `path`; uses in UTC, "YYYY-MM-DD HH:MM:SS", None where there is no entry."""

    path: Path
    exists: bool
    entries: int = 0
    bytes: int = 0
    oldest_use: str | None = None
    newest_use: str | None = None


def describe(folder: Path) -> Description:
    """Return what `folder` holds; creates nothing. Raises: UsageError for a folder that is a file, and a store damaged or locked."""
    path = _file_in(folder)
    if not path.exists():
        return Description(path, exists=False)
    with _opened(path) as connection:
        entries = number(connection, "SELECT count(*) FROM entries")
        oldest, newest = connection.execute(
            "SELECT datetime(min(used), 'unixepoch'), datetime(max(used), 'unixepoch') FROM entries"
        ).fetchone()
        return Description(path, True, entries, path.stat().st_size, oldest, newest)


def clear(folder: Path) -> int:
    """Remove the store's file and SQLite's side files, nothing else; return the bytes freed. Raises: as `describe`, also when in use."""
    path = _file_in(folder)
    if not path.exists():
        return 0
    with _opened(path) as connection:
        connection.execute("BEGIN EXCLUSIVE")  # nobody is in a transaction whose journal would be pulled away
        return remove(path)


def _file_in(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give the folder of a cache")
    return Path(os.path.realpath(folder.absolute() / FILE))  # of a link, what it leads to


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file that is there, with UsageError for whatever is wrong with it."""
    address = f"{path.as_uri()}?mode=rw"  # to read, too: what a killed process left unfinished is rolled back first
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            yield connection
    except FAILURES as error:
        what, hint = "cannot be used now", "try again when no run is using it"
        if is_damage(error):
            what, hint = "is damaged", "the next run with this cache begins it anew"
        raise UsageError(f"{path} {what} ({error}); it is left as it is, {hint}") from error


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
