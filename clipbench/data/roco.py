"""ROCO in its published folder layout: radiology images with their captions.

Source: Pelka et al., Radiology Objects in COntext (ROCO), LABELS at MICCAI 2018 (https://github.com/razorx89/roco-dataset).
"""

from collections.abc import Mapping
from pathlib import Path

from clipbench.data.dataset import Dataset, Item, Root, count_links, find_images, required
from clipbench.errors import DataError, DataUnavailableError
from clipbench.paths import fixtures, read_text, read_toml

SPLIT = "train/radiology"
LAYOUT = f"ROCO's layout: {SPLIT}/captions.txt with one ID<tab>caption per line and {SPLIT}/images/ID.jpg"
SOURCE = "ROCO (Pelka et al. 2018), train/radiology, https://github.com/razorx89/roco-dataset"


def roco_study(root: Path) -> Dataset:
    """Return the study's own eight images with their captions, in the study's order (fixtures/roco_study.toml).

    `root` holds `train/radiology/`, or is that folder. No image is opened. Raises: DataUnavailableError when the layout is not there, or
    naming all that is missing of the eight; DataError for a malformed captions.txt.
    """
    study = read_toml(fixtures() / "roco_study.toml")
    folder = _split_folder(root)
    captions = _captions(folder / "captions.txt")
    items = _items(folder, {key: captions[key] for key in study["ids"] if captions.get(key)})
    present = {item.id for item in items}
    if missing := [key for key in study["ids"] if key not in present]:
        raise DataUnavailableError(
            f"{folder} lacks {len(missing)} of the study's {len(study['ids'])} images or their captions: "
            f"{', '.join(missing)}; expected {LAYOUT}"
        )
    return Dataset("roco_study", tuple(items), study["source"], options={"split": SPLIT})


def roco_split(root: Path) -> Dataset:
    """Return every captioned image of the split, in the order of ids.

    What captions.txt names but images/ lacks, and what has a blank caption, is dropped and counted; else as `roco_study`.

    Raises: DataUnavailableError when the layout is not there or none of the images is; DataError for a malformed captions.txt (with the
    line) or an id that leaves the folder.
    """
    folder = _split_folder(root)
    captions = _captions(folder / "captions.txt")
    written = {key: caption for key, caption in sorted(captions.items()) if caption}
    items = _items(folder, written)
    if not items:
        raise DataUnavailableError(
            f"none of the {len(captions)} images of captions.txt is in {folder}; expected {LAYOUT}"
        )
    exclusions = {
        "images_absent": len(written) - len(items),
        "blank_captions_dropped": len(captions) - len(written),
        "links_followed": count_links(item.image for item in items),
    }
    return Dataset("roco_radiology", tuple(items), SOURCE, options={"split": SPLIT}, exclusions=exclusions)


def _split_folder(root: Path) -> Path:
    inner = root / SPLIT
    folder = root if (root / "captions.txt").is_file() and not inner.is_dir() else inner
    if folder is inner:
        required(root, f"{SPLIT}/captions.txt", LAYOUT)
    required(folder, "images/", LAYOUT)
    return folder


def _captions(path: Path) -> dict[str, str]:
    """Caption by id. Lines end at a line feed only: captions hold other characters that Python takes for line ends."""
    captions: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        if not tab or not key.strip():
            raise DataError(f"{path}, line {number} is {line[:80]!r}; expected an id, a tab and a caption")
        if key.strip() in captions:
            raise DataError(f"{path}, line {number} repeats the id {key.strip()!r}; ids must be unique")
        captions[key.strip()] = caption.strip()
    return captions


def _items(folder: Path, captions: Mapping[str, str]) -> list[Item]:
    refs = find_images(folder / "images", "./", {key: f"{key}.jpg" for key in captions}, folder / "captions.txt")
    return [Item(key, refs[key], captions=(caption,)) for key, caption in captions.items() if key in refs]


ROCO_ROOT = Root(
    "roco",
    "ROCO in its published layout: the study's own medical images",
    check=lambda name, root: _split_folder(root),
)
