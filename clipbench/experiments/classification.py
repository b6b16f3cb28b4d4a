"""Zero-shot classification: images against the mean text row of each class.

Crops of COCO, folders of class folders, CIFAR-100 labels of the natural images; and COCO multi-label, where each class ranks all
images. Source: openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb: unit rows of all templates of a class, their mean,
renormalised; the class with the highest cosine is picked.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipbench.data import coco
from clipbench.data.dataset import HIGH_BIT_DEPTH, DataOptions, Dataset, Item, Source
from clipbench.data.folders import ZERO_SHOT_ROOT, class_set, labelled_folder
from clipbench.data.own import DATASET_ROOT, own_sources
from clipbench.data.packaged import packaged_dataset
from clipbench.errors import DataError
from clipbench.experiments import Experiment, Measured, all_images, check_dims, cosines_of, score, slices_of
from clipbench.metrics import average_precision, hits_at, multilabel_answers, per_class_recall, ranked
from clipbench.types import Answers, FloatArray, Matrix, MetricSpec, Outcomes

if TYPE_CHECKING:
    from clipbench.embed.embedder import Embedder

ACC1 = MetricSpec("acc1", "rate", cluster=True, ranked=True, headline=True, answers="images")
ACC5 = MetricSpec("acc5", "rate", cluster=True, headline=True, answers="images")
RECALL = MetricSpec("mean_per_class_recall", "mean", headline=True, answers="images")
PRECISION = MetricSpec("mean_average_precision", "mean", ranked=True, headline=True)
TOP1_PROBABILITY = MetricSpec("top1_probability", "probability", "neither", headline=True)
METRICS = (ACC1, ACC5, RECALL)

IMAGES_AT_ONCE = 8192
FEWEST_FOR_ACC5 = 5

CROP_TEMPLATES = ("a photo of a {}.",)
"""Source: SunzeY/AlphaCLIP@e5676c9 train/train_grit_1m+mim.py, the prompt of the published figure."""

IMAGES_WORTH_AN_ENSEMBLE = 1000
"""From this many images on, the 80 templates of the published protocol are ensembled; under it 6,400 texts would cost
many times what the images do, for a number that no published one can be compared with."""

LABEL_TEMPLATE, LABEL_SCALE = "This is a photo of a {}", 100.0
"""Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb, "Zero-Shot Image Classification": softmax(100 x cosine)."""


def classification(embedder: "Embedder", dataset: Dataset, templates: Sequence[str] = ()) -> Measured:
    """Return zero-shot classification of items with one label each; `templates` are the data set's prompts, else.

    Metrics: acc1 and acc5 (rates; ties count against the model; items from one file are one cluster; no acc5 under five classes),
    mean_per_class_recall (over the classes that have an item; bootstrap over classes).

    Raises: DataError for fewer than two classes, towers of different dim, or when no image can be decoded.
    """
    prompts = tuple(templates) or dataset.prompts
    if len(dataset.classes) < 2:
        raise DataError(
            f"{dataset.name} has {len(dataset.classes)} class(es): with fewer than two nothing can be mistaken"
        )
    images = embedder.images(dataset.items)
    names = class_ids(dataset.classes)
    classes = embedder.classes(dataset.classes, prompts, names)
    check_dims(embedder.encoder, images, classes)
    kept = [dataset.items[k] for k in images.kept]
    labels = np.array([item.labels[0] for item in kept], dtype=np.int64)
    ranks, taken_for = answers_of(images.rows, classes.rows, labels, images.ids, names, kept)
    files = {path: f"file {k}" for k, path in enumerate(dict.fromkeys(item.image.path for item in kept))}
    clusters = tuple(files[item.image.path] for item in kept) if len(files) < len(kept) else None
    hits = {spec: hits_at(ranks, k) for k, spec in ((1, ACC1), (5, ACC5)) if k == 1 or len(names) >= FEWEST_FOR_ACC5}
    recall = per_class_recall(hits[ACC1], labels, len(names))
    scores = [score(spec, Outcomes(images.ids, each.astype(np.float64), clusters)) for spec, each in hits.items()]
    scores.append(score(RECALL, Outcomes(tuple(names[c] for c in recall.classes), recall.values, axis="classes")))
    exclusions = {
        "classes_without_items": len(names) - len(recall.classes),
        "classes_of_the_same_name": sum(dataset.classes.count(name) > 1 for name in dataset.classes),
    }
    return Measured(scores, images, classes, answers={"images": taken_for}, prompts=prompts, exclusions=exclusions)


def answers_of(
    images: FloatArray,
    classes: FloatArray,
    labels: npt.NDArray[np.int64],
    ids: tuple[str, ...],
    names: tuple[str, ...],
    items: Sequence[Item],
) -> tuple[npt.NDArray[np.int64], Answers]:
    """Return (images,) int64, how many classes an image's own is behind, and what each image was taken for.

    `images` (images, dim) and `classes` (classes, dim) are unit rows; 50,000 x 1,000 products are never held at once.
    """
    columns = classes.astype(np.float64).T
    parts = []
    for start in range(0, len(labels), IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        parts.append(ranked(images[part].astype(np.float64) @ columns, labels[part]))
    groups, languages = slices_of((item.group for item in items), (item.language() for item in items))
    top, best, margins = (np.concatenate(column) for column in zip(*(p.taken_for for p in parts), strict=True))
    return np.concatenate([p.ranks for p in parts]), Answers(
        ids, names, top, best, margins, labels.astype(np.int32), groups, languages
    )


def class_ids(classes: Sequence[str]) -> tuple[str, ...]:
    """Return an id for each class: its name, with its number behind it where two classes have one name."""
    return tuple(name if classes.count(name) == 1 else f"{name} #{label}" for label, name in enumerate(classes))


def multilabel(embedder: "Embedder", dataset: Dataset) -> Measured:
    """Return mean_average_precision over the classes that an image shows; its items are classes (bootstrap over them).

    Among tied images those without the class come first. Classes without an image are left out and counted.

    Raises: DataError when no image that can be decoded shows a class, or the towers' dims differ.
    Source: SPARC (CVPR 2025), table 2, row ZSCLIP: one cosine per image and class, average precision per class, their mean.
    """
    templates = dataset.prompts or templates_for(len(dataset))
    images = embedder.images(dataset.items)
    names = class_ids(dataset.classes)
    classes = embedder.classes(dataset.classes, templates, names)
    check_dims(embedder.encoder, images, classes)
    relevant = np.zeros((len(images.kept), len(names)), dtype=bool)
    for row, k in enumerate(images.kept):
        relevant[row, list(dataset.items[k].labels)] = True
    if not relevant.any():
        raise DataError(f"{dataset.name}: no image shows any of the {len(names)} classes; nothing can be ranked")
    cosines = cosines_of(images, classes)
    found = average_precision(cosines, relevant)
    taken_for = {"images": Answers(images.ids, names, *multilabel_answers(cosines, relevant))}
    outcomes = Outcomes(tuple(names[c] for c in found.classes), found.values, axis="classes")
    exclusions = {"classes_without_items": len(names) - len(found.classes)}
    return Measured(
        [score(PRECISION, outcomes)], images, classes, answers=taken_for, prompts=templates, exclusions=exclusions
    )


def templates_for(images: int) -> tuple[str, ...]:
    """Return OpenAI's 80 templates for 1,000 images or more, else one.

    Source: open_clip.zero_shot_metadata, OPENAI_IMAGENET_TEMPLATES, from openai/CLIP Prompt_Engineering_for_ImageNet.ipynb.
    """
    return CROP_TEMPLATES if images < IMAGES_WORTH_AN_ENSEMBLE else class_set("imagenet1k").templates


def natural_labels(embedder: "Embedder", dataset: Dataset) -> Measured:
    """Return top1_probability (the mean of the winning label's; a description, not a score: nobody labelled these pictures), and
    the (images, classes) matrix `probabilities`.

    Raises: DataError when an image is broken or the towers' dims differ.
    """
    images = all_images(embedder, dataset)
    classes = embedder.classes(dataset.classes, (LABEL_TEMPLATE,))
    check_dims(embedder.encoder, images, classes)
    probabilities = softmax(LABEL_SCALE * cosines_of(images, classes))
    winners = Outcomes(images.ids, probabilities.max(axis=1))
    matrix = Matrix("probability", probabilities, images.ids, dataset.classes, LABEL_SCALE)
    return Measured(
        [score(TOP1_PROBABILITY, winners)],
        images,
        classes,
        {"probabilities": matrix},
        prompts=(LABEL_TEMPLATE,),
        options={"logit_scale": LABEL_SCALE},
    )


def softmax(logits: FloatArray) -> FloatArray:
    """Return (images, classes) float64 rows that sum to 1, from (images, classes) logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _label_sources(options: DataOptions) -> tuple[Source, ...]:
    """The eight natural pictures with CIFAR-100's class names, as torchvision spells them, with underscores ("sweet_pepper")."""

    def load() -> Dataset:
        classes = class_set("cifar100").folders
        return replace(packaged_dataset("natural"), name="natural_cifar100", classes=classes, prompts=(LABEL_TEMPLATE,))

    return (Source("natural_cifar100", load),)


def _folder_sources(options: DataOptions) -> tuple[Source, ...]:
    """One data set per folder of class folders, or other data with one label each, that was given with a name."""
    folders = (Source(name, partial(labelled_folder, name, root)) for name, root in options.folders(ZERO_SHOT_ROOT))
    return (*folders, *own_sources("zero_shot", options))


COCO_CROPS = Experiment(
    "coco_crops",
    METRICS,
    coco.crop_sources,
    partial(classification, templates=CROP_TEMPLATES),
    root=coco.COCO_ROOT,
    choices=(coco.CROP, HIGH_BIT_DEPTH),
    order=50,
)
COCO_MULTILABEL = Experiment(
    "coco_multilabel",
    (PRECISION,),
    partial(coco.sources, read=coco.coco_multilabel),
    multilabel,
    root=coco.COCO_ROOT,
    choices=(HIGH_BIT_DEPTH,),
    order=52,
)
NATURAL_LABELS = Experiment("natural_labels", (TOP1_PROBABILITY,), _label_sources, natural_labels, order=25)
ZERO_SHOT = Experiment("zero_shot", METRICS, _folder_sources, classification, ZERO_SHOT_ROOT, (HIGH_BIT_DEPTH,), 60)
MULTILABEL = Experiment(
    "multilabel",
    (PRECISION,),
    partial(own_sources, "multilabel"),
    multilabel,
    DATASET_ROOT,
    (HIGH_BIT_DEPTH,),
    62,
)
