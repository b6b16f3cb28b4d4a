"""Medical images: the natural experiment on radiology figures, where CLIP should fail, and the whole of ROCO as retrieval.

Source: the study's third experiment (a matrix of eight medical images, and one of eight others), after
ckurtz/teaching_UPC_UFRMI@2ec69fe, whose medical part repeats the procedure of the natural one. Whether a model fails as
expected is judged by `clipbench.judge.references`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from clipbench.data.dataset import Dataset
from clipbench.data.packaged import packaged_dataset
from clipbench.data.roco import roco_split, roco_study
from clipbench.embed.images import embed_images
from clipbench.embed.texts import embed_texts
from clipbench.errors import DataError, DataUnavailableError
from clipbench.experiments.experiment import Experiment, identity_of, protocol_of, rate
from clipbench.experiments.handled import check_dims, handled
from clipbench.experiments.matching import SHOWN, matching_result
from clipbench.experiments.retrieval import KS
from clipbench.metrics import Bools, Ints, RetrievalRanks, grouped_text_to_image_hits, hits_at, retrieval_ranks
from clipbench.models.encoder import Encoder
from clipbench.result import Items, Result
from clipbench.settings import Settings

PROMPT = "This is {caption}"
"""The prompt of the natural experiment. Source: the course notebook named above: "same procedure as the natural part"."""

GROUP_SIZE = 8


def load_medical(settings: Settings) -> Dataset:
    """Return the study's own eight images where ROCO was given, else the packaged eight.

    Raises: DataUnavailableError naming what is missing; DataError for malformed captions.
    """
    return packaged_dataset("medical") if settings.roco is None else _prompted(roco_study(settings.roco))


def load_medical_other(settings: Settings) -> Dataset:
    """Return eight other packaged images, with or without ROCO. Raises: DataUnavailableError."""
    return packaged_dataset("medical_other")


def load_medical_retrieval(settings: Settings) -> Dataset:
    """Return every captioned image of ROCO's split. Raises: DataUnavailableError, also without --roco; DataError."""
    if settings.roco is None:
        raise DataUnavailableError("medical_retrieval needs ROCO; give its folder with --roco ROOT")
    return _prompted(roco_split(settings.roco))


def medical(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return the matching result of the first eight."""
    return matching_result("medical", encoder, dataset, settings)


def medical_other(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return the matching result of the other eight."""
    return matching_result("medical_other", encoder, dataset, settings)


def medical_retrieval(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return retrieval among all images, and text_to_image_top1 within random groups of eight.

    Metrics: image_retrieval_recall@1/5/10 (one outcome a text), text_retrieval_recall@1/5/10 (one an image; k beyond the
    candidates always hits), and text_to_image_top1 (one outcome a text that is in a group; chance 1/8, as in the 8 x 8
    matrices; the notes count the texts in no group), absent where there is no whole group. All captions stand in the
    study's prompt. A broken image is left out with its caption, named and counted.

    Raises: DataError when fewer than two images can be decoded, or the towers' dims differ.
    """
    embedded = embed_images(encoder, dataset.items, settings)
    ids = [item.id for item in embedded.kept]
    if len(ids) < 2:
        raise DataError(f"{dataset.name}: {len(ids)} image can be decoded; expected two at least to choose from")
    prompt = str(dataset.protocol["prompts"])
    texts = [prompt.format(caption=item.captions[0]) for item in embedded.kept]
    embedded_texts = embed_texts(encoder, texts, settings)
    text_rows = embedded_texts.rows
    check_dims(encoder, embedded.rows, text_rows)
    groups = whole_groups([item.id for item in dataset.items], ids, settings.seed)
    hits = _recall_hits(retrieval_ranks(embedded.rows, text_rows, np.arange(len(ids))))
    if len(groups):
        hits["text_to_image_top1"] = grouped_text_to_image_hits(embedded.rows, text_rows, groups.tolist())
    more = handled(encoder, dataset, embedded, embedded_texts)
    more["notes"]["texts_in_no_group"] = len(ids) - groups.size
    grouping = {"size": GROUP_SIZE, "count": len(groups), "seed": settings.seed}
    return Result(
        experiment="medical_retrieval",
        model=encoder.identity,
        dataset=identity_of(dataset, len(ids)),
        protocol=protocol_of(encoder, dataset, groups=grouping, **more),
        metrics={name: rate(values) for name, values in hits.items()},
        items=_retrieval_items(ids, groups, hits),
    )


def whole_groups(ids: Sequence[str], kept: Sequence[str], seed: int) -> Ints:
    """Return (groups, 8) int64 positions in `kept`: `ids` shuffled by the seed and cut into eights; whole groups only.

    Groups are made of all ids, so a broken image costs its own group and leaves the others as they were. The remainder
    that fills no group is left out; under eight ids there is no group.
    """
    row = {item: position for position, item in enumerate(kept)}
    order = np.random.default_rng(seed).permutation(len(ids))[: len(ids) // GROUP_SIZE * GROUP_SIZE]
    rows = np.array([row.get(ids[i], -1) for i in order], dtype=np.int64).reshape(-1, GROUP_SIZE)
    return np.asarray(rows[(rows >= 0).all(axis=1)], dtype=np.int64)


def _recall_hits(ranks: RetrievalRanks) -> dict[str, Bools]:
    ways = (("image_retrieval_recall", ranks.text_to_image), ("text_retrieval_recall", ranks.image_to_text))
    return {f"{way}@{k}": hits_at(found, k) for way, found in ways for k in KS}


def _retrieval_items(ids: Sequence[str], groups: Ints, hits: Mapping[str, Bools]) -> Items:
    """Outcomes by text, by image, and by text of the groups in the groups' order. Text ids as in coco_retrieval."""
    text_ids = [f"{item}#0" for item in ids]
    axes = {name: "text_ids" if name.startswith("image") else "image_ids" for name in hits}
    id_lists = {"image_ids": ids, "text_ids": text_ids}
    if "text_to_image_top1" in hits:
        axes["text_to_image_top1"] = "grouped_text_ids"
        id_lists["grouped_text_ids"] = [text_ids[row] for row in groups.ravel()]
    return Items(outcomes={n: v.astype(int).tolist() for n, v in hits.items()}, id_lists=id_lists, axes=axes)


def _prompted(dataset: Dataset) -> Dataset:
    return replace(dataset, protocol={**dataset.protocol, "prompts": PROMPT})


MEDICAL = Experiment("medical", 30, load_medical, medical, SHOWN)
MEDICAL_OTHER = Experiment("medical_other", 31, load_medical_other, medical_other, SHOWN)
MEDICAL_RETRIEVAL = Experiment(
    "medical_retrieval",
    32,
    load_medical_retrieval,
    medical_retrieval,
    ("text_to_image_top1", "image_retrieval_recall@1", "text_retrieval_recall@1"),
    exists=lambda settings: settings.roco is not None,
)
