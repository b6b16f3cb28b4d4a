"""The session's run judged against a stored one: --baseline, --anchor, and --update-baseline with its --reason."""

import datetime
import getpass
from dataclasses import dataclass, field

from clipbench.errors import UsageError
from clipbench.result import JsonObject, Run
from clipbench.run_file import RunFormatError, read_document, run_of, timings_of
from clipbench.settings import Request

EXIT_FAIL, EXIT_UNDECIDED = 1, 3


@dataclass
class Outcome:
    """What judging gave: the run with the verdicts in it, lines for the terminal, and which references failed or are open."""

    run: Run
    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


def check_request(request: Request) -> None:
    """Check the options before anything is measured.

    Raises: UsageError for options that need each other, a missing anchor or baseline, and a file that is no run.
    """
    if request.update_baseline and (request.baseline is None or not (request.reason or "").strip()):
        raise UsageError(
            "--update-baseline needs --baseline PATH (what to write) and --reason TEXT (why it is accepted)"
        )
    if request.reason and not request.update_baseline:
        raise UsageError("--reason says why a baseline is updated: give --update-baseline, too")
    if request.baseline and not request.baseline.exists() and not request.update_baseline:
        raise UsageError(
            f"--baseline {request.baseline} is not there; make the first one with --update-baseline --reason TEXT"
        )
    if request.anchor and not request.anchor.exists():
        raise UsageError(f"--anchor {request.anchor} is not there; give the run file of a frozen release")
    for path in (request.baseline, request.anchor):
        if path is not None and path.exists():
            try:
                run_of(path, read_document(path))
            except RunFormatError as error:
                raise UsageError(str(error)) from error


def judge(request: Request, run: Run, document: JsonObject) -> Outcome:
    """Return the run with its verdicts against the baseline and the anchor that were asked for.

    `document`: the run file as it will be written, for the timings. A baseline that is about to be replaced judges nothing.
    """
    outcome = Outcome(run)
    if request.baseline and not request.update_baseline:
        _against(outcome, "baseline", request, document)
    if request.anchor:
        _against(outcome, "anchor", request, document)
    return outcome


def _against(outcome: Outcome, kind: str, request: Request, document: JsonObject) -> None:
    from clipbench.judge.baseline import judge_against
    from clipbench.judge.rules import read_rules

    path = request.baseline if kind == "baseline" else request.anchor
    if path is None:
        return
    reference = "baseline" if kind == "baseline" else "anchor"
    judged = judge_against(outcome.run, path, reference, read_rules(), timings_of(document))  # type: ignore[arg-type]  # two words
    outcome.run = judged.run
    comparison = judged.comparison
    outcome.lines.append(f"{kind} {path}: {comparison.verdict}")
    here = {(r.experiment, r.model.name, r.dataset.name) for r in outcome.run.results}
    gone = [f for f in comparison.findings if (f.experiment, f.model, f.dataset) not in here and f.verdict != "pass"]
    outcome.lines += [f"  {f.verdict}: {f.experiment} of {f.model}: {f.reason}" for f in gone]
    if comparison.exit_code == EXIT_FAIL:
        outcome.failed.append(f"{kind} {path}")
    elif comparison.exit_code == EXIT_UNDECIDED:
        outcome.undecided.append(f"{kind} {path}")


def update(request: Request, document: JsonObject, session_passed: bool) -> list[str]:
    """Write the baseline when asked to, and return lines that say what changed.

    A session that did not pass is never accepted as a baseline.

    Raises: UsageError for a path that must stay as it is; OSError when the file cannot be written.
    """
    if not request.update_baseline or request.baseline is None:
        return []
    if not session_passed:
        return [f"baseline {request.baseline} stays as it is: the session did not pass"]
    from clipbench.judge.baseline import update_baseline
    from clipbench.judge.rules import read_rules

    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    protected = [request.anchor] if request.anchor else []
    done = update_baseline(
        request.baseline, document, request.reason or "", getpass.getuser(), date, read_rules(), protected
    )
    first = "there was no baseline before: this is the first, nothing was judged" if done.is_first else "changed:"
    return [f"baseline {done.path} written ({request.reason}); {first}", *(f"  {line}" for line in done.changed)]
