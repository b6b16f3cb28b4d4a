"""`python -m clipbench.faults`: measure a model as it is and with each fault, compare, and print the table as Markdown.

Without options: the embedded model and a ViT-B/32 with random weights, every fault, packaged images, no network. Another
model: `python -m clipbench.faults --model RN50 --pretrained openai --fault bf16 --results out/`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clipbench.errors import ClipbenchError

DEFAULT_MODELS = (("lite", None), ("ViT-B/32", "random:0"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return 0; 2 for usage or what cannot be measured (one line on standard error)."""
    parser = argparse.ArgumentParser(
        prog="python -m clipbench.faults", description="What the gate says of degraded runs."
    )
    parser.add_argument("--model", help="one model (default: lite, and ViT-B/32 with random weights)")
    parser.add_argument("--pretrained", help="weights of --model, as in `pytest benchmarks`")
    parser.add_argument("--fault", action="append", metavar="NAME", help="only this fault; may be given again")
    parser.add_argument(
        "--experiment", action="append", metavar="NAME", help="only this experiment; may be given again"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="keep the runs and faults.md here")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(_table(options))
    except (ClipbenchError, OSError) as error:
        sys.stderr.write(f"clipbench.faults: error: {error}\n")
        return 2
    return 0


def _table(options: argparse.Namespace) -> str:
    from clipbench.errors import UsageError
    from clipbench.experiments import experiment
    from clipbench.faults.degrade import FAULTS, fault
    from clipbench.faults.table import EXPERIMENTS, fault_rows, fault_table
    from clipbench.models.zoo import resolve
    from clipbench.result import write_whole
    from clipbench.session import make_settings

    if options.pretrained and not options.model:
        raise UsageError("--pretrained needs --model: which model has these weights?")
    chosen = [fault(name) for name in options.fault] if options.fault else list(FAULTS)
    experiments = options.experiment or EXPERIMENTS
    for name in experiments:
        experiment(name)
    wanted = [(options.model, options.pretrained)] if options.model else DEFAULT_MODELS
    specs = [resolve([name], weights)[0] for name, weights in wanted]
    settings = make_settings(device="cpu", offline=True)
    tables = [(s, list(fault_rows(s, chosen, settings, experiments, options.results))) for s in specs]
    text = fault_table(tables)
    if options.results:
        write_whole(options.results / "faults.md", text)
    return text


if __name__ == "__main__":
    sys.exit(main())
