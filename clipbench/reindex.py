"""Where the samples for "must I re-index?" come from: rows that both runs saved, or an index and queries of your own.

`clipbench compare BASE HEAD --index` takes the rows that both runs saved with `--save-embeddings`: with them also the truth (which
image a caption belongs to), so recall is known. `--index OLD.npy [NEW.npy] --queries TEXTS.txt` takes your own index: OLD is what
the base model made, NEW the same items by the head model (a sample of both will do). Without NEW it can be shown that nothing
need be done, not that re-indexing would help. TEXTS.txt is encoded here by the models that `--model` names, which imports torch:
a run file is untrusted, so the names in it are compared with those and never resolved. `--queries OLD.npy NEW.npy` takes rows
encoded where the models live, and then `compare` imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipbench.embeddings_file import (
    EmbeddingsFileError,
    Rows,
    SavedRows,
    read_index,
    read_queries,
    read_rows,
    saved_beside,
)
from clipbench.errors import ClipbenchError, UsageError
from clipbench.judge.reindex import FRESH, KS, TODAY, Reindex, ReindexRules, Sample, must_i_reindex, reindex_rules
from clipbench.result import ModelIdentity, Result, Run

if TYPE_CHECKING:
    from clipbench.models.zoo import ModelSpec

_HOW = "measure both with `pytest benchmarks --coco ROOT --save-embeddings`, or give --index OLD.npy NEW.npy --queries TEXTS.txt"
_SAME_MODEL = (
    "both runs have the same weights in the same precision: what differs is software, and texts encoded here would not show "
    "it; encode the queries in both environments and give --queries OLD.npy NEW.npy, or use --save-embeddings in both"
)


@dataclass(frozen=True)
class QueryModels:
    """The models that may encode queries, as the command line names them: one of each for both runs, or base's and head's."""

    models: Sequence[str] = ()
    pretrained: Sequence[str] = ()
    activation: str | None = None
    offline: bool = False


def reindex_answers(
    base: tuple[Path, Run],
    head: tuple[Path, Run],
    index: Sequence[Path],
    queries: Sequence[Path],
    by: QueryModels = QueryModels(),
) -> tuple[Reindex, ...]:
    """Return the answers that `compare --index` asks for; `base` and `head` are a run's file and the run in it.

    `index`: [] (the rows saved beside both files), [OLD.npy] or [OLD.npy, NEW.npy]; `queries`: [TEXTS.txt] or [OLD.npy, NEW.npy].
    `by`: what encodes TEXTS.txt. One answer per retrieval experiment that both runs saved, else one. Where no rows were saved the
    answer is "cannot tell".

    Raises: UsageError for options that cannot be meant, and for texts without a model to encode them; EmbeddingsFileError for a
    file that is absent, damaged, not of this run, or of dims that do not fit; WeightsUnavailableError when a model's weights
    cannot be had here.
    """
    rules = reindex_rules()
    if len(index) > 2 or len(queries) > 2 or (bool(index) != bool(queries)):
        raise UsageError(
            "--index takes no file (the rows both runs saved), or OLD.npy [NEW.npy] together with --queries TEXTS.txt (or "
            "--queries OLD.npy NEW.npy)"
        )
    if not index:
        return _from_saved(base, head, rules)
    try:
        return (must_i_reindex(_own_sample(base[1], head[1], index, queries, by), rules),)
    except _SameModelError as error:
        return (Reindex(index[0].name, "cannot tell", str(error), 0, 0, rules.k),)


class _SameModelError(ClipbenchError):
    """Two runs whose models this process cannot tell apart."""


def _from_saved(base: tuple[Path, Run], head: tuple[Path, Run], rules: ReindexRules) -> tuple[Reindex, ...]:
    pairs = [
        (one, other)
        for one in _saved_of(*base)
        for other in _saved_of(*head)
        if _belong(one[0], other[0], base[1], head[1])
    ]
    if not pairs:
        reason = f"no retrieval rows of the same data set are saved beside both {base[0]} and {head[0]}; {_HOW}"
        return (Reindex("saved rows", "cannot tell", reason, 0, 0, rules.k),)
    answers = []
    for (old, old_result), (new, new_result) in pairs:
        sample = saved_sample(old, new)
        answer = must_i_reindex(sample, rules)
        if len(sample.old_rows) == len(old.image_ids) == len(new.image_ids):
            _check_recall(base[0], answer, TODAY, old_result)
            _check_recall(head[0], answer, FRESH, new_result)
        answers.append(answer)
    return tuple(answers)


def _saved_of(path: Path, run: Run) -> list[tuple[SavedRows, Result]]:
    """The rows beside a run that belong to one of its results; files of other models, weights and data sets are passed over."""
    found = []
    for saved in (read_rows(file) for file in saved_beside(path)):
        found += [
            (saved, result)
            for result in run.results
            if (result.experiment, result.model, result.dataset) == (saved.experiment, saved.model, saved.dataset)
        ]
    return found


def _belong(old: SavedRows, new: SavedRows, base: Run, head: Run) -> bool:
    """Same experiment and items; and the same model name, unless each run has one model: then one replaces the other."""
    single = len({r.model.name for r in base.results}) == len({r.model.name for r in head.results}) == 1
    return (
        old.experiment == new.experiment
        and old.dataset.fingerprint == new.dataset.fingerprint
        and (single or old.model.name == new.model.name)
    )


def saved_sample(old: SavedRows, new: SavedRows) -> Sample:
    """Return the items that both runs scored, in base's order: captions as queries, images as rows, truth known.

    Captions of one image are resampled together.
    Raises: EmbeddingsFileError when they share no image.
    """
    places = {name: k for k, name in enumerate(new.image_ids)}
    kept = [k for k, name in enumerate(old.image_ids) if name in places]
    if not kept:
        raise EmbeddingsFileError(f"{old.experiment}: the two runs saved rows of different images; {_HOW}")
    moved = {k: place for place, k in enumerate(kept)}
    texts = {name: k for k, name in enumerate(new.text_ids)}
    asked = [k for k, name in enumerate(old.text_ids) if name in texts and int(old.text_image[k]) in moved]
    truth = np.array([moved[int(old.text_image[k])] for k in asked], dtype=np.int64)
    names = old.model.name if old.model.name == new.model.name else f"{old.model.name} -> {new.model.name}"
    return Sample(
        what=f"{names} on {old.experiment} ({old.dataset.name})",
        old_queries=old.text_rows[asked],
        new_queries=new.text_rows[[texts[old.text_ids[k]] for k in asked]],
        old_rows=old.image_rows[kept],
        new_rows=new.image_rows[[places[old.image_ids[k]] for k in kept]],
        clusters=truth,
        truth=truth,
    )


def _check_recall(path: Path, answer: Reindex, search: str, result: Result) -> None:
    """Rows of an older session beside a newer run would answer another question: their recall must be the run's own."""
    for k in KS:
        name, found = f"image_retrieval_recall@{k}", answer.recall.get(search, {}).get(k)
        if found and name in result.metrics and abs(found.value - result.metrics[name].value) > 1e-9:
            raise EmbeddingsFileError(
                f"{path}: the rows saved beside it give {name} = {found.value:.4f}, the run says "
                f"{result.metrics[name].value:.4f}: they are of another session; measure again with --save-embeddings"
            )


def _own_sample(base: Run, head: Run, index: Sequence[Path], queries: Sequence[Path], by: QueryModels) -> Sample:
    rows = [read_index(path) for path in index]
    if len(rows) == 2 and len(rows[0]) != len(rows[1]):
        raise EmbeddingsFileError(
            f"{index[0]} has {len(rows[0])} rows, {index[1]} has {len(rows[1])}; expected row i of both to be the same item"
        )
    if len(queries) == 2:
        old, new = (read_index(path) for path in queries)
        if len(old) != len(new):
            raise EmbeddingsFileError(
                f"{queries[0]} has {len(old)} rows, {queries[1]} has {len(new)}; expected row i of both to be the same query"
            )
        clusters: Sequence[int] | Sequence[str] = range(len(old))
    else:
        clusters = read_queries(queries[0])
        models = _the_models(base, head)
        specs = _specs(by, models)
        old, new = (encode_queries(*pair, clusters, by.offline) for pair in zip(specs, models, strict=True))
    _check_dims(index[0], rows[0], old, "base")
    if len(rows) == 2:
        _check_dims(index[1], rows[1], new, "head")
    what = f"{index[0].name} ({len(clusters)} queries)"
    return Sample(what, old, new, rows[0], rows[1] if len(rows) == 2 else None, np.asarray(clusters))


def _check_dims(path: Path, rows: Rows, queries: Rows, side: str) -> None:
    if rows.shape[1] != queries.shape[1]:
        raise EmbeddingsFileError(
            f"{path} has rows of dim {rows.shape[1]}, the {side} model's queries have {queries.shape[1]}; expected an index "
            f"that the {side} model made"
        )


def _the_models(base: Run, head: Run) -> tuple[ModelIdentity, ModelIdentity]:
    """The one model of each run. Raises: UsageError where a run has none or several; _SameModelError where they are one."""
    found = []
    for side, run in (("BASE", base), ("HEAD", head)):
        models = list(dict.fromkeys(result.model for result in run.results))
        if len(models) != 1:
            names = ", ".join(f"{m.name} ({m.pretrained})" for m in models) or "none"
            raise UsageError(
                f"--queries: {side} has results of {len(models)} models ({names}); expected one: the index's"
            )
        found.append(models[0])
    if replace(found[0], device="") == replace(found[1], device="") and found[0].pretrained != "factory":
        raise _SameModelError(_SAME_MODEL)
    return found[0], found[1]


def _specs(by: QueryModels, models: Sequence[ModelIdentity]) -> list["ModelSpec"]:
    """What to load for base and for head: named by the user alone, and the run's model by name.

    Raises: UsageError without a name, for more than two, and for a name that is not the run's.
    """
    from clipbench.models.zoo import expand, resolve

    names = expand(by.models)
    if not 0 < len(names) < 3 or len(by.pretrained) > 2:
        raise UsageError(
            f"--queries TEXTS.txt is encoded by models that you name, here {len(names)}: add --model NAME (twice where base and "
            "head differ, base's first; --pretrained likewise), or give --queries OLD.npy NEW.npy"
        )
    specs = []
    for side, (word, model) in enumerate(zip(_both(names), models, strict=True)):
        weights = _both(by.pretrained)[side] if by.pretrained else None
        (spec,) = resolve([word], weights, by.activation)
        if spec.name != model.name:
            raise UsageError(
                f"--model {word} is {spec.name!r}, but {('BASE', 'HEAD')[side]} was measured with {model.name!r}; name the run's "
                "own model (--model twice, base's first, where they differ), or give --queries OLD.npy NEW.npy"
            )
        specs.append(spec)
    return specs


def _both(words: Sequence[str]) -> Sequence[str]:
    return words if len(words) == 2 else [*words, *words]


def encode_queries(spec: "ModelSpec", model: ModelIdentity, texts: Sequence[str], offline: bool = False) -> Rows:
    """Return (texts, dim) float32 unit rows by the model of `spec`, in the precision of the run's, with the software of this
    process. Imports torch.

    Raises: WeightsUnavailableError when its weights cannot be had here; EmbeddingsFileError when they are not those of the
    run's `model`; UsageError and CheckpointError as loading does.
    """
    from clipbench.embed.texts import embed_texts
    from clipbench.models import load_encoder
    from clipbench.models.device import ieee_float32
    from clipbench.session import make_settings

    settings = make_settings("auto", model.precision, offline=offline)
    encoder = load_encoder(spec, settings)
    try:
        if encoder.identity.weights_sha256 != model.weights_sha256:
            raise EmbeddingsFileError(
                f"the weights of {spec.label} here (SHA-256 {encoder.identity.weights_sha256[:12]}...) are not the run's "
                f"({model.weights_sha256[:12]!r}...); name the run's with --pretrained, or encode the queries where they are and "
                f"give --queries OLD.npy NEW.npy"
            )
        if encoder.identity.activation != model.activation:
            raise EmbeddingsFileError(
                f"{spec.label} has activation {encoder.identity.activation!r} here, the run's model {model.activation!r}; give "
                f"--activation, or --queries OLD.npy NEW.npy"
            )
        with ieee_float32(settings.device, settings.precision):
            return embed_texts(encoder, texts, replace(settings, plain=True)).rows
    finally:
        encoder.close()
