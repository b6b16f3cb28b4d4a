"""`clipbench ab`: two environments on one machine, their processes taking turns, so that a change of 5 % can be shown.

A round starts one fresh process of each interpreter (`ab_worker`), both load the model, and then they are timed in turn, A B B A,
in slices of well under a second: only one works at a time, and what the machine does meanwhile falls on both. Rounds
alternate which one starts. Imports no torch: that happens in the two processes.
"""

import json
import math
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from clipbench.ab_worker import PROTOCOL, read_options
from clipbench.errors import ClipbenchError, UsageError
from clipbench.judge.compare import EXIT_CODES
from clipbench.result import JsonObject, VerdictWord
from clipbench.statistics import Ratio, judged_ratio, round_ratio

ROUNDS = 7
TURNS = 16
TOLERANCE = 0.05
SLICE_SECONDS = (0.15, 1.0)
SLICE_CALLS = 5
"""A slice takes 0.15 s at least, and 5 calls where they fit in 1 s: their median is what sheds a call that was interrupted."""
LOAD_SECONDS = 900.0
TIMED = ("images_per_second", "texts_per_second", "latency_p50")
MEMORY = "peak_memory_bytes"
WORKER = ("-m", "clipbench.ab_worker")

Label = Literal["base", "head"]


class AbError(ClipbenchError):
    """A process that could not be started, ended early, or is not comparable with the other one (exit code 2)."""


@dataclass(frozen=True)
class AbReport:
    """What `clipbench ab` found. `hello` is what each side says it is: environment, model, batch."""

    metrics: tuple[Ratio, ...]
    rounds: int
    turns: int
    tolerance: float
    hello: Mapping[Label, JsonObject]

    @property
    def verdict(self) -> VerdictWord:
        """fail if a loss beyond the tolerance is shown of any metric, pass if it is excluded of all, else inconclusive."""
        words = {ratio.verdict for ratio in self.metrics}
        return "fail" if "fail" in words else "pass" if words == {"pass"} else "inconclusive"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 undecided."""
        return EXIT_CODES[self.verdict]

    def differences(self) -> dict[str, tuple[str, str]]:
        """Return what is known to differ between the sides: (base's, head's) by name; "absent" where one has none."""
        found = {}
        for part in ("software", "machine", "model"):
            base, head = (_part(self.hello[label], part) for label in ("base", "head"))
            for name in sorted(base.keys() | head.keys()):
                pair = str(base.get(name, "absent")), str(head.get(name, "absent"))
                if pair[0] != pair[1]:
                    found[name] = pair
        return found


class Worker:
    """One process under test. Closing it ends it."""

    def __init__(self, label: Label, python: str, options: Sequence[str], command: Sequence[str] = WORKER) -> None:
        self.label, self.python = label, python
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close(), with the process
        self._process = subprocess.Popen(  # noqa: S603  # the interpreters are what the user asked to run
            [python, *command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hello(self) -> JsonObject:
        """Return what this side is, once it has loaded. Raises: AbError when it cannot load, or is of another clipbench."""
        said = self._read()
        if said.get("protocol") != PROTOCOL:
            raise AbError(f"{self._name} has a clipbench of another version; install the same one in both environments")
        return said

    def seconds(self, metric: str, calls: int) -> float:
        """Return the median seconds of a call, over one slice of calls. Raises: AbError when the process ended."""
        try:
            self._input.write(json.dumps({"do": metric, "calls": calls}) + "\n")
            self._input.flush()
        except OSError as error:
            raise self._ended() from error
        return float(statistics.median(self._read()["seconds"]))

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    @property
    def _name(self) -> str:
        return f"{self.label} ({self.python})"

    @property
    def _input(self) -> Any:
        return self._process.stdin

    def _read(self) -> JsonObject:
        output: Any = self._process.stdout
        limit = threading.Timer(LOAD_SECONDS, self._process.kill)
        limit.start()
        try:
            line = output.readline()
        finally:
            limit.cancel()
        try:
            said: JsonObject = json.loads(line)
        except json.JSONDecodeError as error:
            raise self._ended() from error
        if "error" in said:
            raise AbError(f"{self._name}: {said['error']}")
        return said

    def _ended(self) -> AbError:
        code = self._process.wait(timeout=60)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        return AbError(f"{self._name} ended with code {code}: {last}; clipbench and the model must work there")


def find_python(label: Label, given: str) -> str:
    """Return the absolute path of an interpreter, links kept (an environment's Python is a link). Raises: UsageError."""
    found = shutil.which(Path(given).expanduser() if given.startswith("~") else given)
    if found is None:
        raise UsageError(f"--{label} {given}: no such program; give the path of an environment's Python")
    return str(Path(found).absolute())


def check_request(options: Sequence[str], rounds: int, tolerance: float) -> None:
    """Raises: UsageError for an unknown option after --, or a number that cannot be meant."""
    try:
        read_options(options)
    except ValueError as error:
        raise UsageError(
            f"after --: {error}; known: --model, --pretrained, --activation, --device, --precision, --batch-size, --offline"
        ) from error
    if rounds < 2:
        raise UsageError(f"--rounds {rounds}: expected 2 or more; one round has no interval")
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance}: expected a fraction such as 0.05")


def compare_speed(
    start: Mapping[Label, Callable[[], Worker]],
    rounds: int = ROUNDS,
    turns: int = TURNS,
    tolerance: float = TOLERANCE,
    say: Callable[[str], None] = lambda line: None,
) -> AbReport:
    """Return the ratios of head to base; `start` makes a fresh process of each side.

    Raises: AbError when a process fails, or the sides do not do the same work (device, precision, batch).
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    hello: dict[Label, JsonObject] = {}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        with start["base"]() as base, start["head"]() as head:
            hello = {"base": base.hello(), "head": head.hello()}
            _check_same_work(hello)
            for metric, row in _round(base, head, hello, turns, number).items():
                found.setdefault(metric, []).append(row)
    metrics = tuple(judged_ratio(metric, rows, tolerance) for metric, rows in found.items())
    return AbReport(metrics, rounds, turns, tolerance, hello)


def _round(
    base: Worker, head: Worker, hello: Mapping[Label, JsonObject], turns: int, number: int
) -> dict[str, tuple[float, float, float]]:
    """(head / base, base's value, head's value) of each metric, from one pair of processes."""
    rows = {}
    for metric in TIMED:
        calls = _calls(hello["base"]["seconds"][metric])
        seconds: dict[str, list[float]] = {"base": [], "head": []}
        for turn in range(turns):
            order = (base, head) if (turn + number) % 2 == 0 else (head, base)
            for worker in order:
                seconds[worker.label].append(worker.seconds(metric, calls))
        ratio = round_ratio(seconds["base"], seconds["head"])
        values = [statistics.median(seconds[label]) for label in ("base", "head")]
        if metric != "latency_p50":
            ratio, values = 1 / ratio, [hello["base"]["batch"] / value for value in values]
        rows[metric] = (ratio, values[0], values[1])
    memory = [hello[label][MEMORY] for label in ("base", "head")]
    if all(memory):
        rows[MEMORY] = (memory[1] / memory[0], *memory)
    return rows


def _calls(seconds: float) -> int:
    """How many calls of this length make a slice."""
    least, most = (math.ceil(limit / max(seconds, 1e-6)) for limit in SLICE_SECONDS)
    return max(least, min(SLICE_CALLS, most))


def _check_same_work(hello: Mapping[Label, JsonObject]) -> None:
    for what in ("device", "precision", "batch"):
        base, head = ((hello[label] | hello[label]["model"])[what] for label in ("base", "head"))
        if base != head:
            raise AbError(
                f"base runs with {what} {base}, head with {head}; give it after -- so that both do the same work"
            )


def _part(hello: JsonObject, part: str) -> JsonObject:
    found: JsonObject = hello["model"] if part == "model" else hello["environment"][part]
    return found
