"""Zero-shot classification: images against the mean text row of each class. Crops, labelled folders and labels share it.

Source: openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb: unit rows of all templates of a class, their mean,
renormalised; the class with the highest cosine is picked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipbench.data.dataset import Dataset, Item
from clipbench.embed.images import embed_images
from clipbench.embed.texts import EmbeddedTexts, embed_texts
from clipbench.errors import DataError
from clipbench.experiments.experiment import identity_of, mean, protocol_of, rate
from clipbench.experiments.handled import check_dims, handled
from clipbench.metrics import PerClass, confusion_matrix, hits_at, label_ranks, per_class_recall
from clipbench.models.encoder import Encoder, Rows, unit_rows
from clipbench.result import Items, Metric, Result
from clipbench.settings import Settings
from clipbench.statistics import clustered_wilson_interval

SHOWN = ("acc1", "acc5", "mean_per_class_recall")
CONFUSED_PAIRS = 12
IMAGES_AT_ONCE = 8192
FEWEST_FOR_ACC5 = 5

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """`ranks` (images,) int64: how many classes an image's own is behind; `confusion` (classes, classes) int64."""

    ranks: Ints
    confusion: Ints


def class_texts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return classes x templates texts, all templates of a class next to each other."""
    return [template.replace("{}", name) for name in classes for template in templates]


@dataclass(frozen=True)
class Classifier:
    """`rows`: (classes, dim) float32 unit rows. `texts`: what they are the means of, with how those were made."""

    rows: Rows
    texts: EmbeddedTexts


def class_embeddings(
    encoder: Encoder, classes: Sequence[str], templates: Sequence[str], settings: Settings
) -> Classifier:
    """Return a row a class: the mean over templates of unit text rows, renormalised.

    Raises: DataError for no class or no template; EncoderError when the rows of a class cancel out.
    """
    texts = embed_texts(encoder, class_texts(classes, templates), settings)
    averaged = texts.rows.reshape(len(classes), len(templates), -1).mean(axis=1, dtype=np.float64)
    what = f"{encoder.identity.name}: mean over {len(templates)} templates"
    return Classifier(unit_rows(averaged, len(classes), what), texts)


def classification_result(
    experiment: str, encoder: Encoder, dataset: Dataset, templates: Sequence[str], settings: Settings
) -> Result:
    """Return zero-shot classification of items with one label each.

    Metrics: acc1 and acc5 (rates; ties count against the model; Wilson intervals, on the effective number where several
    items come from one file; no acc5 under five classes), mean_per_class_recall (over the classes that have an item;
    bootstrap over classes). Arrays: confusion (classes, classes), row the true class; most_confused (pairs, 4): true
    class, class picked instead, how often, items of the true class. Class names are `classes` of the protocol.

    Raises: DataError for fewer than two classes, towers of different dim, or when no image can be decoded.
    """
    if len(dataset.classes) < 2:
        raise DataError(
            f"{dataset.name} has {len(dataset.classes)} class(es): with fewer than two nothing can be mistaken"
        )
    embedded = embed_images(encoder, dataset.items, settings)
    classifier = class_embeddings(encoder, dataset.classes, templates, settings)
    check_dims(encoder, embedded.rows, classifier.rows)
    labels = np.array([item.labels[0] for item in embedded.kept], dtype=np.int64)
    scored = score(embedded.rows, classifier.rows, labels)
    metrics, items = _metrics(dataset.classes, embedded.kept, labels, scored, settings.seed)
    more = handled(encoder, dataset, embedded, classifier.texts)
    more["notes"]["classes_without_items"] = len(dataset.classes) - len(np.unique(labels))
    more["notes"]["classes_of_the_same_name"] = sum(dataset.classes.count(name) > 1 for name in dataset.classes)
    arrays = {"confusion": scored.confusion.astype(np.float64)}
    pairs = most_confused(scored.confusion)
    return Result(
        experiment=experiment,
        model=encoder.identity,
        dataset=identity_of(dataset, len(embedded.kept)),
        protocol=protocol_of(encoder, dataset, prompts=list(templates), classes=list(dataset.classes), **more),
        metrics=metrics,
        items=items,
        arrays=arrays | ({"most_confused": pairs.astype(np.float64)} if len(pairs) else {}),
    )


def score(image_rows: Rows, classifier: Rows, labels: Ints) -> Scored:
    """Return ranks and confusion of (images, dim) rows against (classes, dim) rows, products taken in float64.

    A bounded number of images at a time: 50,000 x 1,000 scores are never held at once.
    """
    classes = classifier.astype(np.float64).T
    ranks, confusion = np.empty(len(labels), dtype=np.int64), np.zeros((classes.shape[1],) * 2, dtype=np.int64)
    for start in range(0, len(labels), IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        cosines = image_rows[part].astype(np.float64) @ classes
        ranks[part] = label_ranks(cosines, labels[part])
        confusion += confusion_matrix(cosines, labels[part])
    return Scored(ranks, confusion)


def most_confused(confusion: Ints, pairs: int = CONFUSED_PAIRS) -> Ints:
    """Return (up to `pairs`, 4) int64: true class, class picked, how often, items of the true class; most often first.

    Equally frequent pairs in the order of their shares of the true class, then of classes. (0, 4) when nothing is confused.
    """
    wrong = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    true, picked = np.nonzero(wrong)
    count, size = wrong[true, picked], confusion.sum(axis=1)[true]
    order = np.lexsort((picked, true, -count / np.maximum(size, 1), -count))[:pairs]
    return np.stack([true, picked, count, size], axis=1)[order]


def class_ids(classes: Sequence[str]) -> list[str]:
    """Return an id for each class: its name, with its number behind it where two classes have one name."""
    return [name if classes.count(name) == 1 else f"{name} #{label}" for label, name in enumerate(classes)]


def _metrics(
    classes: Sequence[str], kept: Sequence[Item], labels: Ints, scored: Scored, seed: int
) -> tuple[dict[str, Metric], Items]:
    hits = {k: hits_at(scored.ranks, k) for k in (1, 5) if k == 1 or len(classes) >= FEWEST_FOR_ACC5}
    recall: PerClass = per_class_recall(hits[1], labels, len(classes))
    files = [str(item.image.path) for item in kept]
    metrics = {f"acc{k}": _clustered_rate(values, files) for k, values in hits.items()}
    metrics["mean_per_class_recall"] = mean(recall.values, seed)
    names = class_ids(classes)
    items = Items(
        ids=tuple(item.id for item in kept),
        outcomes={f"acc{k}": values.astype(int).tolist() for k, values in hits.items()}
        | {"mean_per_class_recall": recall.values.tolist()},
        id_lists={"classes": [names[c] for c in recall.classes]},
        axes={"mean_per_class_recall": "classes"},
    )
    return metrics, items


def _clustered_rate(hits: npt.NDArray[np.bool_], files: Sequence[str]) -> Metric:
    """Items cut from one file are not independent: boxes of one photograph share its light, blur and scene."""
    if len(set(files)) == len(files):
        return rate(hits.astype(float))
    low, high = clustered_wilson_interval(hits.astype(float), files)
    return Metric(float(hits.mean()), len(hits), low, high)
