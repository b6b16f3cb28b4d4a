"""Matching: n images against their n captions, as a square cosine matrix. Natural and medical images share it.

Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb: RGB, the model's preprocessing, the prompt around the caption, unit
rows, texts x images. Cells are keyed by item id, never by folder order.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from clipbench.data.dataset import Dataset
from clipbench.embed.images import embed_images
from clipbench.embed.texts import embed_texts
from clipbench.errors import DataError
from clipbench.experiments.experiment import identity_of, mean, protocol_of, rate
from clipbench.experiments.handled import check_dims
from clipbench.metrics import image_to_text_hits, margins, text_to_image_hits
from clipbench.models.encoder import Encoder, Rows
from clipbench.result import FloatArray, Items, Metric, Result
from clipbench.settings import Settings

SHOWN = ("text_to_image_top1", "image_to_text_top1", "margin_mean")


def matched_rows(encoder: Encoder, dataset: Dataset, settings: Settings) -> tuple[Rows, Rows]:
    """Return (images, dim) and (texts, dim) float32 unit rows of every item's image and its first caption, in item order.

    Always by the plain call: these are the rows of the probe, and few enough that a shortcut would save nothing.

    Raises: DataError when an image of the set cannot be decoded: a matrix with a hole is no diagonal.
    """
    settings = replace(settings, plain=True)
    embedded = embed_images(encoder, dataset.items, settings)
    if embedded.broken:
        raise DataError(
            f"{dataset.name}: {len(embedded.broken)} of {len(dataset)} images are broken: {embedded.broken[0]}"
        )
    texts = [str(dataset.protocol["prompts"]).format(caption=item.captions[0]) for item in dataset.items]
    text_rows = embed_texts(encoder, texts, settings).rows
    check_dims(encoder, embedded.rows, text_rows)
    return embedded.rows, text_rows


def cosine_matrix(encoder: Encoder, dataset: Dataset, settings: Settings) -> FloatArray:
    """Return the (texts, images) float64 cosines of `matched_rows`. Raises: DataError as there."""
    image_rows, text_rows = matched_rows(encoder, dataset, settings)
    return cosines_of(image_rows, text_rows)


def cosines_of(image_rows: Rows, text_rows: Rows) -> FloatArray:
    """Return the (texts, images) float64 cosines of unit rows."""
    return text_rows.astype(np.float64) @ image_rows.astype(np.float64).T


def matching_result(
    experiment: str, encoder: Encoder, dataset: Dataset, settings: Settings, rows: tuple[Rows, Rows] | None = None
) -> Result:
    """Return the square matching experiment on a data set of (image, caption) pairs.

    Metrics: text_to_image_top1 and image_to_text_top1 (rates; ties count against the model), diagonal_mean and
    off_diagonal_mean (cosines), margin_mean and margin_min (an item's own cosine minus the best wrong cell in its row or
    column; positive when the item is matched both ways). `rows`: what `matched_rows` gave, where it was called already.
    """
    image_rows, text_rows = rows or matched_rows(encoder, dataset, settings)
    cosines = cosines_of(image_rows, text_rows)
    outcomes, metrics = matching_metrics(cosines, settings.seed)
    return Result(
        experiment=experiment,
        model=encoder.identity,
        dataset=identity_of(dataset, len(dataset)),
        protocol=protocol_of(encoder, dataset),
        metrics=metrics,
        items=Items(ids=tuple(item.id for item in dataset.items), outcomes=outcomes),
        arrays={"similarity": cosines},
    )


def matching_metrics(cosines: FloatArray, seed: int) -> tuple[dict[str, Any], dict[str, Metric]]:
    """Return (per-item outcomes, metrics) of a square (texts, images) matrix."""
    n = len(cosines)
    off_diagonal = (cosines.sum(axis=1) - np.diag(cosines)) / max(1, n - 1)
    outcomes: dict[str, Any] = {
        "text_to_image_top1": [int(h) for h in text_to_image_hits(cosines)],
        "image_to_text_top1": [int(h) for h in image_to_text_hits(cosines)],
        "diagonal_mean": np.diag(cosines).tolist(),
        "off_diagonal_mean": off_diagonal.tolist(),
        "margin_mean": margins(cosines).tolist(),
    }
    metrics = {name: rate(outcomes[name]) for name in ("text_to_image_top1", "image_to_text_top1")}
    metrics |= {name: mean(outcomes[name], seed) for name in ("diagonal_mean", "off_diagonal_mean", "margin_mean")}
    metrics["margin_min"] = Metric(min(outcomes["margin_mean"]), n)
    return outcomes, metrics
