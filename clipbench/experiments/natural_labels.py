"""Labels on natural images: the study's eight pictures against the 100 CIFAR-100 class names, as the notebook ends.

Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb, "Zero-Shot Image Classification": softmax(100 x cosine). The
notebook takes the names as torchvision spells them, with underscores ("sweet_pepper"), and so do the published figures.
"""

from dataclasses import replace

import numpy as np

from clipbench.data.dataset import Dataset
from clipbench.data.folders import class_set
from clipbench.data.packaged import packaged_dataset
from clipbench.embed.images import embed_images
from clipbench.errors import DataError
from clipbench.experiments.classification import class_embeddings
from clipbench.experiments.experiment import Experiment, identity_of, mean, protocol_of
from clipbench.experiments.handled import check_dims, handled
from clipbench.models.encoder import Encoder
from clipbench.result import FloatArray, Items, Result
from clipbench.settings import Settings

TEMPLATE = "This is a photo of a {}"
SCALE = 100.0


def load_labels(settings: Settings) -> Dataset:
    """Return the eight natural pictures with the 100 class names. Raises: DataUnavailableError without scikit-image."""
    natural = packaged_dataset("natural")
    names = class_set("cifar100").folders
    return replace(natural, name="natural_cifar100", classes=names, protocol={"prompts": TEMPLATE})


def natural_labels(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return top1_probability (the mean of the winning label's; a description, not a score: nobody labelled these pictures).

    Arrays: probabilities (images, classes), rows in the order of `items.ids`, columns of the protocol's `classes`.

    Raises: DataError when an image is broken or the towers' dims differ.
    """
    embedded = embed_images(encoder, dataset.items, settings)
    if embedded.broken:
        raise DataError(
            f"{dataset.name}: {len(embedded.broken)} of {len(dataset)} images are broken: {embedded.broken[0]}"
        )
    labels = class_embeddings(encoder, dataset.classes, (TEMPLATE,), settings)
    check_dims(encoder, embedded.rows, labels.rows)
    probabilities = softmax(SCALE * embedded.rows.astype(np.float64) @ labels.rows.astype(np.float64).T)
    winners = probabilities.max(axis=1)
    more = handled(encoder, dataset, embedded, labels.texts)
    return Result(
        experiment="natural_labels",
        model=encoder.identity,
        dataset=identity_of(dataset, len(dataset)),
        protocol=protocol_of(encoder, dataset, logit_scale=SCALE, classes=list(dataset.classes), **more),
        metrics={"top1_probability": mean(winners, settings.seed)},
        items=Items(ids=tuple(i.id for i in dataset.items), outcomes={"top1_probability": winners.tolist()}),
        arrays={"probabilities": probabilities},
    )


def softmax(logits: FloatArray) -> FloatArray:
    """Return (images, classes) float64 rows that sum to 1, from (images, classes) logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return shares


NATURAL_LABELS = Experiment("natural_labels", 25, load_labels, natural_labels, ("top1_probability",))
