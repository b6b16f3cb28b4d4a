"""A session's results on disk from the moment they are measured: one that is killed loses nothing that was finished.

| state | on disk | a session that ends here |
|---|---|---|
| begun | `DIR/.lock` is held | has nothing to lose; a second one on DIR ends with status 4 |
| measured | `DIR/parts/ID/session.json`, and a file for each result, each written whole | is read by `clipbench report DIR` |
| judged | the same | the same: references judge again |
| assembled | `DIR/run.json`, after every other plugin's end | has its run |
| reported | `summary.md`, `summary.html`, `figures/`; `parts/ID` goes, where the session came to its end | has all its files |
| status raised | the same | |
| accepted | the baseline, last of all, under its own lock | |

SIGTERM, SIGHUP and SIGQUIT end a session as Ctrl-C does: by way of all these states. SIGKILL and the lack of memory leave the second.
What did not come to its end, however it ended, keeps its parts: `--resume` continues it (see `resume`).
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from clipbench.errors import ClipbenchError, UsageError
from clipbench.paths import LARGEST_RUN_BYTES, file_name
from clipbench.storage import (
    RunFormatError,
    check_document,
    dump_json,
    read_document,
    read_finite,
    read_run,
    result_to_json,
    run_of,
    run_to_json,
    sha256_of_json,
    write_atomically,
)
from clipbench.types import JsonObject, Key, Plan, Result, Run, Skip

OPENING = "session.json"


@dataclass(frozen=True)
class Parts:
    """What a session left in a folder: what it measured, unjudged; hashes of its options by their names, and of what each result was
    made with."""

    folder: Path
    run: Run
    asked: Mapping[str, str] = field(default_factory=dict)
    made_with: Mapping[Key, Mapping[str, str]] = field(default_factory=dict)


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


def write_part(
    folder: Path,
    opening: Run,
    asked: Mapping[str, str],
    result: Result | None = None,
    made_with: Mapping[str, str] | None = None,
) -> None:
    """Write a result, and before it what is known of its session. Raises: OSError; ValueError for NaN or infinity."""
    document = {"clipbench": run_to_json(replace(opening, results=(), skipped=())), "asked": dict(asked)}
    write_atomically(folder / OPENING, dump_json(document))
    if result is not None:
        entry = result_to_json(result) | {"made_with": dict(made_with or {})}
        write_atomically(folder / part_name(result.key), dump_json(entry | {"sha256": sha256_of_json(entry)}))


def read_parts(folder: Path, largest_bytes: int = LARGEST_RUN_BYTES) -> Parts:
    """Return what a session left that did not come to its end; in its run the rest of its plan is skipped by name.

    Raises: RunFormatError for a folder without a session, and for a damaged file in it.
    """
    path = folder / OPENING
    document = read_document(path, largest_bytes)
    parts = sorted(part for part in folder.glob("*.json") if part.name != OPENING)
    entries = [_read_part(part, largest_bytes) for part in parts]
    document["clipbench"]["results"] = entries
    run = run_of(path, check_document(path, document))
    made_with = {result.key: _texts(entry.get("made_with")) for result, entry in zip(run.results, entries, strict=True)}
    reason = "the session was killed before this was measured"
    skipped = tuple(Skip(key, reason) for key in run.plan if key not in made_with)
    return Parts(folder, replace(run, skipped=skipped), _texts(document.get("asked")), made_with)


def _read_part(path: Path, largest_bytes: int) -> JsonObject:
    """A result's entry. Raises: RunFormatError for one that is damaged, or is not what was written."""
    entry = read_finite(path, largest_bytes)
    if not isinstance(entry, dict) or entry.pop("sha256", None) != sha256_of_json(entry):
        raise RunFormatError(f"{path} is not as it was written; remove it")
    return entry


def _texts(entry: object) -> dict[str, str]:
    """The entries of an object that are texts; {} of anything else."""
    return {k: v for k, v in entry.items() if isinstance(v, str)} if isinstance(entry, dict) else {}


def unfinished(results: Path) -> list[Path]:
    """Return the folders of sessions in a folder of results that were killed, or are at work."""
    return sorted(path.parent for path in results.glob(f"parts/*/{OPENING}"))


def remove_parts(results: Path, own: Path, asked: Mapping[str, str], plan: Plan, largest_bytes: int) -> list[Path]:
    """Remove the parts of a session that measured all it could, and those of others that were asked for the same, or for a part of its
    plan; return the folders that stay."""
    shutil.rmtree(own, ignore_errors=True)
    stay = []
    for folder in unfinished(results):
        with suppress(ClipbenchError):  # what is damaged stays, too
            other = read_parts(folder, largest_bytes)
            if other.asked == asked and set(other.run.plan) <= set(plan):
                shutil.rmtree(folder, ignore_errors=True)
                continue
        stay.append(folder)
    with suppress(OSError):  # another session's parts are in it
        own.parent.rmdir()
    return stay


def latest_run(folder: Path, largest_bytes: int = LARGEST_RUN_BYTES) -> tuple[Run, bool]:
    """Return the latest run of a folder (of results, or of one session's parts), and whether it was put together from parts.

    Raises: RunFormatError where there is none, or it is damaged.
    """
    folders = [folder] if (folder / OPENING).exists() else unfinished(folder)
    found = [(read_parts(each, largest_bytes).run, True) for each in folders]
    if not found or (folder / "run.json").exists():
        found.append((read_run(folder / "run.json", largest_bytes), False))
    return max(found, key=lambda one: (one[0].time, not one[1]))
