"""COCO multi-label: how well does each class's text rank all images by whether they show the class?

Source: SPARC (CVPR 2025), table 2, row ZSCLIP: one cosine an image and class, average precision a class, their mean.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clipbench.data.coco import coco_multilabel as read_multilabel
from clipbench.data.dataset import Dataset, Item
from clipbench.data.packaged import packaged_coco
from clipbench.embed.images import embed_images
from clipbench.errors import DataError
from clipbench.experiments.classification import class_embeddings, class_ids
from clipbench.experiments.experiment import Experiment, identity_of, mean, protocol_of
from clipbench.experiments.handled import check_dims, handled
from clipbench.metrics import average_precision
from clipbench.models.encoder import Encoder
from clipbench.result import Items, Result
from clipbench.settings import Settings

ONE_TEMPLATE = ("a photo of a {}.",)
IMAGES_WORTH_AN_ENSEMBLE = 1000
"""From this many images on, the 80 templates of the published protocol are ensembled; under it 6,400 texts would cost
many times what the images do, for a number that no published one can be compared with."""


def load_multilabel(settings: Settings) -> Dataset:
    """Return the images of the folder that was given, else of the packaged miniature, with the classes they show.

    Raises: DataUnavailableError when images or annotations are not there; DataError when they are malformed.
    """
    if settings.coco is not None:
        return read_multilabel(settings.coco)
    mini = packaged_coco()
    return read_multilabel(mini.root, mini.images)


def templates_for(images: int) -> tuple[str, ...]:
    """Return OpenAI's 80 templates for 1,000 images or more, else one.

    Source: open_clip.zero_shot_metadata, OPENAI_IMAGENET_TEMPLATES, from openai/CLIP Prompt_Engineering_for_ImageNet.ipynb.
    """
    if images < IMAGES_WORTH_AN_ENSEMBLE:
        return ONE_TEMPLATE
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES)


def coco_multilabel(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return mean_average_precision over the classes that an image shows; its items are classes (bootstrap over them).

    Among tied images those without the class come first. Classes without an image are left out and counted.

    Raises: DataError when no image that can be decoded shows a class, or the towers' dims differ.
    """
    templates = templates_for(len(dataset))
    embedded = embed_images(encoder, dataset.items, settings)
    classifier = class_embeddings(encoder, dataset.classes, templates, settings)
    check_dims(encoder, embedded.rows, classifier.rows)
    relevant = shown_classes(embedded.kept, len(dataset.classes))
    if not relevant.any():
        raise DataError(
            f"{dataset.name}: no image shows any of the {len(dataset.classes)} classes; nothing can be ranked"
        )
    found = average_precision(embedded.rows.astype(np.float64) @ classifier.rows.astype(np.float64).T, relevant)
    names = class_ids(dataset.classes)
    more = handled(encoder, dataset, embedded, classifier.texts)
    more["notes"]["classes_without_items"] = len(dataset.classes) - len(found.classes)
    return Result(
        experiment="coco_multilabel",
        model=encoder.identity,
        dataset=identity_of(dataset, len(embedded.kept)),
        protocol=protocol_of(encoder, dataset, prompts=list(templates), **more),
        metrics={"mean_average_precision": mean(found.values, settings.seed)},
        items=Items(
            ids=tuple(names[c] for c in found.classes),
            outcomes={"mean_average_precision": found.values.tolist()},
        ),
    )


def shown_classes(items: Sequence[Item], n_classes: int) -> npt.NDArray[np.bool_]:
    """Return (images, classes) bool: does the image show the class?"""
    relevant = np.zeros((len(items), n_classes), dtype=bool)
    for row, item in enumerate(items):
        relevant[row, list(item.labels)] = True
    return relevant


COCO_MULTILABEL = Experiment("coco_multilabel", 52, load_multilabel, coco_multilabel, ("mean_average_precision",))
