"""The model card: what is read off the live model. Source: openai/CLIP model-card.md; the study's first experiment."""

from typing import TYPE_CHECKING

from clipbench.data.dataset import DataOptions, Dataset, Source
from clipbench.experiments import Experiment, Measured
from clipbench.types import MetricSpec, Score

if TYPE_CHECKING:
    from clipbench.embed.embedder import Embedder

METRICS = tuple(
    MetricSpec(name, "count", "neither", headline=name in ("params", "image_size", "embed_dim"))
    for name in ("params", "params_image", "params_text", "image_size", "context_length", "vocab_size", "embed_dim")
)


def model_card(embedder: "Embedder", dataset: Dataset) -> Measured:
    """Return params, params_image, params_text (counts), image_size (pixels), context_length (tokens), vocab_size, embed_dim.

    What an encoder does not state (your own, say) is absent.
    """
    card = embedder.encoder.card
    return Measured([Score(spec, int(card[spec.name]), 1) for spec in METRICS if spec.name in card])


def _no_items(options: DataOptions) -> tuple[Source, ...]:
    return (Source("none", lambda: Dataset(name="none", items=(), source="a model card needs no items")),)


MODEL_CARD = Experiment("model_card", METRICS, _no_items, model_card, order=10)
