"""Natural images: the text-image cosine matrix of eight scikit-image pictures, whose diagonal should win.

Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb; the study's second experiment.
"""

from dataclasses import replace

from clipbench.data.dataset import Dataset
from clipbench.data.packaged import packaged_dataset
from clipbench.experiments.experiment import Experiment
from clipbench.experiments.matching import SHOWN, cosine_matrix, matched_rows, matching_result
from clipbench.models.encoder import Encoder
from clipbench.result import Result
from clipbench.settings import Settings


def load_natural(settings: Settings) -> Dataset:
    """Return the eight pictures of the study. Raises: DataUnavailableError when scikit-image is not installed."""
    return packaged_dataset("natural")


def natural(encoder: Encoder, dataset: Dataset, settings: Settings) -> Result:
    """Return the matching result; for weights from a path also the matrix with the other activation.

    The arrays image_rows and text_rows are for the probe: a session puts them there and takes them off the result.
    A checkpoint does not say which activation it was trained with, and loading it with the wrong one costs points without an
    error (open_clip issues 771 and 1109). Judging compares the two matrices.
    """
    rows = matched_rows(encoder, dataset, settings)
    result = matching_result("natural", encoder, dataset, settings, rows)
    result = replace(result, arrays={**result.arrays, "image_rows": rows[0], "text_rows": rows[1]})
    swapped = encoder.other_activation()
    if swapped is None:
        return result
    with swapped as other:
        arrays = {**result.arrays, "similarity_other_activation": cosine_matrix(encoder, dataset, settings)}
    return replace(result, arrays=arrays, protocol={**result.protocol, "other_activation": other})


NATURAL = Experiment("natural", 20, load_natural, natural, SHOWN)
