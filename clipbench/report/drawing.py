"""Which figures a result has: told by the arrays it carries, never by the experiment's name."""

from collections.abc import Mapping

from PIL import Image

from clipbench.data.dataset import Dataset, Item
from clipbench.errors import ClipbenchError
from clipbench.report.figures import figure_name, matrix_figure
from clipbench.report.figures_classes import confusion_figure, labels_figure
from clipbench.report.summary import model_label
from clipbench.result import Result


def figures_of(result: Result, dataset: Dataset | None) -> list[tuple[str, bytes]]:
    """Return (file name, PNG) of each figure of a result.

    A square `similarity` of the items is drawn as the notebook's matrix, `confusion` as a confusion matrix, `probabilities`
    as top-5 bars. Pictures and captions come from `dataset` when it is the one that was measured; without it ids stand in.
    """
    label, ids, arrays = model_label(result.model), result.items.ids, result.arrays
    of = f"{result.experiment}-{result.dataset.name}" if result.experiment == "zero_shot" else result.experiment
    name = figure_name(of, label)
    names = [str(c) for c in (result.protocol.get("classes") or ())]
    if "similarity" in arrays and arrays["similarity"].shape == (len(ids), len(ids)):
        title = f"{result.experiment}: {label}, cosine of texts (rows) and images (columns)"
        return [
            (
                name,
                matrix_figure(arrays["similarity"], ids, _captions(result, dataset), _pictures(result, dataset), title),
            )
        ]
    if "confusion" in arrays and arrays["confusion"].shape == (len(names), len(names)):
        title = f"{result.experiment}: {label} on {result.dataset.name}, n={result.dataset.n:,}"
        return [(name, confusion_figure(arrays["confusion"], names, title))]
    if "probabilities" in arrays and arrays["probabilities"].shape == (len(ids), len(names)):
        title = f"{result.experiment}: {label}, five most probable of {len(names)} labels"
        return [(name, labels_figure(arrays["probabilities"], ids, names, _pictures(result, dataset), title))]
    return []


def _captions(result: Result, dataset: Dataset | None) -> Mapping[str, str]:
    return {item.id: item.captions[0] for item in _measured(result, dataset) if item.captions}


def _pictures(result: Result, dataset: Dataset | None) -> Mapping[str, Image.Image]:
    pictures = {}
    for item in _measured(result, dataset):
        try:
            pictures[item.id] = item.image.open()
        except ClipbenchError:
            continue  # the id stands in for a picture that cannot be opened any more
    return pictures


def _measured(result: Result, dataset: Dataset | None) -> tuple[Item, ...]:
    return dataset.items if dataset and dataset.fingerprint == result.dataset.fingerprint else ()
