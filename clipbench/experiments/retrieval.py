"""Retrieval: every caption looks for its image among all images, every image for one of its captions among all captions.

COCO as CLIP papers report it on Karpathy's 5,000 test images; ROCO's radiology figures, with the study's matrix of eight repeated
in random groups.
Source: LAION-AI/CLIP_benchmark, zeroshot_retrieval: captions without a prompt, a hit is at least one correct item.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipbench.data import coco
from clipbench.data.dataset import HIGH_BIT_DEPTH, DataOptions, Dataset, Item, Source
from clipbench.data.own import DATASET_ROOT, own_sources
from clipbench.data.roco import ROCO_ROOT, roco_split
from clipbench.errors import DataError
from clipbench.experiments import Experiment, Measured, check_dims, score, slices_of
from clipbench.experiments.matching import PROMPT as STUDY_PROMPT
from clipbench.experiments.matching import TEXT_TO_IMAGE
from clipbench.metrics import Ints, grouped_text_to_image_hits, hits_at, retrieval
from clipbench.types import Answers, MetricSpec, Outcomes, Score

if TYPE_CHECKING:
    from clipbench.embed.embedder import Embedded, Embedder

KS = (1, 5, 10)
GROUP_SIZE, GROUP_SEED = 8, 0
PROMPT = "{caption}"
METRICS = (
    *(MetricSpec(f"image_retrieval_recall@{k}", "rate", "higher", True, k == 1, k < 10, "text_to_image") for k in KS),
    *(MetricSpec(f"text_retrieval_recall@{k}", "rate", "higher", False, k == 1, k < 10, "image_to_text") for k in KS),
)
MEDICAL_METRICS = (
    *(replace(spec, cluster=False, headline=spec.ranked) for spec in METRICS),
    MetricSpec(TEXT_TO_IMAGE.name, "rate", ranked=True, headline=True),
)


def captioned(
    embedder: "Embedder", dataset: Dataset, prompt: str, captions: int | None = None
) -> tuple["Embedded", "Embedded", Ints]:
    """Return the embedded images, their captions in `prompt` (the first `captions` of each), and (texts,) int64, the image of each.

    Text ids are "<image id>#<place of the caption>".

    Raises: DataError for fewer than two images that can be decoded, or towers of different dim.
    """
    images = embedder.images(dataset.items)
    kept: list[Item] = [dataset.items[k] for k in images.kept]
    if len(kept) < 2:
        raise DataError(f"{dataset.name}: {len(kept)} image can be decoded; expected two at least to choose from")
    texts = [prompt.format(caption=caption) for item in kept for caption in item.captions[:captions]]
    places = [(row, place) for row, item in enumerate(kept) for place in range(len(item.captions[:captions]))]
    embedded = embedder.texts(texts, [f"{kept[row].id}#{place}" for row, place in places])
    check_dims(embedder.encoder, images, embedded)
    return images, embedded, np.array([row for row, _ in places], dtype=np.int64)


def caption_retrieval(embedder: "Embedder", dataset: Dataset) -> Measured:
    """Return retrieval both ways over items with one caption or more, the captions as they stand.

    Metrics, each at k = 1, 5, 10: image_retrieval_recall@k (text query: is its image among the first k; captions of one image are one
    cluster) and text_retrieval_recall@k (image query: is one of its captions among the first k). Ties count against the model. Where k
    is not below the number of images every query would hit: such a metric is absent. Raises: DataError as `captioned`.
    """
    images, texts, text_image = captioned(embedder, dataset, PROMPT)
    clusters = tuple(images.ids[row] for row in text_image)
    scores, answers = _recalls(images, texts, text_image, [k for k in KS if k < len(images.ids)], clusters)
    item = {item.id: item for item in dataset.items}
    kept = [item[name] for name in images.ids]
    of_texts = [(kept[row], int(name.rpartition("#")[2])) for row, name in zip(text_image, texts.ids, strict=True)]
    own = slices_of((one.group for one, _ in of_texts), (one.language(place) for one, place in of_texts))
    theirs = slices_of((one.group for one in kept), (one.language() for one in kept))
    for name, (groups, languages) in (("text_to_image", own), ("image_to_text", theirs)):
        answers[name] = replace(answers[name], groups=groups, languages=languages)
    return Measured(scores, images, texts, answers=answers, prompts=(PROMPT,), text_image=text_image)


def _recalls(
    images: "Embedded", texts: "Embedded", text_image: Ints, ks: Sequence[int], clusters: tuple[str, ...] | None
) -> tuple[list[Score], dict[str, Answers]]:
    """Recall both ways, and what each query was taken for."""
    found = retrieval(images.rows, texts.rows, text_image)
    by_text, by_image = found.text_to_image, found.image_to_text
    spec = {spec.name: spec for spec in (METRICS if clusters is not None else MEDICAL_METRICS)}
    scores = []
    for k in ks:
        hits = hits_at(by_text.ranks, k).astype(np.float64)
        scores.append(score(spec[f"image_retrieval_recall@{k}"], Outcomes(texts.ids, hits, clusters, "text_ids")))
    for k in ks:
        hits = hits_at(by_image.ranks, k).astype(np.float64)
        scores.append(score(spec[f"text_retrieval_recall@{k}"], Outcomes(images.ids, hits, axis="image_ids")))
    answers = {
        "text_to_image": Answers(texts.ids, images.ids, *by_text.taken_for, text_image.astype(np.int32)),
        "image_to_text": Answers(images.ids, texts.ids, *by_image.taken_for),
    }
    return scores, answers


def medical_retrieval(embedder: "Embedder", dataset: Dataset) -> Measured:
    """Return retrieval among all images by their first captions, and text_to_image_top1 within random groups of eight.

    Metrics: image_retrieval_recall@1/5/10 (one outcome per text), text_retrieval_recall@1/5/10 (one per image; k beyond the candidates
    always hits), and text_to_image_top1 (one outcome per text in a group; chance 1/8, as in the 8 x 8 matrices), absent where there is
    no whole group. All captions stand in the study's prompt. Raises: DataError as `captioned`.
    """
    images, texts, text_image = captioned(embedder, dataset, STUDY_PROMPT, captions=1)
    scores, answers = _recalls(images, texts, text_image, KS, None)
    groups = whole_groups([item.id for item in dataset.items], images.ids, GROUP_SEED)
    if len(groups):
        hits = grouped_text_to_image_hits(images.rows, texts.rows, groups.tolist()).astype(np.float64)
        ids = tuple(texts.ids[row] for row in groups.ravel())
        scores.append(score(MEDICAL_METRICS[-1], Outcomes(ids, hits, axis="grouped_text_ids")))
    return Measured(
        scores,
        images,
        texts,
        answers=answers,
        prompts=(STUDY_PROMPT,),
        options={"groups": {"size": GROUP_SIZE, "count": len(groups), "seed": GROUP_SEED}},
        exclusions={"texts_in_no_group": len(texts.ids) - groups.size},
        text_image=text_image,
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


def _roco_sources(options: DataOptions) -> tuple[Source, ...]:
    """Every captioned image of ROCO's split where its folder was given; nothing without."""
    root = options.folder(ROCO_ROOT)
    return () if root is None else (Source("roco_radiology", partial(roco_split, root)),)


COCO_RETRIEVAL = Experiment(
    "coco_retrieval",
    METRICS,
    partial(coco.sources, read=coco.coco_retrieval, is_captions=True),
    caption_retrieval,
    root=coco.COCO_ROOT,
    choices=(HIGH_BIT_DEPTH,),
    order=54,
)
RETRIEVAL = Experiment(
    "retrieval",
    METRICS,
    partial(own_sources, "retrieval"),
    caption_retrieval,
    DATASET_ROOT,
    (HIGH_BIT_DEPTH,),
    64,
)
MEDICAL_RETRIEVAL = Experiment(
    "medical_retrieval", MEDICAL_METRICS, _roco_sources, medical_retrieval, ROCO_ROOT, (HIGH_BIT_DEPTH,), 32
)
