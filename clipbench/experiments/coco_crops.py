"""COCO crops: zero-shot classification of ground-truth boxes over the 80 classes; the study's fourth experiment.

Source: SunzeY/AlphaCLIP@e5676c9, "COCO crop": every annotation, the 1.5 x square with white padding, one prompt.
"""

from clipbench.data.coco import coco_crops as read_crops
from clipbench.data.dataset import Dataset
from clipbench.data.packaged import packaged_coco
from clipbench.experiments.classification import SHOWN, classification_result
from clipbench.experiments.experiment import Experiment
from clipbench.models.encoder import Encoder
from clipbench.result import Result
from clipbench.settings import Settings

TEMPLATES = ("a photo of a {}.",)
"""Source: SunzeY/AlphaCLIP@e5676c9 train/train_grit_1m+mim.py, the prompt of the published figure."""


def load_crops(settings: Settings) -> Dataset:
    """Return the boxes of the folder that was given, else of the packaged miniature, cut as `settings.coco_crop` says.

    Raises: DataUnavailableError when images or annotations are not there; DataError when they are malformed.
    """
    if settings.coco is not None:
        return read_crops(settings.coco, settings.coco_crop)
    mini = packaged_coco()
    return read_crops(mini.root, settings.coco_crop, mini.images)


def coco_crops(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return acc1, acc5 and mean_per_class_recall of the boxes, with the confusion matrix (see `classification_result`)."""
    return classification_result("coco_crops", encoder, dataset, TEMPLATES, settings)


COCO_CROPS = Experiment("coco_crops", 50, load_crops, coco_crops, SHOWN)
