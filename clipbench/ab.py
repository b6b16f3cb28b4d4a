"""`clipbench ab`: two environments on one machine, their processes taking turns, so that a change of 5 % can be shown.

A round starts one fresh process of each interpreter, both load the model, and then they are timed in turn, A B B A,
in slices of well under a second: only one works at a time, and what the machine does meanwhile falls on both. Rounds
alternate which one starts. torch is imported in the two processes alone.

The process is `python -m clipbench.ab` (see `serve`), of the clipbench that is installed with that interpreter. What stands
between the two may be older or newer than this file: the module's name, its options and its answers belong to `PROTOCOL`.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

from clipbench.data.dataset import DataOptions
from clipbench.errors import EXIT, ClipbenchError, UsageError, sanitize
from clipbench.experiments import experiment, speed
from clipbench.options import PRECISIONS
from clipbench.paths import expanded
from clipbench.report.document import Table, aligned, value_text
from clipbench.statistics import Ratio, judged_ratio, round_ratio, rounds_needed
from clipbench.storage import dump_json
from clipbench.types import JsonObject, Outcome, Score, overall

PROTOCOL = 1
TURNS = 16
SLICE_SECONDS = (0.15, 1.0)
SLICE_CALLS = 5
"""A slice takes 0.15 s at least, and 5 calls where they fit in 1 s: their median is what sheds a call that was interrupted."""
LOAD_SECONDS = 900.0
SLOW_SECONDS = 10.0
TIMED = (speed.IMAGES, speed.TEXTS, speed.LATENCY[0])
SPECS = {spec.name: spec for spec in (*TIMED, speed.MEMORY)}
WORKER = ("-m", "clipbench.ab")
HEADER = ("metric", "base", "head", "head/base", "95 % interval", "shown", "verdict")

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
    def verdict(self) -> Outcome:
        """fail if a loss beyond the tolerance is significant in any metric, pass if it is excluded of all, else inconclusive."""
        return overall(ratio.verdict for ratio in self.metrics)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return EXIT["compare"][self.verdict]

    def differences(self) -> dict[str, tuple[str, str]]:
        """Return what is known to differ between the sides: (base's, head's) by name; "absent" where one has none."""
        found = {}
        for part in ("software", "machine", "model"):
            base, head = (({"model": h["model"]} | h["environment"])[part] for h in self.hello.values())
            for name in sorted(base.keys() | head.keys()):
                pair = str(base.get(name, "absent")), str(head.get(name, "absent"))
                if pair[0] != pair[1]:
                    found[name] = pair
        return found


class Worker:
    """One process under test."""

    def __init__(self, label: Label, python: str, options: Sequence[str], command: Sequence[str] = WORKER) -> None:
        self.label, self.python = label, python
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close(), with the process
        self._process = subprocess.Popen(  # noqa: S603  # the interpreters are what the user asked to run
            [python, *command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def hello(self) -> JsonObject:
        """Return what this side is, once it has loaded. Raises: AbError when it cannot load, or is of another clipbench."""
        answer = self._read()
        if answer.get("protocol") != PROTOCOL:
            raise self._other_version()
        return answer

    def seconds(self, metric: str, calls: int) -> float:
        """Return the median seconds of a call, over one slice of calls. Raises: AbError when the process ended."""
        source: Any = self._process.stdin
        try:
            source.write(json.dumps({"do": metric, "calls": calls}) + "\n")
            source.flush()
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

    def _read(self) -> JsonObject:
        output: Any = self._process.stdout
        limit = threading.Timer(LOAD_SECONDS, self._process.kill)
        limit.start()
        try:
            line = output.readline()
        finally:
            limit.cancel()
        try:
            answer: JsonObject = json.loads(line)
        except json.JSONDecodeError as error:
            raise self._ended() from error
        if "error" in answer:
            raise AbError(f"{self._name}: {answer['error']}")
        return answer

    def _ended(self) -> AbError:
        try:
            code = self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # it said something that is no answer, and waits for more
            return self._other_version()
        if code == 0:  # a worker ends with its input only: that clipbench has a module of this name which is none
            return self._other_version()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        return AbError(f"{self._name} ended with code {code}: {last}; clipbench and the model must work there")

    def _other_version(self) -> AbError:
        return AbError(f"{self._name} has a clipbench of another version; install the same one in both environments")


def find_python(label: Label, given: str) -> str:
    """Return the absolute path of an interpreter, links kept (an environment's Python is a link). Raises: UsageError."""
    found = shutil.which(expanded(given) if given.startswith("~") else given)
    if found is None:
        raise UsageError(f"--{label} {given}: no such program; give the path of an environment's Python")
    return str(Path(found).absolute())


def check_request(options: Sequence[str], rounds: int, tolerance: float) -> None:
    """Raises: UsageError for an unknown option after --, or a number that cannot be meant."""
    try:
        read_options(options)
    except ValueError as error:
        raise UsageError(
            f"after --: {error}; known: --model, --model-args, --pretrained, --activation, --device, --precision, --batch-size, --offline"
        ) from error
    if rounds < 2:
        raise UsageError(f"--rounds {rounds}: expected 2 or more; one round has no interval")
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance}: expected a fraction such as 0.05")


def compare_speed(
    start: Mapping[Label, Callable[[], Worker]],
    rounds: int,
    tolerance: float,
    progress: Callable[[str], None],
    turns: int = TURNS,
) -> AbReport:
    """Return the ratios of head to base; `start` makes a fresh process of each side.

    `progress` is called with a line of text before each round.

    Raises: AbError when a process fails, or the sides do not do the same work (device, precision, batch).
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    hello: dict[Label, JsonObject] = {}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        with closing(start["base"]()) as base, closing(start["head"]()) as head:
            hello = {"base": base.hello(), "head": head.hello()}
            _check_same_work(hello)
            for metric, row in _round(base, head, hello, turns, number).items():
                found.setdefault(metric, []).append(row)
    metrics = tuple(
        judged_ratio(name, rows, tolerance, "lower" if SPECS[name].better == "lower" else "higher")
        for name, rows in found.items()
    )
    return AbReport(metrics, rounds, turns, tolerance, hello)


def ab_json(report: AbReport) -> str:
    """Return the report as JSON with sorted keys: verdict, exit_code, rounds, turns, tolerance, metrics, differences, base, head."""
    entry = dataclasses.asdict(report)
    sides = entry.pop("hello")
    outcome = {"verdict": report.verdict, "exit_code": report.exit_code, "differences": report.differences()}
    return dump_json(entry | sides | outcome)


def ab_text(report: AbReport) -> str:
    """Return the report as lines: verdict, a line a metric, what differs, how it was measured."""
    counts = {word: sum(r.verdict == word for r in report.metrics) for word in ("fail", "inconclusive", "pass")}
    lines = [
        f"{report.verdict.upper()}: {counts['fail']} fail, {counts['inconclusive']} inconclusive, {counts['pass']} pass "
        f"(a loss beyond {report.tolerance:.3g} of base's value fails when it is shown, passes when it is excluded)",
        "",
    ]
    lines += aligned(Table(HEADER, [_row(ratio) for ratio in report.metrics]))
    lines += ["", *_undecided(report)]
    differing = [f"{name} {base} -> {head}" for name, (base, head) in report.differences().items()]
    lines.append(f"what differs: {'; '.join(differing) or 'nothing known'}")
    model, machine = report.hello["base"]["model"], report.hello["base"]["environment"]["machine"]
    where = machine.get("accelerator") or f"{machine.get('processor')}, {machine.get('threads')} threads"
    lines.append(
        f"measured: {model['name']}, {model['precision']}, batch {report.hello['base']['batch']}, on {model['device']} ({where}); "
        f"{report.rounds} rounds of two fresh processes, {report.turns} turns each, A B B A"
    )
    return "\n".join(sanitize(line) for line in lines) + "\n"


def _round(
    base: Worker, head: Worker, hello: Mapping[Label, JsonObject], turns: int, number: int
) -> dict[str, tuple[float, float, float]]:
    """(head / base, base's value, head's value) of each metric, from one pair of processes."""
    rows = {}
    for spec in TIMED:
        calls = _calls(hello["base"]["seconds"][spec.name])
        seconds: dict[str, list[float]] = {"base": [], "head": []}
        for turn in range(turns):
            order = (base, head) if (turn + number) % 2 == 0 else (head, base)
            for worker in order:
                seconds[worker.label].append(worker.seconds(spec.name, calls))
        ratio = round_ratio(seconds["base"], seconds["head"])
        values = [statistics.median(seconds[label]) for label in ("base", "head")]
        if spec.kind == "per_second":
            ratio, values = 1 / ratio, [hello["base"]["batch"] / value for value in values]
        rows[spec.name] = (ratio, values[0], values[1])
    memory = [hello[label][speed.MEMORY.name] for label in ("base", "head")]
    if all(memory):
        rows[speed.MEMORY.name] = (memory[1] / memory[0], *memory)
    return rows


def _calls(seconds: float) -> int:
    """How many calls of this length make a slice."""
    least, most = (math.ceil(limit / max(seconds, 1e-6)) for limit in SLICE_SECONDS)
    return max(least, min(SLICE_CALLS, most))


def _check_same_work(hello: Mapping[Label, JsonObject]) -> None:
    for what in ("device", "precision", "batch"):
        base, head = ((hello[label] | hello[label]["model"])[what] for label in ("base", "head"))
        if base != head:
            same = "give it after -- so that both do the same work"
            raise AbError(f"base runs with {what} {base}, head with {head}; {same}")


def _row(ratio: Ratio) -> tuple[str, ...]:
    spec = SPECS[ratio.metric]
    values = [value_text(Score(spec, v, len(ratio.rounds))) for v in (ratio.base, ratio.head)]
    interval = "-" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
    better, worse = ("less", "more") if spec.kind == "bytes" else ("faster", "slower")
    change = f"{abs(ratio.ratio - 1):.1%} {better if ratio.direction == 'better' else worse}"
    shown = "no difference shown" if ratio.direction == "inconclusive" else change
    return (ratio.metric, *values, f"{ratio.ratio:.3f}", interval, shown, ratio.verdict)


def _undecided(report: AbReport) -> Iterator[str]:
    for ratio in report.metrics:
        if ratio.verdict == "inconclusive":
            needed = rounds_needed(ratio, report.tolerance)
            way = "it lies close to the tolerance: more --rounds, or another --tolerance"
            if needed:
                way = f"about {needed} rounds would decide (--rounds {needed})"
            yield f"inconclusive: {ratio.metric}: {way}"


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options that stand after `--`: pytest benchmarks' own that decide what is timed.

    Raises: ValueError in one line for an option or value that cannot be meant.
    """
    parser = _OneLineParser(prog="clipbench ab ... --", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--model-args", action="append", default=[])
    parser.add_argument("--pretrained")
    parser.add_argument("--activation", choices=("quickgelu", "gelu"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--offline", action="store_true")
    return parser.parse_args(list(arguments))


def serve(arguments: Sequence[str], source: TextIO, answers: TextIO) -> int:
    """One side of a comparison, run by the interpreter under test: load what the options name, say hello, time until the input ends.

    Reads one JSON object per line, {"do": METRIC, "calls": n}, and answers with one per line, {"seconds": [...]}, one entry per
    call. Returns 1 after a one-line error.
    """
    with ExitStack() as held:
        try:
            hello, calls = _ready(read_options(arguments), held)
        except (ClipbenchError, ValueError) as error:
            _answer(answers, {"error": str(error)})
            return 1
        _answer(answers, hello)
        for line in source:
            asked = json.loads(line)
            call = calls[asked["do"]]
            _answer(answers, {"seconds": speed.perf_counter_timer(call, asked["calls"])})
    return 0


def _ready(options: argparse.Namespace, held: ExitStack) -> tuple[dict[str, Any], dict[str, Callable[[], object]]]:
    """(What this side is, the call of each metric): each call warmed up, and checked to give the reference path's rows."""
    from clipbench.models import load_encoder
    from clipbench.models.device import float32_as_asked, resolve_resources
    from clipbench.models.grammar import parse_arguments
    from clipbench.models.weights import go_offline
    from clipbench.models.zoo import resolve
    from clipbench.session import environment

    if options.offline:
        go_offline()
    resources = resolve_resources(options.device, options.precision, options.batch_size, 0)
    specs = resolve([options.model], options.pretrained, options.activation, parse_arguments(options.model_args))
    if len(specs) != 1:
        raise ValueError(f"--model {options.model}: expected one model")
    held.enter_context(float32_as_asked(resources.device, resources.precision))
    encoder = load_encoder(specs[0], resources, options.offline)
    (source,) = experiment("speed").sources(DataOptions())
    work = speed.workload(source.load(), resources.batch_size)
    memory = speed.peak_memory(encoder, work)
    images = cycle(work.images)
    calls: dict[str, Callable[[], object]] = {
        speed.IMAGES.name: speed.ready(encoder, work, "images"),
        speed.TEXTS.name: speed.ready(encoder, work, "texts"),
        speed.LATENCY[0].name: lambda: speed.one_row(encoder, next(images)),
    }
    hello = {
        "protocol": PROTOCOL,
        "environment": environment(resources.device),
        "model": {k: getattr(encoder.identity, k) for k in ("name", "weights_sha256", "precision", "device")},
        "batch": resources.batch_size,
        "peak_memory_bytes": memory[0].value if memory else None,
        "seconds": {metric: min(speed.perf_counter_timer(call, 2)) for metric, call in calls.items()},
    }
    return hello, calls


PROCESSES = 5
"""Fresh processes that `--speed gate` times: three a side are the least, five decide more often."""
CALLS_FOR_GROWTH = 100
MEASURE = "--measure"


def timed_in_processes(options: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return what fresh processes of this interpreter measure, one value each, by metric: seconds of a batch or a call, and bytes.

    `options`: as after `--`. Raises: AbError when a process fails.
    """
    found: dict[str, list[float]] = {}
    for _ in range(PROCESSES):
        command = [sys.executable, *WORKER, MEASURE, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SECONDS)  # noqa: S603  # this interpreter
        try:
            answer = json.loads(done.stdout)
        except json.JSONDecodeError as error:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise AbError(f"a process that times the model ended with code {done.returncode}: {last}") from error
        if "error" in answer:
            raise AbError(f"a process that times the model: {answer['error']}")
        for name, value in answer.items():
            found.setdefault(name, []).append(value)
    return {name: tuple(values) for name, values in found.items() if len(values) == PROCESSES}


def measure_once(arguments: Sequence[str], answers: TextIO) -> int:
    """Time what the options name in this process, and answer with one JSON object: seconds, and bytes, by metric.

    `memory_growth_bytes` is what a hundred calls added to the memory in use. Returns 1 after an error in one line.
    """
    with ExitStack() as held:
        try:
            hello, calls = _ready(read_options(arguments), held)
        except (ClipbenchError, ValueError) as error:
            _answer(answers, {"error": str(error)})
            return 1
        from clipbench.models.device import memory_in_use

        device = hello["model"]["device"]
        found: dict[str, float] = {}
        before = memory_in_use(device)
        for metric, call in calls.items():
            count = max(SLICE_CALLS, min(CALLS_FOR_GROWTH, int(SLOW_SECONDS / max(hello["seconds"][metric], 1e-6))))
            seconds = sorted(speed.perf_counter_timer(call, count))
            found[metric] = float(statistics.median(seconds))
            if metric == speed.LATENCY[0].name and count == CALLS_FOR_GROWTH:
                found[speed.LATENCY[2].name] = seconds[-2]
        found[speed.GROWTH.name] = float(max(0, memory_in_use(device) - before))
        found |= {speed.MEMORY.name: float(hello[speed.MEMORY.name])} if hello[speed.MEMORY.name] else {}
        _answer(answers, found)
    return 0


def _answer(answers: TextIO, entry: dict[str, Any]) -> None:
    answers.write(json.dumps(entry) + "\n")
    answers.flush()


if __name__ == "__main__":
    # The answers keep the real standard output; everything else that is written there goes to standard error.
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.argv[1:2] == [MEASURE]:
        sys.exit(measure_once(sys.argv[2:], kept))
    sys.exit(serve(sys.argv[1:], sys.stdin, kept))
