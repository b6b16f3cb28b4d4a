"""Base and degraded runs of a model, compared: the table of what the gate says for each fault."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipbench.errors import UsageError
from clipbench.faults.degrade import Fault
from clipbench.judge.compare import Comparison, compare_runs
from clipbench.judge.rules import read_rules
from clipbench.judge.trace import STAGES, TRACED, TraceFinding, compare_traces, first_moved
from clipbench.models import load_encoder
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.models.zoo import ModelSpec
from clipbench.report.document import Block, Heading, Paragraph, Table, to_markdown
from clipbench.result import Run, dump_json, write_whole
from clipbench.session import Session
from clipbench.settings import Settings

EXPERIMENTS = ("natural", "coco_retrieval")
"""Both directions and both towers, on packaged pictures; coco_crops adds 80 class texts a run and no more evidence."""

HEADER = ("fault", "what", "first stage that moved", "cosine to base, min", "verdict", "exit code", "why")
WHY_LETTERS = 140


@dataclass(frozen=True)
class Row:
    """What the gate says of one fault of one model. `comparison` is None where the fault does not apply: `why` says so."""

    fault: Fault
    why: str = ""
    comparison: Comparison | None = None
    stages: tuple[TraceFinding, ...] = ()


def degraded_run(
    spec: ModelSpec, fault: Fault | None, settings: Settings, experiments: Sequence[str] = EXPERIMENTS
) -> tuple[Run | None, str]:
    """Return (the run of a model with a fault, ""), or (None, why the fault does not apply to it). No fault: the base.

    Raises: UsageError for an encoder that is not ours: its inside cannot be reached.
    """
    session = Session(replace(settings, precision=fault.precision if fault else "fp32"))
    encoder = load_encoder(spec, session.settings)
    if not isinstance(encoder, OpenClipEncoder):
        raise UsageError(f"{spec.label}: faults are done to models that open_clip makes, not to an encoder of your own")
    why = fault.degrade(encoder, settings.seed) if fault else ""
    if why:
        return None, why
    session.adopt(spec, encoder)
    if fault and fault.prompt:
        natural = session.dataset(TRACED)
        session.replace_dataset(TRACED, replace(natural, protocol={**natural.protocol, "prompts": fault.prompt}))
    for name in experiments:
        session.measure(spec, name)
    session.free()
    return session.run(), ""


def fault_rows(
    spec: ModelSpec,
    faults: Iterable[Fault],
    settings: Settings,
    experiments: Sequence[str],
    results: Path | None = None,
) -> Iterator[Row]:
    """Yield a row for each fault of a model, each run measured in this process; with `results`, every run is kept there.

    Raises: any ClipbenchError of loading and measuring.
    """
    rules = read_rules()
    base, _ = degraded_run(spec, None, settings, experiments)
    _keep(base, results, spec, "base")
    for fault in faults:
        head, why = degraded_run(spec, fault, settings, experiments)
        _keep(head, results, spec, fault.name)
        if base is None or head is None:
            yield Row(fault, why)
            continue
        yield Row(fault, "", compare_runs(base, head, rules), tuple(compare_traces(base.probes, head.probes, rules)))


def table_blocks(spec: ModelSpec, rows: Iterable[Row]) -> list[Block]:
    """Return the table of a model as blocks of a document."""
    return [Heading(f"{spec.label}", 3), Table(HEADER, [_cells(row) for row in rows])]


def fault_table(models: Sequence[tuple[ModelSpec, Sequence[Row]]]) -> str:
    """Return the whole table as Markdown."""
    blocks: list[Block] = [
        Paragraph(
            "Every row is a run measured with one fault and compared with the run without it, by the rules of clipbench compare."
        )
    ]
    for spec, rows in models:
        blocks += table_blocks(spec, rows)
    return to_markdown(blocks)


def _cells(row: Row) -> tuple[str, ...]:
    if row.comparison is None:
        return row.fault.name, row.fault.what, "-", "-", "does not apply", "-", row.why
    first = next(iter(first_moved(row.stages).values()), None)
    moved = f"{STAGES[first.stage]} ({first.details})" if first else "none"
    cosines = [f.numbers["cosine_min"] for f in row.stages if "cosine_min" in f.numbers]
    words = {"pass": "pass", "fail": "fail", "inconclusive": "cannot tell"}
    pressing = [f for f in row.comparison.findings if f.verdict == row.comparison.verdict]
    why = f"{pressing[0].experiment}: {pressing[0].reason}" if pressing else "nothing was judged"
    verdict = words[row.comparison.verdict]
    why = why if len(why) <= WHY_LETTERS else f"{why[:WHY_LETTERS].rsplit(' ', 1)[0]} ..."
    return row.fault.name, row.fault.what, moved, f"{min(cosines):.5f}", verdict, str(row.comparison.exit_code), why


def _keep(run: Run | None, results: Path | None, spec: ModelSpec, name: str) -> None:
    if run is not None and results is not None:
        file = f"{spec.name.replace('/', '-')}-{name}.json"
        write_whole(results / file, dump_json({"clipbench": run.to_json()}))
