"""The store beneath the embedding cache: what is put is found, bounded, shared, and never wrong whatever the disk does."""

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import pytest

from clipbench.embed.store import FILE, MINIMUM_LIMIT_BYTES, RowStore, clear, describe
from clipbench.errors import UsageError

MIB = 1 << 20
CHILD = """
import hashlib, itertools, sys
from pathlib import Path
from clipbench.embed.store import RowStore
def key(i): return hashlib.sha256(str(i).encode()).digest()
def rows(*places): return {key(i): key(i) * 64 for i in places}
folder = Path(sys.argv[1])
"""
"""The beginning of every child's program. The value of a key is the key 64 times over, 2 KB."""


def key(i):
    return hashlib.sha256(str(i).encode()).digest()


def rows(*places):
    return {key(i): key(i) * 64 for i in places}


def intact(found):
    return all(value == k * 64 for k, value in found.items())


def child(program, *arguments):
    command = [sys.executable, "-c", CHILD + program, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def edit(folder, statement, *values):
    """Change the file behind the store's back."""
    with closing(sqlite3.connect(folder / FILE)) as connection, connection:
        connection.execute(statement, values)


def off(store):
    """True when the store is off, and says so once."""
    store.put(rows(1))
    store.discard([key(1)])
    said = ["is off for the rest of this run, nothing is read from it or kept: " in p for p in store.problems]
    return (store.get([key(1)]), said) == ({}, [True])


def spoil(path, start, stop):
    """Noise from one share of the file to another."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(int(size * start))
        file.write(random.Random(0).randbytes(int(size * stop) - int(size * start)))


def mislead(path):
    """Let the first entry of a table's root lead to a page beyond all pages."""
    with closing(sqlite3.connect(path)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'contents'").fetchone()[0]
        page = connection.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((root - 1) * page + 12)
        file.seek((root - 1) * page + int.from_bytes(file.read(2), "big"))
        file.write(b"\xa0\0\0\0")


DAMAGE = {
    "start": lambda path: spoil(path, 0, 0.1),
    "middle": lambda path: spoil(path, 0.3, 0.7),
    "end": lambda path: spoil(path, 0.9, 1),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2 + 77),
    "text": lambda path: path.write_text("this is no database\n" * 5_000),
    "page number": mislead,
    "no tables": lambda path: edit(path.parent, "DROP TABLE contents"),
    "other version": lambda path: edit(path.parent, "PRAGMA user_version = 99"),
    "no version": lambda path: edit(path.parent, "PRAGMA user_version = 0"),
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def store(folder):
    made = RowStore(folder)
    yield made
    made.close()


def test_what_was_put_is_found_by_the_next_store_and_at_rest_is_one_file(store, folder):
    values = {**rows(*range(2_500)), key("empty"): b"", key("large"): os.urandom(5_000_000)}
    store.put(values)
    assert store.get(list(values)) == values
    store.close()
    assert [file.name for file in folder.iterdir()] == [FILE]
    store.put(rows("late"))
    assert (store.get(list(values)), store.problems) == ({}, [])
    again = RowStore(folder)
    assert again.get([*values, key("never put"), key("late"), *values]) == values
    assert again.problems == []


def test_a_later_value_replaces_the_earlier_one_and_a_discarded_one_is_gone(store, folder):
    store.put(rows(1, 2, 3))
    store.put({key(1): b"new"})
    store.discard([key(2), key("never put")])
    assert store.get([key(1), key(2), key(3)]) == {key(1): b"new", **rows(3)}
    with closing(sqlite3.connect(folder / FILE)) as connection:  # nothing is left behind of what went
        assert connection.execute("SELECT count(*) FROM contents").fetchone() == (2,)


def test_threads_of_one_process_share_a_store(store):
    def work(part):
        mine = rows(*range(part * 300, part * 300 + 300))
        store.put(mine)
        return store.get(list(mine)) == mine

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(12)))


@pytest.mark.parametrize("limit_bytes", [MINIMUM_LIMIT_BYTES, MIB, 10 * MIB])
def test_the_file_never_exceeds_the_limit_and_the_latest_are_kept(folder, limit_bytes):
    store = RowStore(folder, limit_bytes)
    for n in range(20):
        latest = {key((n, i)): os.urandom([1, 2_048, 60_000][n % 3]) for i in range([1_000, 50, 3][n % 3])}
        store.put(latest)
        assert (folder / FILE).stat().st_size <= limit_bytes
        assert store.get(list(latest)) == latest
    assert not [p for p in store.problems if "its limit" not in p]
    store.put(rows(*range(limit_bytes // 1_500)))
    assert store.get([key((1, i)) for i in range(50)]) == {}


@pytest.mark.parametrize("reopened", [False, True])
def test_the_least_recently_used_go_first_and_no_more_than_need_be(folder, reopened):
    store = RowStore(folder, limit_bytes=MIB)
    store.put(rows(*range(350)))
    edit(folder, "UPDATE entries SET used = used - 1000")
    used = [key(i) for i in range(0, 350, 10)]
    store.get(used)
    if reopened:
        store.close()
        store = RowStore(folder, limit_bytes=MIB)
    store.put(rows(*range(1_000, 1_200)))
    left = store.get([key(i) for i in range(350)])
    assert left.keys() >= set(used)  # in spite of their place among those that went
    assert len(used) + 40 < len(left) < 280
    assert set(left) == {*used, *(key(i) for i in range(350) if key(i) in left and i > 60)}  # the earliest went


def test_a_mark_for_which_no_lock_can_be_had_is_no_failure(folder, monkeypatch):
    monkeypatch.setattr("clipbench.embed.store.BUSY_SECONDS", 0.05)
    store = RowStore(folder)
    store.put(rows(1))
    edit(folder, "UPDATE entries SET used = 1")
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert (store.get([key(1)]), store.problems) == (rows(1), [])
    assert describe(folder).newest_use.startswith("1970")


def test_a_smaller_limit_shrinks_the_file_to_what_was_used_last(folder):
    store = RowStore(folder, limit_bytes=8 * MIB)
    store.put(rows(*range(3_000)))
    edit(folder, "UPDATE entries SET used = used - 1000")
    used = [key(i) for i in range(0, 3_000, 30)]
    store.get(used)
    store.close()
    store = RowStore(folder, limit_bytes=MIB)
    assert MIB // 2 < (folder / FILE).stat().st_size <= MIB
    store.put(rows(5_000))
    assert (folder / FILE).stat().st_size <= MIB
    assert len(store.get([key(5_000), *used])) == 101
    assert (store.problems, describe(folder).entries > 300) == ([], True)


def test_a_value_that_cannot_fit_is_not_kept_and_pushes_nothing_out(folder):
    store = RowStore(folder, limit_bytes=MIB)
    store.put(rows(*range(50)))
    for _ in range(2):
        store.put({key("large"): bytes(MIB), key("larger"): bytes(2 * MIB), **rows(50)})
    assert store.get([key("large"), *rows(*range(51))]) == rows(*range(51))
    said = f"the cache {folder} is without values of more than 884,520 bytes, which it does not take"
    assert store.problems == [said]


def test_full_is_a_problem_where_a_run_loses_what_it_put_itself(folder):
    first = RowStore(folder, limit_bytes=MIB)
    first.put(rows(*range(300)))
    first.close()
    second = RowStore(folder, limit_bytes=MIB)
    second.put(rows(*range(1_000, 1_200)))
    assert second.problems == []
    second.put(rows(*range(2_000, 2_300)))
    said = [f"the cache {folder} is full: its limit of 1,048,576 bytes does not hold what this run uses"]
    assert second.problems == said


@pytest.mark.fault("a cache that is damaged")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE contents SET value = randomblob(2048)",
        "UPDATE contents SET value = 'text'",
        "UPDATE contents SET value = substr(value, 1, 2047)",
        "UPDATE entries SET checksum = zeroblob(16)",
        "DELETE FROM contents",
    ],
)
def test_a_corrupt_value_is_absent_deleted_and_counted(store, folder, statement):
    store.put(rows(*range(10)))
    edit(folder, f"{statement} WHERE id IN (2, 3, 4)")
    keys = list(rows(*range(10)))
    assert store.get(keys) == rows(0, *range(4, 10))
    assert store.get(keys) == rows(0, *range(4, 10))
    assert store.problems == ["3 entries of the cache were corrupt and are computed again"]
    assert describe(folder).entries == 7
    store.put(rows(*range(10)))
    assert store.get(keys) == rows(*range(10))


@pytest.mark.fault("a cache that is damaged")
def test_the_whole_value_of_another_key_is_corrupt(store, folder):
    store.put(rows(1, 2))
    edit(folder, "UPDATE contents SET value = (SELECT value FROM contents WHERE id = 2)")
    edit(folder, "UPDATE entries SET checksum = (SELECT checksum FROM entries WHERE id = 2)")
    assert store.get([key(1), key(2)]) == rows(2)
    assert store.problems == ["1 entry of the cache was corrupt and is computed again"]


@pytest.mark.fault("a cache that is damaged")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_begun_anew(folder, damage):
    store = RowStore(folder)
    store.put(rows(*range(2_000)))
    store.close()
    DAMAGE[damage](folder / FILE)
    store = RowStore(folder)
    assert intact(store.get(list(rows(*range(2_000)))))
    store.put(rows(*range(2_000)))
    assert store.get(list(rows(*range(2_000)))) == rows(*range(2_000))
    (problem,) = (p for p in store.problems if "corrupt" not in p)
    assert problem.startswith(f"the cache {folder} is begun anew, since its file was damaged (")
    store.close()
    assert [file.name for file in folder.iterdir()] == [FILE]


@pytest.mark.fault("a cache that is damaged")
@pytest.mark.parametrize("damage", ["start", "cut short", "text", "no tables"])
def test_damage_under_an_open_store_is_survived_once_and_then_turns_it_off(store, folder, damage):
    for state in ("is begun anew", "is off for the rest of this run"):
        store.put(rows(*range(2_000)))
        DAMAGE[damage](folder / FILE)
        store.put(rows(*range(2_000)))
        assert state in store.problems[-1]
        assert store.get(list(rows(*range(2_000)))) == (rows(*range(2_000)) if "anew" in state else {})
    assert len(store.problems) == 2


@pytest.mark.fault("a cache that is damaged")
@pytest.mark.parametrize("seed", range(12))
def test_whatever_bytes_are_wrong_no_wrong_value_is_found_and_nothing_raised(folder, seed):
    noise = random.Random(seed)
    store = RowStore(folder, limit_bytes=MIB)
    store.put(rows(*range(300)))
    store.close()
    content = bytearray((folder / FILE).read_bytes())
    for _ in range([1, 10, 100, 1_000][seed % 4]):
        content[noise.randrange(len(content))] = noise.randrange(256)
    (folder / FILE).write_bytes(content)
    for _ in range(2):
        store = RowStore(folder, limit_bytes=MIB)
        assert intact(store.get(list(rows(*range(300)))))
        store.put(rows(*range(200, 500)))
        store.discard(list(rows(*range(50))))
        assert intact(store.get(list(rows(*range(500)))))
        store.close()


def make_a_view(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("ALTER TABLE entries RENAME TO kept; CREATE VIEW entries AS SELECT * FROM kept")


def write_byte(path, place, value):
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)


def ask_for_more(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TRIGGER more AFTER INSERT ON entries BEGIN DELETE FROM contents; END")


FOREIGN = {
    "a newer SQLite's, it says": lambda path: write_byte(path, 18, 200),
    "none that SQLite reads": lambda path: write_byte(path, 19, 200),
    "a view": make_a_view,
    "a trigger": ask_for_more,
}


@pytest.mark.fault("a cache that is damaged")
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_as_we_make_them_is_a_miss_once_and_never_an_error(folder, kind):
    store = RowStore(folder)
    store.put(rows(*range(10)))
    store.close()
    FOREIGN[kind](folder / FILE)
    for turn in range(2):
        store = RowStore(folder)
        assert len(store.problems) == (turn == 0)
        assert store.get(list(rows(1))) == (rows(1) if turn else {})
        store.put(rows(1))
        store.close()


@pytest.mark.fault("a cache that is damaged")
def test_another_versions_file_in_the_same_folder_stays_as_it_is(folder, monkeypatch):
    other = folder / FILE.replace("1", "99")
    folder.mkdir()
    other.write_bytes(b"theirs")
    store = RowStore(folder)
    store.put(rows(1))
    assert store.problems == []
    store.close()
    assert clear(folder) > 0
    assert other.read_bytes() == b"theirs"


@pytest.mark.fault("a cache that is damaged")
def test_after_a_clock_was_set_back_what_is_new_stays_and_what_is_stale_goes(folder):
    store = RowStore(folder, limit_bytes=MIB)
    store.put(rows(*range(400)))
    edit(folder, "UPDATE entries SET used = used + 31536000")
    store.put(rows(*range(1000, 1300)))
    assert len(store.get(list(rows(*range(1000, 1300))))) == 300
    assert store.get(list(rows(0))) == {}
    store.close()


@pytest.mark.fault("a cache that is damaged")
def test_of_two_stores_on_a_damaged_file_one_removes_it_and_both_go_on(folder):
    stores = [RowStore(folder), RowStore(folder)]
    stores[0].put(rows(*range(500)))
    DAMAGE["start"](folder / FILE)
    for store in stores:
        store.put(rows(*range(500)))
    assert stores[1].get(list(rows(*range(500)))) == rows(*range(500))
    assert [len(store.problems) for store in stores] == [1, 0]


@pytest.mark.fault("files that cannot be written")
@pytest.mark.parametrize("where", ["file", "under a file", "a folder in the file's place"])
def test_a_folder_that_cannot_hold_a_store_is_refused(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / FILE).mkdir(parents=True)
    path = {"file": "file", "under a file": "file/cache"}.get(where, "folder")
    with pytest.raises(UsageError, match=r"cannot be made or written to: .*; give one that can"):
        RowStore(tmp_path / path)


@pytest.mark.fault("files that cannot be written")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("mode", [0o500, 0o400])
def test_a_folder_that_may_not_be_written_is_refused(folder, mode):
    RowStore(folder).close()
    folder.chmod(mode)
    with pytest.raises(UsageError, match="cannot be made or written to"):
        RowStore(folder)
    folder.chmod(0o700)


def test_a_limit_that_holds_nothing_is_refused(folder):
    with pytest.raises(UsageError, match="a limit of 327,679 bytes; give 327,680 or more"):
        RowStore(folder, MINIMUM_LIMIT_BYTES - 1)
    assert not folder.exists()


@pytest.mark.fault("a cache in use")
@pytest.mark.parametrize("limit_bytes", [MIB, 10 * MIB, 4 << 30])
def test_a_full_disk_turns_the_store_off_and_what_was_kept_stays(folder, monkeypatch, limit_bytes):
    store = RowStore(folder, limit_bytes)
    store.put(rows(*range(100)))
    store._connection.execute("PRAGMA max_page_count = 30")  # a disk of 480 KiB
    if limit_bytes < 64 * MIB:  # else "full" is not the limit, whatever the disk says
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    store.put(rows(*range(100, 1_000)))
    assert "database or disk is full" in store.problems[-1]
    assert off(store)
    found = RowStore(folder).get(list(rows(*range(1_000))))
    assert (intact(found), found.keys() >= rows(*range(100)).keys(), len(found) < 1_000) == (True, True, True)


FULL = """
import resource
store = RowStore(folder)
store.put(rows(*range(100)))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for part in range(1, 21):
    store.put(rows(*range(part * 100, part * 100 + 100)))
store.close()
print(*store.problems)
"""


@pytest.mark.fault("a cache in use")
@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size there")
def test_a_file_that_may_grow_no_further_turns_the_store_off_and_stays_sound(folder):
    said = child(FULL, folder).communicate(timeout=60)[0]
    assert said.startswith(f"the cache {folder} is off for the rest of this run")
    store = RowStore(folder)
    found = store.get(list(rows(*range(3_000))))
    assert (len(found) >= 100, intact(found), store.problems) == (True, True, [])


@pytest.mark.fault("a cache in use")
@pytest.mark.parametrize("at", ["opening", "put"])
def test_a_lock_that_is_held_too_long_turns_the_store_off(folder, monkeypatch, at):
    monkeypatch.setattr("clipbench.embed.store.BUSY_SECONDS", 0.05)
    store = RowStore(folder)
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        store = RowStore(folder) if at == "opening" else store
        store.put(rows(1))
        assert "database is locked" in store.problems[-1]
    assert off(store)


@pytest.mark.fault("a cache in use")
@pytest.mark.parametrize("limit_bytes", [MIB, 100 * MIB])
def test_two_processes_write_and_read_at_once(folder, limit_bytes):
    program = """
me, limit = int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True); sys.stdin.readline()
store = RowStore(folder, limit)
for part in range(15):
    store.put(rows(*range(part * 150 + me * 75, part * 150 + me * 75 + 150)))
    found = store.get([key(i) for i in range(2_500)])
    assert all(value == k * 64 for k, value in found.items())
store.close()
print([p for p in store.problems if "full" not in p])
"""
    both = [child(program, folder, me, limit_bytes) for me in (0, 1)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:  # at once: also the making of the file
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in both] == ["[]\n", "[]\n"]
    store = RowStore(folder, limit_bytes)
    found = store.get([key(i) for i in range(2_325)])
    assert (intact(found), store.problems) == (True, [])
    assert len(found) == 2_325 if limit_bytes > MIB else len(found) > 300
    assert describe(folder).bytes <= limit_bytes


@pytest.mark.fault("a cache in use")
@pytest.mark.parametrize("limit_bytes", [2 * MIB, 100 * MIB])
def test_a_process_killed_in_the_midst_of_puts_leaves_every_value_intact(folder, limit_bytes):
    program = """
store = RowStore(folder, int(sys.argv[2]))
for part in itertools.count(int(sys.argv[3])):
    store.put(rows(*((part, i) for i in range(300))))
    print(part, flush=True)
"""
    done = -1
    for n in range(5):
        process = child(program, folder, limit_bytes, done + 1)
        for _ in range(1 + 3 * n):
            done = int(process.stdout.readline())
        process.kill()
        done = max([done, *map(int, process.communicate(timeout=30)[0].split())])
        store = RowStore(folder, limit_bytes)
        found = store.get([key((part, i)) for part in range(done + 2) for i in range(300)])
        assert (intact(found), store.problems) == (True, [])
        assert found.keys() >= {key((done, i)) for i in range(300)}  # what was put before the kill is there
        store.close()
        with closing(sqlite3.connect(folder / FILE)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.fault("a cache in use")
def test_a_store_that_another_process_cleared_goes_on_in_a_new_file(store, folder):
    store.put(rows(1))
    assert clear(folder) > 0
    store.put(rows(2))
    assert store.get([key(1), key(2)]) == rows(2)
    assert (describe(folder).entries, store.problems) == (1, [])


def test_a_folder_without_a_store_is_described_and_cleared_without_making_anything(folder):
    found = describe(folder)
    assert (found.path, found.exists, found.entries, found.bytes) == (folder / FILE, False, 0, 0)
    assert clear(folder) == 0
    assert not folder.exists()


def test_a_store_is_described(store, folder):
    store.put(rows(1, 2))
    found = describe(folder)
    assert (found.exists, found.entries) == (True, 2)
    assert found.bytes == (folder / FILE).stat().st_size
    assert "2024" < found.oldest_use <= found.newest_use < "2100"
    store.discard(list(rows(1, 2)))
    assert (describe(folder).entries, describe(folder).newest_use) == (0, None)


def test_clear_removes_the_stores_own_files_alone(store, folder):
    store.close()
    for name in (f"{FILE}-wal", "mine.txt", f"{FILE}-notes"):
        (folder / name).write_bytes(b"")
    size = (folder / FILE).stat().st_size
    assert clear(folder) == size
    assert sorted(file.name for file in folder.iterdir()) == [f"{FILE}-notes", "mine.txt"]


@pytest.mark.fault("a cache that is damaged")
@pytest.mark.parametrize("act", [describe, clear])
@pytest.mark.parametrize("damage", ["start", "cut short", "text"])
def test_a_damaged_file_is_neither_described_nor_cleared(store, folder, damage, act):
    store.put(rows(*range(500)))
    store.close()
    DAMAGE[damage](folder / FILE)
    before = (folder / FILE).read_bytes()
    with pytest.raises(UsageError, match=r"is damaged .*; it is left as it is, the next run .* begins it anew"):
        act(folder)
    assert (folder / FILE).read_bytes() == before


@pytest.mark.fault("a cache in use")
@pytest.mark.parametrize("act", [describe, clear])
def test_a_store_in_use_is_neither_described_nor_cleared(store, folder, monkeypatch, act):
    monkeypatch.setattr("clipbench.embed.store.BUSY_SECONDS", 0.05)
    store.put(rows(1))
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageError, match=r"cannot be used now .*try again when no run is using it"):
            act(folder)
    assert describe(folder).entries == 1
