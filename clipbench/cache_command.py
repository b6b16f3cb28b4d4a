"""`clipbench cache`: its options, and the text that it prints. Imports no torch."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipbench.embed.store_folder import Description

CACHE_VARIABLE = "CLIPBENCH_CACHE"


def add_cache(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    cache = commands.add_parser(
        "cache",
        help="show or clear the folder in which `pytest benchmarks --cache DIR` keeps rows",
        description="Exit codes: 0 shown or cleared, also where there is nothing; 2 no folder given, or a cache that is damaged or "
        "in use: then nothing is removed.",
    )
    cache.add_argument("folder", type=Path, nargs="?", metavar="DIR", help=f"the cache's folder (default: ${CACHE_VARIABLE})")  # fmt: skip
    cache.add_argument(
        "--clear", action="store_true", help="remove the cache's own files, and nothing else in the folder"
    )


def run_cache(options: argparse.Namespace, setting: str) -> str:
    """Return what is printed; `setting`: what the environment names as the folder, "" for nothing.

    Raises: UsageError without a folder, and for one whose cache is damaged or in use.
    """
    from clipbench.embed.store_folder import clear, describe
    from clipbench.errors import UsageError

    if options.folder is None and not setting:
        raise UsageError(f"which cache? Give its folder (clipbench cache DIR), or set {CACHE_VARIABLE}")
    folder = (options.folder or Path(setting)).expanduser()
    if not options.clear:
        return description_text(describe(folder))
    freed = clear(folder)
    return f"cleared {folder}: {_size(freed)} freed\n" if freed else f"nothing to clear in {folder}\n"


def description_text(found: "Description") -> str:
    """Return what the folder holds, one thing a line."""
    folder = found.path.parent
    if not found.exists:
        lines = [f"no cache in {folder}"]
    elif not found.is_current:
        lines = [f"folder   {folder}", f"size     {_size(found.bytes)}"]
        lines += ["entries  of another version of clipbench: the next run with this cache begins it anew"]
    else:
        lines = [f"folder   {folder}", f"entries  {found.entries:,}", f"size     {_size(found.bytes)}"]
        lines += [f"used     {found.oldest_use} to {found.newest_use} UTC"] if found.entries else []
    return "\n".join(lines) + "\n"


def _size(n: int) -> str:
    return f"{n / (1 << 20):,.1f} MiB"
