"""Retrieval: every caption looks for its image among all images, every image for one of its captions among all captions."""

import numpy as np
import numpy.typing as npt

from clipbench.data.dataset import Dataset
from clipbench.embed.images import embed_images
from clipbench.embed.texts import embed_texts
from clipbench.embeddings_file import SavedRows
from clipbench.errors import DataError
from clipbench.experiments.experiment import identity_of, protocol_of, rate
from clipbench.experiments.handled import check_dims, handled
from clipbench.metrics import RetrievalRanks, hits_at, retrieval_ranks
from clipbench.models.encoder import Encoder
from clipbench.result import Items, Metric, Result
from clipbench.settings import Settings
from clipbench.statistics import clustered_wilson_interval

KS = (1, 5, 10)
PROMPT = "{caption}"
SHOWN = ("image_retrieval_recall@1", "image_retrieval_recall@5", "text_retrieval_recall@1", "text_retrieval_recall@5")


def retrieval_result(experiment: str, encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return retrieval both ways over items with one caption or more, the captions as they stand.

    Metrics, each at k = 1, 5, 10: image_retrieval_recall@k (text query: is its image among the first k; interval by
    Wilson on the effective number, since captions of one image are alike) and text_retrieval_recall@k (image query: is
    one of its captions among the first k; Wilson). Ties count against the model. Where
    k is not below the number of images every query would hit: such a metric is absent.
    Text ids are "<image id>#<place of the caption>".

    Raises: DataError for fewer than two images that can be decoded, or towers of different dim.
    Source: LAION-AI/CLIP_benchmark, zeroshot_retrieval: captions without a prompt, a hit is at least one correct item.
    """
    embedded = embed_images(encoder, dataset.items, settings)
    if len(embedded.kept) < 2:
        raise DataError(
            f"{dataset.name}: {len(embedded.kept)} image can be decoded; expected two at least to choose from"
        )
    texts = [caption for item in embedded.kept for caption in item.captions]
    text_image = np.repeat(np.arange(len(embedded.kept)), [len(item.captions) for item in embedded.kept])
    embedded_texts = embed_texts(encoder, texts, settings)
    text_rows = embedded_texts.rows
    check_dims(encoder, embedded.rows, text_rows)
    ranks = retrieval_ranks(embedded.rows, text_rows, text_image)
    image_ids = [item.id for item in embedded.kept]
    text_ids = [f"{item.id}#{place}" for item in embedded.kept for place in range(len(item.captions))]
    outcomes = _outcomes(ranks, len(image_ids))
    identity, ids = identity_of(dataset, len(image_ids)), (tuple(image_ids), tuple(text_ids))
    settings.keep_rows(SavedRows(experiment, encoder.identity, identity, embedded.rows, text_rows, *ids, text_image))
    more = handled(encoder, dataset, embedded, embedded_texts)
    return Result(
        experiment=experiment,
        model=encoder.identity,
        dataset=identity,
        protocol=protocol_of(encoder, dataset, **({"prompts": PROMPT} | more)),
        metrics={name: _rate(name, hits, text_image) for name, hits in outcomes.items()},
        items=Items(
            outcomes=outcomes,
            id_lists={"image_ids": image_ids, "text_ids": text_ids},
            axes={name: "text_ids" if name.startswith("image") else "image_ids" for name in outcomes},
        ),
    )


def _outcomes(ranks: RetrievalRanks, images: int) -> dict[str, list[int]]:
    """0 or 1 by metric: image retrieval an entry a text, text retrieval an entry an image."""
    ways = (("image_retrieval_recall", ranks.text_to_image), ("text_retrieval_recall", ranks.image_to_text))
    return {f"{way}@{k}": hits_at(own, k).astype(int).tolist() for way, own in ways for k in KS if k < images}


def _rate(name: str, hits: list[int], text_image: npt.NDArray[np.int64]) -> Metric:
    if name.startswith("text"):
        return rate(hits)
    low, high = clustered_wilson_interval(hits, text_image)
    return Metric(float(np.mean(hits)), len(hits), low, high)
