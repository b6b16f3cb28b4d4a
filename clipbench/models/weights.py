"""Fetching the weights a tag names: from the hub or the maker's address, or only from the caches when offline."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbench.data.dataset import file_sha256
from clipbench.errors import CheckpointError, WeightsUnavailableError


def go_offline() -> None:
    """Keep the hub's client, and what builds on it, from opening any connection in this process."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]  # a module's constant
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # read once at its import: too late for the variable
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]  # a module's constant


def fetch_tag(model: str, tag: str, configuration: Mapping[str, Any], offline: bool) -> Path:
    """Return the checkpoint file of a tag, downloaded by open_clip or found in a cache; `offline` looks in caches only.

    `configuration` is open_clip's own `get_pretrained_cfg`.

    Raises: WeightsUnavailableError naming the tag, where it was looked for, and the ways out.
    """
    looked: list[str] = []
    if cached := next(_cached(configuration, looked), None):
        return cached
    reason = "offline"
    if not offline:
        import open_clip.pretrained

        try:
            return Path(open_clip.pretrained.download_pretrained(dict(configuration)))
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            if "SHA256" in reason:
                raise CheckpointError(
                    f"the weights of {model} with the tag {tag!r} arrived damaged: {reason}"
                ) from error
    raise WeightsUnavailableError(
        f"no weights for {model} with the tag {tag!r} ({reason}); looked in {'; '.join(looked)}. "
        f"Ways out: connect once and run again, give a file with --pretrained PATH, or use --model lite"
    )


def fetch_repository(location: str, offline: bool, patterns: Sequence[str]) -> Path:
    """Return the folder with those files of a hub's ORG/REPO[@REVISION] that match, fetched or found in the cache.

    Raises: WeightsUnavailableError when it cannot be had, with the ways out.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, revision = location.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(patterns), local_files_only=offline
        )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = "offline" if offline else " ".join(str(error).split())[:300]
        raise WeightsUnavailableError(
            f"{location} cannot be had from the hub ({reason}), and is not in its cache; connect once, or give a folder"
        ) from error
    return Path(found)


def is_cached(configuration: Mapping[str, Any]) -> bool:
    """Return whether a tag's file lies in a cache; whether it is whole is checked when it is loaded."""
    return any(path.is_file() for path in _places(configuration, []))


def _cached(configuration: Mapping[str, Any], looked: list[str]) -> Iterator[Path]:
    """The tag's files that are already here: in the hub's cache, then in OpenAI's own (~/.cache/clip)."""
    address = str(configuration.get("url", ""))
    for file in _places(configuration, looked):
        # OpenAI's addresses carry the file's SHA-256: a file cut short by a broken download is no cached copy.
        is_pinned = "openaipublic" in address and file.name == address.rsplit("/", 1)[-1]
        if file.is_file() and (not is_pinned or file_sha256(file) == address.split("/")[-2]):
            yield file


def _places(configuration: Mapping[str, Any], looked: list[str]) -> Iterator[Path]:
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE

    location = str(configuration.get("hf_hub", ""))
    if location:
        repository, _, filename = location.rpartition("/")
        looked.append(f"{HF_HUB_CACHE} for {repository}")
        stem, _, suffix = filename.rpartition(".")
        names = [f"{stem}.safetensors", filename] if suffix in ("bin", "pth") else [filename]
        for name in names if filename else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]:
            found = huggingface_hub.try_to_load_from_cache(repository, name)
            if isinstance(found, str):
                yield Path(found)
    address = str(configuration.get("url", ""))
    if address:
        try:
            file = Path("~/.cache/clip").expanduser() / address.rsplit("/", 1)[-1]
        except RuntimeError:
            looked.append("~/.cache/clip, and this user has no home folder")
            return
        looked.append(str(file))
        yield file
