"""What happened while items were embedded: handled on purpose, counted under `notes`; made otherwise than plainly, named.

Both land in a result's protocol.
"""

from pathlib import Path

from PIL import Image

from clipbench.data.dataset import Dataset
from clipbench.embed.images import EmbeddedImages
from clipbench.embed.texts import EmbeddedTexts
from clipbench.errors import DataError
from clipbench.models.encoder import Encoder, Rows
from clipbench.result import JsonObject

GREYSCALE = frozenset({"1", "L", "LA", "La", "I", "I;16", "F"})
NAMES_SHOWN = 20


def handled(encoder: Encoder, dataset: Dataset, embedded: EmbeddedImages, texts: EmbeddedTexts) -> JsonObject:
    """Return {"notes": counts, "shortcuts": names, "execution": counts} for `protocol_of`.

    Where an image was left out also {"broken_images": file names}. `execution` says of images and of texts how many rows were
    shared, cached and checked against the plain call, and how far these were from it (`embed.rows.Made`).

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
    truncated = encoder.count_truncated(texts.texts)
    if truncated is not None:
        notes["truncated_texts"] = truncated
    shortcuts = sorted(embedded.made.shortcuts | texts.made.shortcuts)
    execution = {"images": embedded.made.to_json(), "texts": texts.made.to_json()}
    return {"notes": notes, "shortcuts": shortcuts, "execution": execution} | (
        {"broken_images": [p.name for p in lost[:NAMES_SHOWN]]} if lost else {}
    )


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
