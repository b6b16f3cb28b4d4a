"""clipbench's side of each comparison: the calls that its experiments make.

Every call works on a fresh copy of the encoder object (the weights are shared) and hashes its files anew, so that whatever
clipbench checks or remembers is paid for each time, and never timed as nothing.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clipbench.data.coco import coco_retrieval
from clipbench.data.dataset import Item, forget_hashes
from clipbench.embed.images import embed_images
from clipbench.embed.texts import embed_texts
from clipbench.embeddings_file import SavedRows
from clipbench.experiments.classification import class_embeddings
from clipbench.experiments.retrieval import KS, retrieval_result
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.peers.theirs import WAYS
from clipbench.peers.work import Outcome
from clipbench.settings import Settings


def classifier(
    encoder: OpenClipEncoder, classes: Sequence[str], templates: Sequence[str], settings: Settings
) -> Outcome:
    """Return {"rows": (classes, dim)}."""
    return {"rows": _rows(class_embeddings(copy.copy(encoder), classes, templates, settings))}


def encoded_captions(encoder: OpenClipEncoder, items: Sequence[Item], settings: Settings) -> Outcome:
    """Return {"rows": (texts, dim)} of all captions of the items."""
    texts = [caption for item in items for caption in item.captions]
    return {"rows": _rows(embed_texts(copy.copy(encoder), texts, settings))}


def encoded_images(encoder: OpenClipEncoder, items: Sequence[Item], settings: Settings) -> Outcome:
    """Return {"rows": (images, dim)}, decoded from the items' files."""
    forget_hashes()
    return {"rows": embed_images(copy.copy(encoder), items, settings).rows}


def encoded(encoder: OpenClipEncoder, items: Sequence[Item], settings: Settings) -> Outcome:
    """Return image_rows and text_rows of the items."""
    return {
        "image_rows": encoded_images(encoder, items, settings)["rows"],
        "text_rows": encoded_captions(encoder, items, settings)["rows"],
    }


def retrieval(encoder: OpenClipEncoder, root: Path, settings: Settings) -> Outcome:
    """Return image_rows, text_rows and recalls (2 x KS,) of the whole experiment, the reading of annotations included."""
    forget_hashes()
    kept: list[SavedRows] = []
    dataset = coco_retrieval(root)
    settings = replace(settings, keep_rows=kept.append)
    metrics = retrieval_result("coco_retrieval", copy.copy(encoder), dataset, settings).metrics
    recalls = [metrics[f"{way}_retrieval_recall@{k}"].value for k in KS if k < len(dataset) for way in WAYS]
    return {
        "image_rows": kept[0].image_rows,
        "text_rows": kept[0].text_rows,
        "recalls": np.array(recalls, dtype=np.float64),
    }


def _rows(found: Any) -> Any:
    """The rows of what a call returned: rows, or an object that holds them."""
    return getattr(found, "rows", found)
