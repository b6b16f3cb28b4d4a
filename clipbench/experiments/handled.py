"""What was handled on purpose while items were embedded: counted in a result's protocol, under `notes`."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from clipbench.data.dataset import Dataset
from clipbench.embed.images import EmbeddedImages
from clipbench.errors import DataError
from clipbench.models.encoder import Encoder, Rows
from clipbench.result import JsonObject

GREYSCALE = frozenset({"1", "L", "LA", "La", "I", "I;16", "F"})
NAMES_SHOWN = 20


def handled(encoder: Encoder, dataset: Dataset, embedded: EmbeddedImages, texts: Sequence[str]) -> JsonObject:
    """Return {"notes": counts}, for `protocol_of`; and {"broken_images": file names} where an image was left out.

    Beside the data set's own counts: broken_images (files that cannot be decoded, left out with all their items),
    greyscale_images and cmyk_images (files, expanded to RGB), truncated_texts (longer than the context, cut by the
    tokenizer; absent where the encoder cannot tell).
    """
    kept = {item.id for item in embedded.kept}
    lost = list(dict.fromkeys(item.image.path for item in dataset.items if item.id not in kept))
    modes = [_stored_mode(path) for path in dict.fromkeys(item.image.path for item in embedded.kept)]
    notes = dict(dataset.notes) | {
        "broken_images": len(lost),
        "greyscale_images": sum(mode in GREYSCALE for mode in modes),
        "cmyk_images": sum(mode == "CMYK" for mode in modes),
    }
    truncated = encoder.count_truncated(texts)
    if truncated is not None:
        notes["truncated_texts"] = truncated
    return {"notes": notes} | ({"broken_images": [p.name for p in lost[:NAMES_SHOWN]]} if lost else {})


def check_dims(encoder: Encoder, images: Rows, texts: Rows) -> None:
    """Raises: DataError when images (images, dim) and texts (texts, dim) have different dims: no cosine is defined."""
    if images.shape[1] != texts.shape[1]:
        raise DataError(
            f"{encoder.identity.name} gives texts of dim {texts.shape[1]} and images of dim {images.shape[1]}; "
            f"a dual encoder gives both the same dim"
        )


def _stored_mode(path: Path) -> str:
    """The file's own colour mode, read off its header; "" for what Pillow does not open (DICOM)."""
    try:
        with Image.open(path) as image:
            return image.mode
    except OSError:
        return ""
