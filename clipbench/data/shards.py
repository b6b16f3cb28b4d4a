"""webdataset shards as CLIP_benchmark publishes them: `SPLIT/nshards.txt`, `SPLIT/0.tar` ..., beside the splits `classnames.txt`,
`zeroshot_classification_templates.txt` and `dataset_type.txt`.

A shard is a tar of samples; what is called alike up to the first dot is one: a picture with its label (.cls, a number) or its captions
(.txt, one a line). Shards are read by the standard library, uncompressed, and nothing in them is run or taken for a path. Samples are
counted against what the publisher says: a run on one shard of five looks like any other (CLIP_benchmark issue 88).

Source: LAION-AI/CLIP_benchmark@48de38c README, "Creating webdatasets", and clip_benchmark/datasets/builder.py (build_wds_dataset).
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.data.folders import DEFAULT_TEMPLATES, IMAGE_SUFFIXES
from clipbench.errors import ClipbenchError, DataError
from clipbench.paths import LARGEST_SETTINGS_BYTES, open_data, read_json, read_text

SPLITS = ("test", "val", "validation")
CLASSES, TEMPLATES, TYPE, COUNT = (
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
    "nshards.txt",
)
LARGEST_SHARD_BYTES = 1 << 36
LARGEST_PICTURE_BYTES, LARGEST_TEXT_BYTES = 1 << 28, 1 << 20
_COUNTS = ("count.txt", "__len__")


@dataclass(frozen=True)
class Part:
    """A file in a shard: where its bytes are."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return its bytes."""
        with open_data(self.shard, LARGEST_SHARD_BYTES) as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Shards:
    """The samples of one split: the parts of each by its suffix, by the sample's id."""

    root: Path
    split: Path
    samples: Mapping[str, Mapping[str, Part]]
    is_retrieval: bool


def is_shards(root: Path) -> bool:
    """Return whether it is a shard, or a folder with some, or with a split of some."""
    return root.suffix == ".tar" if root.is_file() else _split_of(root) is not None


def _split_of(root: Path) -> Path | None:
    folders = [root, *(root / name for name in SPLITS)]
    return next((f for f in folders if f.is_dir() and ((f / COUNT).is_file() or any(f.glob("*.tar")))), None)


def read_shards(root: Path) -> Shards:
    """Return the samples of a split; headers are read, no picture.

    Raises: DataError for shards or samples that are missing by the publisher's count, a shard that is damaged or ends early, a sample
    without a picture, and one without a label or captions.
    """
    if root.is_file():
        root, split, shards = root.parent, root.parent, [root]
    else:
        split = _split_of(root) or root
        shards = sorted(
            split.glob("*.tar"), key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)]
        )
        _check_number(split, shards)
    kind = (_lines(root / TYPE) or [""])[0]
    if kind not in ("", "retrieval", "classification"):
        raise DataError(f"{root / TYPE} says {kind!r}; expected retrieval, or no such file for one label each")
    found = {shard: _samples(shard) for shard in shards}
    _check_counts(split, {shard.name: len(samples) for shard, samples in found.items()})
    called = [key for samples in found.values() for key in samples]
    is_unique = len(set(called)) == len(called)
    samples = {
        key if is_unique else f"{shard.stem}/{key}": parts for shard, own in found.items() for key, parts in own.items()
    }
    if not samples:
        raise DataError(f"{split} holds {len(shards)} shard(s) and no sample; fetch them again")
    wanted = "txt" if kind == "retrieval" else "cls"
    if kind == "" and not (root / CLASSES).is_file() and not any("cls" in parts for parts in samples.values()):
        wanted = "txt"
    for key, parts in samples.items():
        if _picture(parts) is None:
            raise DataError(
                f"{split}: the sample {key} has {', '.join(parts)} and no picture; expected one of .webp, .png, .jpg"
            )
        if wanted not in parts:
            raise DataError(
                f"{split}: the sample {key} has {', '.join(parts)} and no .{wanted}; fetch the shards again"
            )
    return Shards(root, split, samples, wanted == "txt")


def _check_number(split: Path, shards: list[Path]) -> None:
    said = _number(split / COUNT)
    if said is not None and said != len(shards):
        present = {shard.stem for shard in shards}
        absent = [f"{k}.tar" for k in range(said) if str(k) not in present and f"{k:06d}" not in present][:3]
        raise DataError(
            f"{split / COUNT} says {said} shards, and {len(shards)} are there"
            + (f" ({', '.join(absent)} missing)" if absent else "")
            + "; fetch the rest, for a part of a data set is another one"
        )


def _check_counts(split: Path, counts: Mapping[str, int]) -> None:
    """Raises: DataError where a publisher's count of samples, by shard or of all, is another."""
    sizes = split / "sizes.json"
    stated = read_json(sizes, LARGEST_SETTINGS_BYTES) if sizes.is_file() else {}
    for name, n in counts.items():
        if isinstance(stated, dict) and name in stated and stated[name] != n:
            raise DataError(f"{split / name} holds {n:,} samples, and {sizes.name} says {stated[name]}; fetch it again")
    for file in _COUNTS:
        said = _number(split / file)
        if said is not None and said != sum(counts.values()):
            raise DataError(
                f"{split} holds {sum(counts.values()):,} samples, and {file} says {said:,}; fetch them again"
            )


def _number(path: Path) -> int | None:
    if not path.is_file():
        return None
    text = read_text(path, LARGEST_SETTINGS_BYTES).strip()
    if not text.isdecimal() or len(text) > 12:
        raise DataError(f"{path} is {text[:40]!r}; expected a whole number")
    return int(text)


def _samples(shard: Path) -> dict[str, dict[str, Part]]:
    """The parts of each sample by suffix. Raises: DataError for a shard that is damaged, or ends early."""
    found: dict[str, dict[str, Part]] = {}
    with open_data(shard, LARGEST_SHARD_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    if not info.isreg() or info.name.startswith("__"):
                        continue
                    folder, _, name = info.name.rpartition("/")
                    key, _, suffix = name.partition(".")
                    parts = found.setdefault(f"{folder}/{key}".lstrip("./"), {})
                    largest = LARGEST_PICTURE_BYTES if f".{suffix.lower()}" in IMAGE_SUFFIXES else LARGEST_TEXT_BYTES
                    if info.size > largest:
                        raise DataError(
                            f"{shard}: {info.name!r} has {info.size:,} bytes, and at most {largest:,} are read"
                        )
                    if suffix.lower() in parts:
                        raise DataError(f"{shard} holds {info.name!r} twice; fetch it again")
                    parts[suffix.lower()] = Part(shard, info.offset_data, info.size)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            if isinstance(error, ClipbenchError):
                raise
            raise DataError(f"{shard} is no tar, or damaged ({error}); fetch it again") from error
        file.seek(min(end, size))
        if end + 2 * tarfile.BLOCKSIZE > size or any(file.read(2 * tarfile.BLOCKSIZE)):
            raise DataError(f"{shard} ends early, after {len(found):,} samples and {size:,} bytes; fetch it again")
    return found


def _picture(parts: Mapping[str, Part]) -> str | None:
    return next((suffix for suffix in parts if f".{suffix}" in IMAGE_SUFFIXES), None)


def shard_dataset(name: str, shards: Shards, cache: Path) -> Dataset:
    """Return the data set, its pictures unpacked once into a folder of `cache` that is called after the shards.

    Raises: DataError for a label that is no number or has no class name.
    """
    folder = cache / "shards" / _fingerprint(shards)
    classes = tuple(_lines(shards.root / CLASSES)) if not shards.is_retrieval else ()
    templates = tuple(line.replace("{c}", "{}") for line in _lines(shards.root / TEMPLATES)) or DEFAULT_TEMPLATES
    if wrong := [t for t in templates if t.count("{}") != 1]:
        raise DataError(
            f"{shards.root / TEMPLATES} has the template {wrong[0]!r}; expected one {{c}} where the class goes"
        )
    items = tuple(_items(shards, folder, classes))
    if not classes and not shards.is_retrieval:
        highest = max(item.labels[0] for item in items)
        raise DataError(f"{shards.root} has labels up to {highest} and no {CLASSES}; put the names there, one a line")
    prompts = () if shards.is_retrieval else templates
    source = f"webdataset shards {shards.split}"
    return Dataset(name, items, source, classes, prompts, {"split": shards.split.name})


def _items(shards: Shards, folder: Path, classes: tuple[str, ...]) -> Iterator[Item]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (key, parts) in enumerate(shards.samples.items()):
        suffix = _picture(parts) or ""
        path = folder / f"{number}.{suffix}"
        if not (path.is_file() and path.stat().st_size == parts[suffix].size):
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_bytes(parts[suffix].read())
            partial.replace(path)
        if shards.is_retrieval:
            captions = tuple(t.strip() for t in _decoded(parts["txt"], key).splitlines() if t.strip())
            if not captions:
                raise DataError(f"{shards.split}: the sample {key} has no caption; fetch the shards again")
            yield Item(key, ImageRef(path), captions)
            continue
        text = _decoded(parts["cls"], key).strip()
        if not text.isdecimal() or (classes and int(text[:9]) >= len(classes)):
            expected = f"a number below {len(classes)}, the lines of {CLASSES}" if classes else "a number"
            raise DataError(f"{shards.split}: the sample {key} has the label {text[:40]!r}; expected {expected}")
        yield Item(key, ImageRef(path), labels=(int(text[:9]),))


def _decoded(part: Part, key: str) -> str:
    try:
        return part.read().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{part.shard}: a text of the sample {key} is not UTF-8; fetch it again") from error


def _lines(path: Path) -> list[str]:
    return (
        [line for line in read_text(path, LARGEST_SETTINGS_BYTES).splitlines() if line.strip()]
        if path.is_file()
        else []
    )


def _fingerprint(shards: Shards) -> str:
    files = sorted({part.shard for parts in shards.samples.values() for part in parts.values()})
    about = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
