"""The model card: what is read off the live model. Source: openai/CLIP model-card.md; the study's first experiment."""

from clipbench.data.dataset import Dataset
from clipbench.experiments.experiment import METRIC_VERSION, Experiment
from clipbench.models.encoder import Encoder
from clipbench.models.zoo import CARD_METRICS
from clipbench.result import DatasetIdentity, Metric, Result
from clipbench.settings import Settings


def no_items(settings: Settings) -> Dataset:
    """Return the empty data set: a card needs no items."""
    return Dataset(name="none", items=(), source="a model card needs no items")


def model_card(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return params, params_image, params_text (counts), image_size (pixels), context_length (tokens), vocab_size, embed_dim.

    What an encoder does not state (your own, say) is absent.
    """
    return Result(
        experiment="model_card",
        model=encoder.identity,
        dataset=DatasetIdentity(dataset.name, "", 0),
        protocol={
            "preprocessing": encoder.preprocessing,
            "metric_version": METRIC_VERSION,
            "shortcuts": [],
            "prompts": [],
        },
        metrics={name: Metric(int(encoder.card[name]), 1) for name in CARD_METRICS if name in encoder.card},
    )


MODEL_CARD = Experiment("model_card", 10, no_items, model_card, ("params", "image_size", "embed_dim"))
