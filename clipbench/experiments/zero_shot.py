"""Zero-shot classification of any folder of class folders (`--zero-shot NAME=ROOT`); ImageNet-1k and CIFAR ship as rows.

One result a folder, on the data set NAME; `zero_shot:NAME` asks for it.
Source: openai/CLIP data/prompts.md and notebooks/Prompt_Engineering_for_ImageNet.ipynb.
"""

import json
from dataclasses import replace

from clipbench.data.dataset import Dataset
from clipbench.data.folders import class_set, labelled_folder
from clipbench.errors import UsageError
from clipbench.experiments.classification import SHOWN, classification_result
from clipbench.experiments.experiment import Experiment
from clipbench.models.encoder import Encoder
from clipbench.result import Result
from clipbench.settings import Settings


def load_folder(name: str, settings: Settings) -> Dataset:
    """Return the labelled folder that was given as `name`; its templates stand in its protocol, as JSON.

    Raises: UsageError when no folder was given under that name; DataUnavailableError and DataError as `labelled_folder`.
    """
    root = dict(settings.zero_shot).get(name)
    if root is None:
        given = ", ".join(known for known, _ in settings.zero_shot) or "none"
        raise UsageError(
            f"zero_shot:{name}: no folder was given under that name (given: {given}); use --zero-shot {name}=ROOT"
        )
    dataset = labelled_folder(name, root)
    templates = class_set(name, root).templates
    return replace(dataset, protocol={**dataset.protocol, "prompts": json.dumps(templates)})


def load_unnamed(settings: Settings) -> Dataset:
    """Raises: UsageError: each folder is an experiment of its own, zero_shot:NAME."""
    raise UsageError("zero_shot: name the folder, as in zero_shot:NAME with --zero-shot NAME=ROOT")


def zero_shot(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return acc1, acc5 and mean_per_class_recall of the folder's images (see `classification_result`)."""
    templates = json.loads(dataset.protocol["prompts"])
    return classification_result("zero_shot", encoder, dataset, templates, settings)


ZERO_SHOT = Experiment(
    "zero_shot",
    60,
    load_unnamed,
    zero_shot,
    SHOWN,
    load_part=load_folder,
    exists=lambda settings: bool(settings.zero_shot),
)
