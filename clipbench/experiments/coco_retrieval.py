"""COCO retrieval: images and captions find each other, as CLIP papers report it on Karpathy's 5,000 test images."""

from clipbench.data.coco import coco_retrieval as read_retrieval
from clipbench.data.dataset import Dataset
from clipbench.data.packaged import packaged_coco
from clipbench.experiments.experiment import Experiment
from clipbench.experiments.retrieval import SHOWN, retrieval_result
from clipbench.models.encoder import Encoder
from clipbench.result import Result
from clipbench.settings import Settings


def load_retrieval(settings: Settings) -> Dataset:
    """Return the captioned images of the folder that was given, else of the packaged miniature.

    Raises: DataUnavailableError when images or annotations are not there; DataError when they are malformed.
    """
    if settings.coco is not None:
        return read_retrieval(settings.coco)
    mini = packaged_coco()
    return read_retrieval(mini.root, mini.images)


def coco_retrieval(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return image_retrieval_recall@1/5/10 and text_retrieval_recall@1/5/10 (see `retrieval_result`)."""
    return retrieval_result("coco_retrieval", encoder, dataset, settings)


COCO_RETRIEVAL = Experiment("coco_retrieval", 54, load_retrieval, coco_retrieval, SHOWN)
