"""Matching: n images against their n captions, as a square cosine matrix whose diagonal should win.

Natural images (the study's second experiment) and medical ones (its third, where CLIP should fail: whether a model fails as
expected is judged by `judge.references`).

Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb: RGB, the model's preprocessing, the prompt around the caption, unit
rows, texts x images; ckurtz/teaching_UPC_UFRMI@2ec69fe, whose medical part repeats the procedure. Cells are keyed by item id,
never by folder order.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipbench.data.dataset import HIGH_BIT_DEPTH, DataOptions, Dataset, Source
from clipbench.data.packaged import packaged_dataset
from clipbench.data.roco import ROCO_ROOT, roco_study
from clipbench.experiments import Experiment, Measured, all_images, check_dims, cosines_of, score
from clipbench.metrics import image_to_text_hits, margins, ranked, text_to_image_hits
from clipbench.types import Answers, FloatArray, Matrix, MetricSpec, Outcomes, Score

if TYPE_CHECKING:
    from clipbench.embed.embedder import Embedded, Embedder

PROMPT = "This is {caption}"
"""Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb; the course's medical part: "same procedure as the natural part"."""

TEXT_TO_IMAGE = MetricSpec("text_to_image_top1", "rate", ranked=True, headline=True, answers="text_to_image")
IMAGE_TO_TEXT = MetricSpec("image_to_text_top1", "rate", ranked=True, headline=True, answers="image_to_text")
DIAGONAL = MetricSpec("diagonal_mean", "cosine", "neither")
OFF_DIAGONAL = MetricSpec("off_diagonal_mean", "cosine", "neither")
MARGIN = MetricSpec("margin_mean", "cosine", headline=True)
SMALLEST_MARGIN = MetricSpec("margin_min", "cosine")
METRICS = (TEXT_TO_IMAGE, IMAGE_TO_TEXT, DIAGONAL, OFF_DIAGONAL, MARGIN, SMALLEST_MARGIN)


def matched(embedder: "Embedder", dataset: Dataset) -> tuple["Embedded", "Embedded"]:
    """Return the embedded images and first captions of all items, in item order.

    Always by the reference path: they are few enough that an optimization would save nothing.

    Raises: DataError as `all_images` and `check_dims`.
    """
    images = all_images(embedder, dataset, reference=True)
    captions = [dataset.prompts[0].format(caption=item.captions[0]) for item in dataset.items]
    texts = embedder.texts(captions, images.ids, reference=True)
    check_dims(embedder.encoder, images, texts)
    return images, texts


def matching(embedder: "Embedder", dataset: Dataset) -> Measured:
    """Return text_to_image_top1 and image_to_text_top1 (rates; ties count against the model), diagonal_mean and
    off_diagonal_mean (cosines), margin_mean and margin_min (an item's own cosine minus the best wrong cell in its row or column;
    positive when the item is matched both ways), and the (texts, images) matrix `similarity`.
    """
    images, texts = matched(embedder, dataset)
    cosines = cosines_of(images, texts).T
    return Measured(
        matching_scores(cosines, images.ids),
        images,
        texts,
        {"similarity": Matrix("cosine", cosines, texts.ids, images.ids)},
        matching_answers(cosines, images.ids),
    )


def matching_scores(cosines: FloatArray, ids: tuple[str, ...]) -> list[Score]:
    """Return the scores of a square (texts, images) matrix of cosines."""
    n, margin = len(cosines), margins(cosines)
    values = {
        TEXT_TO_IMAGE: text_to_image_hits(cosines),
        IMAGE_TO_TEXT: image_to_text_hits(cosines),
        DIAGONAL: np.diag(cosines),
        OFF_DIAGONAL: (cosines.sum(axis=1) - np.diag(cosines)) / max(1, n - 1),
        MARGIN: margin,
    }
    found = [score(spec, Outcomes(ids, np.asarray(each, dtype=np.float64))) for spec, each in values.items()]
    return [*found, Score(SMALLEST_MARGIN, float(margin.min()), n)]


def matching_answers(cosines: FloatArray, ids: tuple[str, ...]) -> dict[str, Answers]:
    """Return what each text and each image was taken for, of a square (texts, images) matrix of cosines."""
    own = np.arange(len(ids))
    ways = {"text_to_image": cosines, "image_to_text": cosines.T}
    return {way: Answers(ids, ids, *ranked(table, own).taken_for, own.astype(np.int32)) for way, table in ways.items()}


def natural(embedder: "Embedder", dataset: Dataset) -> Measured:
    """Return `matching`; for weights from a path also the matrix with the other activation.

    A checkpoint does not say which activation it was trained with, and loading it with the wrong one costs points without an
    error (open_clip issues 771 and 1109). Judging compares the two matrices.
    """
    measured = matching(embedder, dataset)
    swapped = embedder.encoder.other_activation()
    if swapped is None:
        return measured
    with swapped as other:
        images, texts = matched(embedder, dataset)
    matrix = Matrix("cosine", cosines_of(images, texts).T, texts.ids, images.ids)
    return replace(measured, matrices={**measured.matrices, f"similarity_{other}": matrix})


def _packaged(name: str) -> Source:
    return Source(name, partial(packaged_dataset, name))


def _medical_sources(options: DataOptions) -> tuple[Source, ...]:
    """The study's own eight images where ROCO was given, else the packaged eight."""
    root = options.folder(ROCO_ROOT)
    if root is None:
        return (_packaged("medical"),)
    return (Source("roco_study", lambda: replace(roco_study(root), prompts=(PROMPT,))),)


NATURAL = Experiment("natural", METRICS, lambda options: (_packaged("natural"),), natural, order=20)
MEDICAL = Experiment("medical", METRICS, _medical_sources, matching, ROCO_ROOT, (HIGH_BIT_DEPTH,), 30)
MEDICAL_OTHER = Experiment("medical_other", METRICS, lambda options: (_packaged("medical_other"),), matching, order=31)
