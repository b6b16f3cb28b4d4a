"""Fakes: encoders whose answers are known, small real models with random weights, and data sets made on the spot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.embed.embedder import Embedder
from clipbench.experiments import experiment, result_of
from clipbench.experiments.matching import matching_answers, matching_scores
from clipbench.experiments.model_card import MODEL_CARD
from clipbench.metrics import ranked
from clipbench.models.device import Resources
from clipbench.models.encoder import CustomEncoder, Encoder
from clipbench.options import Options
from clipbench.types import Answers, DatasetIdentity, Matrix, ModelIdentity, Protocol, Result, Score

TINY_VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
TINY_RESNET = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


class ColourEncoder:
    """Sees the mean colour of an image and reads colour names: right by construction on `colour_dataset`."""

    names = ("red", "green", "blue", "white")
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(image, dtype=np.float64).mean(axis=(0, 1)) - 100.0 for image in images])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        known = dict(zip(self.names, self.colours, strict=True))
        return np.stack([np.array(next(c for n, c in known.items() if n in text)) - 100.0 for text in texts])


class NanEncoder(ColourEncoder):
    """Gives NaN for every image."""

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.full((len(images), 3), np.nan)


def custom(wrapped: object, name: str = "fake") -> CustomEncoder:
    """Return an object as an encoder of the suite."""
    return CustomEncoder(wrapped, name)


def measure(name: str, encoder: Encoder, dataset: Dataset, optimize: bool = True, **resources: Any) -> Result:
    """Return the result of the experiment of that name, encoded with these resources."""
    one = experiment(name)
    measured = one.measure(Embedder(encoder, Resources(**resources), optimize=optimize), dataset)
    return result_of(one, encoder, dataset, measured)


def load(name: str, **data: Any) -> Dataset:
    """Return the first data set of the experiment of that name, with the folders and choices of `Options.from_kwargs`."""
    return experiment(name).sources(Options.from_kwargs(**data).data)[0].load()


def colour_dataset(folder: Path, names: Sequence[str] = ColourEncoder.names) -> Dataset:
    """Return a data set of one-coloured PNG files with their colour's name as caption."""
    colours = dict(zip(ColourEncoder.names, ColourEncoder.colours, strict=True))
    items = []
    for name in names:
        path = folder / f"{name}.png"
        Image.new("RGB", (40, 30), colours[name]).save(path)
        items.append(Item(name, ImageRef(path), (f"a {name} picture",)))
    return Dataset("colours", tuple(items), "made by the tests", prompts=("This is {caption}",))


def confusion(scores: np.ndarray, labels: Sequence[int]) -> list[list[int]]:
    """Return the confusion counts of (queries, candidates) scores, as their answers give them."""
    ids, names = (tuple(str(k) for k in range(n)) for n in np.shape(scores))
    return (
        Answers(ids, names, *ranked(scores, labels).taken_for, np.asarray(labels, dtype=np.int32)).confusion().tolist()
    )


def matching(
    similarity: np.ndarray, ids: Sequence[str], model: str = "ViT-B/32", pretrained: str = "openai", **identity: str
) -> Result:
    """Return a natural result with this (texts, images) matrix, and the scores and answers that follow from it."""
    cosines, names = np.asarray(similarity, dtype=np.float64), tuple(ids)
    return Result(
        experiment="natural",
        model=ModelIdentity(model, pretrained, **{"preprocessing": "test", **identity}),
        dataset=DatasetIdentity("natural", "0" * 64, len(names)),
        protocol=Protocol(("This is {caption}",)),
        scores={found.spec.name: found for found in matching_scores(cosines, names)},
        matrices={"similarity": Matrix("cosine", cosines, names, names)},
        answers=matching_answers(cosines, names),
    )


def card(model: str, pretrained: str = "random:0", **values: int) -> Result:
    """Return a model card result with these values."""
    return Result(
        experiment="model_card",
        model=ModelIdentity(model, pretrained, preprocessing="test"),
        dataset=DatasetIdentity("none", "", 0),
        protocol=Protocol(),
        scores={spec.name: Score(spec, values[spec.name], 1) for spec in MODEL_CARD.metrics if spec.name in values},
    )
