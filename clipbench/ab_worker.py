"""One side of `clipbench ab`: loads a model once, then times slices of calls when told to. Run by the interpreter under test.

It reads one JSON object a line from standard input and answers with one a line: {"do": METRIC, "calls": n} gives {"seconds": [...]},
one entry a call. Whatever a library prints goes to standard error, so that the answers stay alone. It ends with its input.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from typing import Any, NoReturn, TextIO

PROTOCOL = 1
PRECISIONS = ("fp32", "bf16", "fp16")


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options that stand after `--`: pytest benchmarks' own that decide what is timed.

    Raises: ValueError in one line for an option or value that cannot be meant.
    """
    parser = _OneLineParser(prog="clipbench ab ... --", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--pretrained")
    parser.add_argument("--activation", choices=("quickgelu", "gelu"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--offline", action="store_true")
    return parser.parse_args(list(arguments))


def main(arguments: Sequence[str], source: TextIO, answers: TextIO) -> int:
    """Load what the options name, say hello, and time until the input ends. Returns 1 after a one-line error."""
    from clipbench.errors import ClipbenchError

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
            _answer(answers, {"seconds": [_seconds(call) for _ in range(asked["calls"])]})
    return 0


def _ready(options: argparse.Namespace, held: ExitStack) -> tuple[dict[str, Any], dict[str, Callable[[], object]]]:
    """(What this side is, the call of each metric): each call warmed up, and checked to give the plain call's rows."""
    from clipbench.environment import describe_environment
    from clipbench.experiments import experiment, speed
    from clipbench.models.device import ieee_float32, synchronized
    from clipbench.models.load import load_encoder
    from clipbench.models.resolve import resolve
    from clipbench.session import make_settings

    settings = make_settings(options.device, options.precision, options.batch_size, offline=options.offline)
    specs = resolve([options.model], options.pretrained, options.activation)
    if len(specs) != 1:
        raise ValueError(f"--model {options.model}: expected one model")
    held.enter_context(ieee_float32(settings.device, settings.precision))
    encoder = load_encoder(specs[0], settings)
    work = speed.workload(experiment("speed").load(settings), settings)
    memory = speed.peak_memory(encoder, work)
    images = cycle(work.images)
    calls: dict[str, Callable[[], object]] = {
        "images_per_second": encoder.ready_images(work.images),
        "texts_per_second": encoder.ready_texts(work.texts),
        "latency_p50": lambda: synchronized(encoder.encode_images(list(islice(images, 1))), encoder.identity.device),
    }
    name = encoder.identity.name
    for metric, batch, row in (
        ("images_per_second", work.images, encoder.encode_images(work.images[-1:])),
        ("texts_per_second", work.texts, encoder.encode_texts(work.texts[-1:])),
    ):
        speed.check_timed(calls[metric](), len(batch), row, f"{name}: {metric}")
    hello = {
        "protocol": PROTOCOL,
        "environment": describe_environment(settings.device),
        "model": {"name": name, **{k: getattr(encoder.identity, k) for k in ("weights_sha256", "precision", "device")}},
        "batch": settings.batch_size,
        "peak_memory_bytes": memory["peak_memory_bytes"].value if memory else None,
        "seconds": {metric: min(_seconds(call) for _ in range(2)) for metric, call in calls.items()},
    }
    return hello, calls


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _answer(answers: TextIO, entry: dict[str, Any]) -> None:
    answers.write(json.dumps(entry) + "\n")
    answers.flush()


if __name__ == "__main__":
    # The answers keep the real standard output; everything else that is written there goes to standard error.
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.exit(main(sys.argv[1:], sys.stdin, kept))
