"""Calls in a process of their own, held to seconds and memory: what a hostile file may cost."""

import multiprocessing
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEGABYTE = 1 << 20


def outcome(call: Callable[[], Any], seconds: float = 20, megabytes: int = 600) -> tuple[str, str]:
    """Return ("", what the call returned) or (the name of the class of its error, the message).

    It runs in a fork with so much memory beyond this process's own. A call that takes longer is killed and is ("timeout", ""), one that
    dies is ("died", its exit code). The last line of an unexpected error's traceback stands in its message.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(call, megabytes, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return "timeout", ""
        kind, message = ours.recv()
    except EOFError:
        process.join()
        return "died", str(process.exitcode)
    finally:
        process.kill()
        process.join()
        ours.close()
    return kind, message


def _run(call: Callable[[], Any], megabytes: int, answers: Any) -> None:
    import torch

    torch.set_num_threads(1)  # the threads of this process's pool are not in the fork
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        answer = "", str(call())[:1000]
    except BaseException as error:  # noqa: BLE001  # what it is, is what is asked
        where = traceback.extract_tb(error.__traceback__)[-1]
        answer = type(error).__name__, f"{error} [{where.name}, {Path(where.filename).name}:{where.lineno}]"
    answers.send(answer)
