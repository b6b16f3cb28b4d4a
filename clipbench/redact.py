"""Names kept inside: a result whose items, captions, labels and files are called by hashes, the same in every run."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from clipbench.types import Result

LEFT_OUT = "the reason may hold names and is left out (--redact); the session's log has it"


def pseudonym(name: str) -> str:
    """Return what stands for a name: 16 hexadecimal digits of its SHA-256. Of a short word it can be guessed."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]


def redacted(result: Result) -> Result:
    """Return the result with a pseudonym for each id, cluster, class, candidate, slice and file name; values and hashes stay.

    Verdicts quote names: a result is redacted before it is judged.
    """
    known: dict[str, str] = {}

    def one(name: str) -> str:
        if name not in known:
            known[name] = pseudonym(name)
        return known[name]

    def every(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(map(one, names))

    scores = {}
    for name, score in result.scores.items():
        outcomes = score.outcomes
        if outcomes is not None:
            clusters = None if outcomes.clusters is None else every(outcomes.clusters)
            outcomes = replace(outcomes, ids=every(outcomes.ids), clusters=clusters)
        scores[name] = replace(score, outcomes=outcomes)
    answers = {
        name: replace(
            found,
            ids=every(found.ids),
            candidates=every(found.candidates),
            groups=None if found.groups is None else every(found.groups),
        )
        for name, found in result.answers.items()
    }
    return replace(
        result,
        scores=scores,
        answers=answers,
        matrices={k: replace(m, rows=every(m.rows), columns=every(m.columns)) for k, m in result.matrices.items()},
        evidence={tower: replace(found, ids=every(found.ids)) for tower, found in result.evidence.items()},
        protocol=replace(result.protocol, classes=every(result.protocol.classes)),
        provenance=replace(result.provenance, broken=every(result.provenance.broken)),
        verdicts=(),
    )
