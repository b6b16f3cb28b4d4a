"""A session's results on disk from the moment they are measured: one that is killed loses nothing that was finished.

| state | on disk | a session that ends here |
|---|---|---|
| begun | `DIR/.lock` is held | has nothing to lose; a second one on DIR ends with status 4 |
| measured | `DIR/parts/ID/session.json`, and a file for each result, each written whole | is read by `clipbench report DIR` |
| judged | the same | the same: references judge again |
| assembled | `DIR/run.json`, after every other plugin's end | has its run |
| reported | `summary.md`, `summary.html`, `figures/`; `parts/ID` goes | has all its files |
| status raised | the same | |
| accepted | the baseline, last of all, under its own lock | |

SIGTERM, SIGHUP and SIGQUIT end a session as Ctrl-C does: by way of all these states. SIGKILL and the lack of memory leave the second.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from clipbench.errors import UsageError
from clipbench.paths import LARGEST_RUN_BYTES, file_name, read_json
from clipbench.storage import (
    check_document,
    dump_json,
    read_document,
    read_run,
    result_to_json,
    run_of,
    run_to_json,
    write_atomically,
)
from clipbench.types import Key, Result, Run, Skip

OPENING = "session.json"


@contextmanager
def held(results: Path) -> Iterator[None]:
    """Hold a folder of results until the context is left. Raises: UsageError where another session does; OSError."""
    from filelock import FileLock, Timeout

    results.mkdir(parents=True, exist_ok=True)
    lock = FileLock(results / ".lock")
    with suppress(NotImplementedError):  # a file system without locks
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"--results {results} is in use by another session; wait for it, or give this one another folder"
            ) from error
    try:
        yield
    finally:
        lock.release()


def part_name(key: Key) -> str:
    """Return the file name of a key's part."""
    return file_name(key, ".json")


def write_part(folder: Path, opening: Run, result: Result | None = None) -> None:
    """Write a result, and before it what is known of its session. Raises: OSError; ValueError for NaN or infinity."""
    document = {"clipbench": run_to_json(replace(opening, results=(), skipped=()))}
    write_atomically(folder / OPENING, dump_json(document))
    if result is not None:
        write_atomically(folder / part_name(result.key), dump_json(result_to_json(result)))


def read_parts(folder: Path, largest_bytes: int = LARGEST_RUN_BYTES) -> Run:
    """Return the run of a session that was killed: what was measured, unjudged; the rest of its plan is skipped by name.

    Raises: RunFormatError for a folder without a session, and for a damaged file in it.
    """
    path = folder / OPENING
    document = read_document(path, largest_bytes)
    parts = sorted(part for part in folder.glob("*.json") if part.name != OPENING)
    document["clipbench"]["results"] = [read_json(part, largest_bytes) for part in parts]
    run = run_of(path, check_document(path, document))
    measured = {result.key for result in run.results}
    reason = "the session was killed before this was measured"
    return replace(run, skipped=tuple(Skip(key, reason) for key in run.plan if key not in measured))


def unfinished(results: Path) -> list[Path]:
    """Return the folders of sessions in a folder of results that were killed, or are at work."""
    return sorted(path.parent for path in results.glob(f"parts/*/{OPENING}"))


def latest_run(folder: Path, largest_bytes: int = LARGEST_RUN_BYTES) -> tuple[Run, bool]:
    """Return the latest run of a folder (of results, or of one session's parts), and whether it was put together from parts.

    Raises: RunFormatError where there is none, or it is damaged.
    """
    folders = [folder] if (folder / OPENING).exists() else unfinished(folder)
    found = [(read_parts(each, largest_bytes), True) for each in folders]
    if not found or (folder / "run.json").exists():
        found.append((read_run(folder / "run.json", largest_bytes), False))
    return max(found, key=lambda one: (one[0].time, not one[1]))
