"""Every reader against files that are wrong inside: mutated where the format is parsed, not only where a checksum would tell.

JSON and TOML lose, swap and exchange values; zips and PNGs get their checksums anew; pickles lose and repeat steps; headers lie. Whatever
comes out is a value or one of our errors, within seconds and memory. CLIPBENCH_MUTATIONS=5000 asks for so many of each (default: 40).
"""

import copy
import io
import json
import os
import pickletools
import random
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from bounds import outcome
from fakes import matching
from PIL import Image

from clipbench.cli import main
from clipbench.data.coco import coco_crops, coco_multilabel, coco_retrieval
from clipbench.data.dataset import read_image
from clipbench.data.folders import class_set
from clipbench.errors import ClipbenchError
from clipbench.judge.tolerances import read_rules
from clipbench.models.checkpoint import read_checkpoint
from clipbench.options import declared_options
from clipbench.parts import write_part
from clipbench.paths import LARGEST_RUN_BYTES, fixtures
from clipbench.regression import EmbeddingRegression, EmbeddingsMovedError
from clipbench.resume import results_left
from clipbench.saved_rows import SavedRows, read_index, read_rows, write_rows
from clipbench.settings import read_settings
from clipbench.storage import dump_json, run_to_json
from clipbench.types import DatasetIdentity, ModelIdentity, Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded as Linux does it")

COUNT = int(os.environ.get("CLIPBENCH_MUTATIONS", "40"))
SECONDS_EACH = 5.0

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**40, 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"),
    "", " ", "\0", "x" * 5000, "\ud800", "\u202e\n::error::", "../../x", "/etc/passwd", "<i4", "O", [], {}, [[]], {"": {}}, [None], "猫",
)  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every value of a tree of lists and objects."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutated_tree(tree: Any, noise: random.Random) -> Any:
    """A copy with one to three values exchanged, dropped, repeated, swapped, or made something else."""
    tree = copy.deepcopy(tree)
    for _ in range(noise.randint(1, 3)):
        known = list(places(tree))
        if not known:
            break
        *above, key = noise.choice(known)
        parent = tree
        for step in above:
            parent = parent[step]
        act = noise.choice(("hostile", "hostile", "drop", "swap", "repeat", "wrap", "number"))
        if act == "drop":
            del parent[key]
        elif act == "swap":
            value = tree
            for step in noise.choice(known):
                inside = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
                value = value[step] if step in inside else None
            parent[key] = copy.deepcopy(value)
        elif act == "repeat" and isinstance(parent, list):
            parent += [parent[key]] * noise.choice((1, 3, 300))
        elif act == "wrap":
            parent[key] = noise.choice(([parent[key]], {"a": parent[key]}, str(parent[key])[:1000]))
        elif act == "number" and type(parent[key]) in (int, float):
            parent[key] = parent[key] * noise.choice((-1, 2, 1000, 1e300)) + noise.choice((0, 1))
        else:
            parent[key] = copy.deepcopy(noise.choice(HOSTILE))
    return tree


def mutated_bytes(content: bytes, noise: random.Random) -> bytes:
    """A copy with some bytes changed, or a piece cut out, repeated or moved."""
    found = bytearray(content)
    for _ in range(noise.choice((1, 1, 2, 8))):
        if not found:
            break
        start = noise.randrange(len(found))
        end = min(len(found), start + noise.choice((1, 2, 4, 8, 64)))
        act = noise.choice(("byte", "byte", "extreme", "cut", "repeat", "move", "short"))
        if act == "byte":
            found[start] = noise.randrange(256)
        elif act == "extreme":
            found[start:end] = noise.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - start)
        elif act == "cut":
            del found[start:end]
        elif act == "repeat":
            found[start:start] = found[start:end]
        elif act == "move":
            other = noise.randrange(len(found))
            found[other : other + end - start] = found[start:end]
        elif noise.random() < 0.3:
            del found[start:]
    return bytes(found)


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def run_file(folder: Path) -> Callable[[random.Random], bytes]:
    run = Run(
        {"machine": {"cpu": "x"}, "software": {"python": "3"}},
        (matching(np.eye(8), tuple(f"i{k}" for k in range(8)), "RN50"),),
        id="a",
        time="2026-01-01T00:00:00+00:00",
    )
    tree = {
        "clipbench": json.loads(dump_json(run_to_json(run))),
        "benchmarks": [{"name": "a", "stats": {"data": [1.0]}}],
    }
    (folder / "good.json").write_text(json.dumps(tree))
    return lambda noise: as_json(mutated_tree(tree, noise))


def session_file(folder: Path) -> Callable[[random.Random], bytes]:
    """What a session that was killed left, with a result beside it."""
    result = matching(np.eye(8), tuple(f"i{k}" for k in range(8)), "RN50")
    opening = Run({"machine": {"cpu": "x"}, "software": {"python": "3"}}, plan=(result.key,), id="a", time="2026")
    write_part(folder / "parts/a", opening, {"--model": "a hash"}, result, {"model": "a hash"})
    tree = json.loads((folder / "parts/a/session.json").read_text())
    return lambda noise: as_json(mutated_tree(tree, noise))


class Eyes:
    """An encoder of eight rows."""

    def encode_images(self, images: list[object]) -> np.ndarray:
        return np.eye(8)[: len(images)]

    encode_texts = encode_images


def embeddings_file(folder: Path) -> Callable[[random.Random], bytes]:
    EmbeddingRegression(folder / "good.json", True, "first").check(Eyes())
    tree = json.loads((folder / "good.json").read_text())
    return lambda noise: as_json(mutated_tree(tree, noise))


def check_embeddings(path: Path) -> None:
    with suppress(EmbeddingsMovedError):
        EmbeddingRegression(path).check(Eyes())


def read_project(path: Path) -> None:
    read_settings(path, declared_options())


def read_run_file(path: Path) -> None:
    """All that reads a run, one of them a time; a command answers with an exit code, and says why."""
    good, out = path.parent / "good.json", path.parent / "out"
    forms = ("text", "json", "markdown", "github")
    form = forms[zlib.crc32(path.read_bytes()) % 4]
    pair = (good, path) if zlib.crc32(path.read_bytes()) % 8 < 4 else (path, good)
    commands = [["compare", *map(str, pair), "--format", form]]
    if zlib.crc32(path.read_bytes()) % 10 == 0:
        commands.append(["report", str(path), "-o", str(out)])
    for command in commands:
        assert main(command) in (0, 1, 2, 3), command


def coco_file(name: str) -> Callable[[Path], Callable[[random.Random], bytes]]:
    def make(folder: Path) -> Callable[[random.Random], bytes]:
        (folder / "val2017").mkdir()
        (folder / "annotations").mkdir()
        for k in range(3):
            Image.new("RGB", (40, 30)).save(folder / f"val2017/{k}.png")
        images = [{"id": k, "file_name": f"{k}.png", "width": 40, "height": 30} for k in range(3)]
        boxes = [
            {"id": k, "image_id": k % 3, "category_id": 1 + k % 2, "bbox": [1, 2, 10.5, 9], "iscrowd": k % 2}
            for k in range(6)
        ]
        captions = [{"id": k, "image_id": k % 3, "caption": f"text {k}"} for k in range(6)]
        tree = {
            "info": {"description": "x"},
            "images": images,
            "annotations": captions if name == "captions" else boxes,
        }
        tree |= {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
        return lambda noise: as_json(mutated_tree(tree, noise))

    return make


def read_boxes(path: Path) -> None:
    for read in (coco_crops, coco_multilabel):
        for item in read(path.parents[1]).items:
            item.image.open()


def toml_file(source: Path) -> Callable[[Path], Callable[[random.Random], bytes]]:
    content = source.read_bytes()
    values = (
        b"1",
        b"-1",
        b'"x"',
        b"[]",
        b"{}",
        b"true",
        b"nan",
        b"inf",
        b"9" * 5000,
        b"1979-05-27",
        b"[[[[]]]]",
        b'["a", 1]',
        b"''",
    )

    def mutate(noise: random.Random) -> bytes:
        lines = content.splitlines()
        for _ in range(noise.randint(1, 3)):
            k = noise.randrange(len(lines))
            key, equals, _ = lines[k].partition(b"=")
            act = noise.choice(("value", "value", "key", "drop", "repeat", "bytes", "move"))
            if act == "value" and equals:
                lines[k] = key + b"= " + noise.choice(values)
            elif act == "key" and equals:
                lines[k] = noise.choice((b"a.b.c ", b'"" ', b"source ", b"kind ")) + lines[k][len(key) :]
            elif act == "drop":
                del lines[k]
            elif act == "repeat":
                lines.insert(k, lines[k])
            elif act == "move":
                lines.insert(noise.randrange(len(lines)), lines.pop(k))
            else:
                lines[k] = mutated_bytes(lines[k] or b"x", noise)
        return b"\n".join(lines)

    return lambda folder: mutate


def read_classes(path: Path) -> None:
    (path.parent / "dog").mkdir(exist_ok=True)
    class_set("mine", path.parent)


DESCRIPTIONS = (
    "<f4",
    ">f8",
    "<f2",
    "O",
    "<U0",
    "<U9",
    "V5",
    "<i8",
    "|b1",
    "<c16",
    "f4, f4",
    "[('a', '<f4')]",
    "<M8[ns]",
    "",
)


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def mutated_npy(content: bytes, noise: random.Random) -> bytes:
    """A header that says another type, shape or order, or bytes that are others."""
    if noise.random() < 0.3:
        return mutated_bytes(content, noise)
    length = int.from_bytes(content[8:10], "little")
    header, values = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    shape = noise.choice(
        ("()", "(0,)", "(-1, 8)", "(10**9, 10**9)", "(3, 8)", "(24,)", "(True, 8)", "(3.0, 8)", "(1000000000000,)")
    )
    start, end = header.index("("), header.index(")") + 1
    header = noise.choice(
        (header[:start] + shape + header[end:], header.replace("False", noise.choice(("True", "1", "x"))))
    )
    kind = noise.choice(DESCRIPTIONS)
    header = noise.choice((header, header.replace(header.split("'")[3], kind)))
    text = header.encode("latin-1")
    return (
        content[:8] + len(text).to_bytes(2, "little") + text + noise.choice((values, values[:-1], values + b"\0", b""))
    )


def index_file(folder: Path) -> Callable[[random.Random], bytes]:
    content = npy_bytes(np.eye(3, 8, dtype=np.float32))
    return lambda noise: mutated_npy(content, noise)


def saved_rows_file(folder: Path) -> Callable[[random.Random], bytes]:
    model, dataset = ModelIdentity("m", "p"), DatasetIdentity("d", "0" * 64, 3)
    rows = np.eye(3, 8, dtype=np.float32)
    saved = SavedRows("coco_retrieval", model, dataset, rows, rows, ("a", "b", "c"), ("x", "y", "z"), np.arange(3))
    records = {}
    with zipfile.ZipFile(write_rows(folder, saved)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(str(np.load(io.BytesIO(records["about.npy"]))))

    def mutate(noise: random.Random) -> bytes:
        changed = dict(records)
        name = noise.choice(list(changed))
        changed[name] = mutated_npy(changed[name], noise)
        if noise.random() < 0.4:
            changed["about.npy"] = npy_bytes(np.array(json.dumps(mutated_tree(about, noise))))
        return zipped(changed, noise)

    return mutate


def zipped(records: dict[str, bytes], noise: random.Random) -> bytes:
    """A zip with right checksums, now and then with a record left out, twice, compressed, or its table changed."""
    stream = io.BytesIO()
    names = [name for name in records if noise.random() > 0.03]
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings(action="ignore"):
        for name in [*names, *(name for name in names if noise.random() < 0.02)]:
            archive.writestr(name, records[name], zipfile.ZIP_DEFLATED if noise.random() < 0.03 else zipfile.ZIP_STORED)
    content = stream.getvalue()
    start = content.rfind(b"PK\x05\x06") - 200
    return content if noise.random() < 0.8 else content[:start] + mutated_bytes(content[start:], noise)


def safetensors_file(folder: Path) -> Callable[[random.Random], bytes]:
    whole = safetensors.torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)})
    length = int.from_bytes(whole[:8], "little")
    tree, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    tree["__metadata__"] = {"format": "pt"}
    kinds = (
        "F64",
        "F32",
        "F16",
        "BF16",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E8M0",
        "F4",
        "F6_E2M3",
        "I64",
        "U8",
        "BOOL",
        "U64",
        "C64",
        "X",
    )

    def mutate(noise: random.Random) -> bytes:
        changed = mutated_tree(tree, noise)
        entry = changed.get("a")
        if isinstance(entry, dict) and noise.random() < 0.3:
            entry["dtype"] = noise.choice(kinds)
        header = as_json(changed)
        size = len(header) if noise.random() < 0.9 else noise.choice((0, 1, len(header) + 50, 2**40, 2**63))
        return struct.pack("<Q", size) + header + (data if noise.random() < 0.9 else mutated_bytes(data, noise))

    return mutate


def steps(pickled: bytes) -> list[bytes]:
    """A pickle's steps, each with its argument."""
    starts = [place for _, _, place in pickletools.genops(pickled)]
    return [pickled[a:b] for a, b in zip(starts, [*starts[1:], len(pickled)], strict=True)]


def mutated_pickle(pickled: bytes, noise: random.Random) -> bytes:
    """Steps left out, repeated, exchanged, doubled upon themselves, or with another number."""
    found = steps(pickled)
    doubling = [
        b"q\x50h\x50\x86",
        b"h\x00h\x00\x86",
        b"]q\x51h\x51a",
        b")R",
        b"Q",
        b"s",
        b"b",
        b"0",
        b"2",
        b"(",
        b"t",
        b"K\xff",
        b"N",
        b"}",
    ]
    numbers = [
        b"J\xff\xff\xff\x7f",
        b"J\0\0\0\x80",
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
        b"K\0",
        b"G" + b"\x7f\xf0" + bytes(6),
    ]
    globals_ = [
        b"cbuiltins\neval\n",
        b"cbuiltins\nbytearray\n",
        b"ccollections\nCounter\n",
        b"ctorch\nSize\n",
        b"ctorch\nFloatTensor\n",
    ]
    for _ in range(noise.choice((1, 1, 2, 5))):
        k = noise.randrange(1, max(2, len(found) - 1))
        act = noise.choice(("drop", "repeat", "swap", "insert", "number", "global", "bytes", "many"))
        if act == "drop":
            del found[k : k + 1]
        elif act == "repeat":
            found[k:k] = found[k : k + noise.choice((1, 3, 9))]
        elif act == "swap":
            other = noise.randrange(1, len(found))
            found[k], found[other] = found[other], found[k]
        elif act == "insert":
            found.insert(k, noise.choice(doubling))
        elif act == "number":
            found[k] = noise.choice(numbers)
        elif act == "global":
            found.insert(k, noise.choice(globals_))
        elif act == "many":
            found[k:k] = [noise.choice(doubling)] * noise.choice((40, 2000))
        else:
            found[k] = mutated_bytes(found[k], noise)
    return b"".join(found)


def torch_file(folder: Path) -> Callable[[random.Random], bytes]:
    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(6.0), "b": torch.nn.Parameter(torch.ones(2, 3))}, "epoch": 1}, stream)
    with zipfile.ZipFile(stream) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in records if name.endswith("data.pkl"))
    return lambda noise: zipped(records | {pickled: mutated_pickle(records[pickled], noise)}, noise)


def legacy_file(folder: Path) -> Callable[[random.Random], bytes]:
    stream = io.BytesIO()
    torch.save({"a": torch.arange(6.0)}, stream, _use_new_zipfile_serialization=False)
    content = stream.getvalue()
    start = content.index(b"\x80\x02", content.index(b"little_endian"))
    end = start + next(place for step, _, place in pickletools.genops(content[start:]) if step.name == "STOP") + 1
    return lambda noise: content[:start] + mutated_pickle(content[start:end], noise) + content[end:]


def picture_bytes(kind: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


INFLATED = zlib.compress(bytes(10_000_000))


def mutated_png(content: bytes, noise: random.Random) -> bytes:
    """Chunks left out, repeated, moved, or with other content, and right checksums."""
    chunks, place = [], 8
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    more = [
        (b"zTXt", b"a\0\0" + INFLATED),
        (b"iCCP", b"a\0\0" + INFLATED),
    ]
    more += [(b"acTL", b"\xff" * 8), (b"tRNS", b"\0" * 6), (b"PLTE", b"\0" * 9), (b"eXIf", b"II*\0" + b"\xff" * 40)]
    for _ in range(noise.choice((1, 1, 3))):
        k = noise.randrange(len(chunks))
        act = noise.choice(("content", "content", "drop", "repeat", "move", "insert", "inflated"))
        name, body = chunks[k]
        if act == "content":
            chunks[k] = name, mutated_bytes(body or b"\0", noise)
        elif act == "drop" and len(chunks) > 1:
            del chunks[k]
        elif act == "repeat":
            chunks.insert(k, chunks[k])
        elif act == "move":
            chunks.insert(noise.randrange(len(chunks)), chunks.pop(k))
        elif act == "inflated" and name == b"IDAT":
            with suppress(zlib.error):  # an earlier turn broke it
                body = zlib.decompress(body)
            chunks[k] = name, zlib.compress(mutated_bytes(body, noise))
        else:
            chunks.insert(k, noise.choice(more))
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def mutated_tiff(content: bytes, noise: random.Random) -> bytes:
    """Entries of the directory with other tags, types, counts and values."""
    if noise.random() < 0.3:
        return mutated_bytes(content, noise)
    found = bytearray(content)
    start = int.from_bytes(found[4:8], "little")
    for _ in range(noise.choice((1, 1, 3))):
        entry = start + 2 + 12 * noise.randrange(max(1, int.from_bytes(found[start : start + 2], "little")))
        field, size = noise.choice(((0, 2), (2, 2), (4, 4), (8, 4)))
        value = noise.choice((0, 1, 2, 8, 16, 32, 256, 259, 262, 273, 277, 278, 322, 65535, 2**31, 2**32 - 1)) % 2 ** (
            8 * size
        )
        found[entry + field : entry + field + size] = value.to_bytes(size, "little")
    return bytes(found)


def mutated_sizes(content: bytes, noise: random.Random) -> bytes:
    """Numbers of four bytes, which sizes are in RIFF, in boxes and in segments, exchanged; or bytes."""
    if noise.random() < 0.5:
        return mutated_bytes(content, noise)
    found, place = bytearray(content), noise.randrange(max(1, min(400, len(content) - 4)))
    value = noise.choice((0, 1, 7, 8, 2**16, 2**24, 2**31 - 1, 2**32 - 1))
    found[place : place + 4] = value.to_bytes(4, noise.choice(("little", "big")))
    return bytes(found)


def picture(
    kind: str, mutate: Callable[[bytes, random.Random], bytes]
) -> Callable[[Path], Callable[[random.Random], bytes]]:
    def make(folder: Path) -> Callable[[random.Random], bytes]:
        Image.init()
        if kind not in Image.SAVE:
            pytest.skip(f"this Pillow writes no {kind}")
        content = picture_bytes(kind)
        return lambda noise: mutate(content, noise)

    return make


def dicom_file(folder: Path) -> Callable[[random.Random], bytes]:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("a.dcm", {}, file_meta=meta, preamble=bytes(128))
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    values = {
        "Rows": 8, "Columns": 8, "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0, "NumberOfFrames": 1, "WindowCenter": 100, "WindowWidth": 50,
        "RescaleSlope": 1, "RescaleIntercept": 0, "PixelAspectRatio": [1, 1], "PixelPaddingValue": 0,
    }  # fmt: skip
    for name, value in values.items():
        setattr(header, name, value)
    header.PixelData = bytes(range(128))
    odd = (0, 1, 2, 3, 7, 8, 9, 16, 17, 32, 64, 255, 65535)
    words = ("MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL_422", "", "X" * 16)

    def mutate(noise: random.Random) -> bytes:
        changed = copy.deepcopy(header)
        for _ in range(noise.randint(1, 3)):
            name = noise.choice(list(values))
            if noise.random() < 0.2:
                changed.pop(name, None)
            elif name == "PhotometricInterpretation":
                setattr(changed, name, noise.choice(words))
            elif name in (
                "Rows",
                "Columns",
                "BitsAllocated",
                "BitsStored",
                "HighBit",
                "SamplesPerPixel",
                "PixelRepresentation",
            ):
                setattr(changed, name, noise.choice(odd))
            elif name != "PixelAspectRatio":
                setattr(
                    changed,
                    name,
                    noise.choice((0, 1, -1, 1e-9, 1e9, 12345)) if name != "NumberOfFrames" else noise.choice(odd),
                )
        stream = io.BytesIO()
        with warnings.catch_warnings(action="ignore"):
            try:
                pydicom.dcmwrite(stream, changed, enforce_file_format=True)
            except Exception:  # noqa: BLE001  # a value that cannot be written: then only bytes are wrong
                stream = io.BytesIO()
                pydicom.dcmwrite(stream, header, enforce_file_format=True)
        content = stream.getvalue()
        return content if noise.random() < 0.6 else mutated_bytes(content, noise)

    return mutate


READERS: dict[str, tuple[str, Callable[[Path], Callable[[random.Random], bytes]], Callable[[Path], object]]] = {
    "run JSON": ("run.json", run_file, read_run_file),
    "session JSON": (
        "parts/a/session.json",
        session_file,
        lambda path: results_left(path.parents[2], (), {}, LARGEST_RUN_BYTES),
    ),
    "COCO boxes": ("annotations/instances_val2017.json", coco_file("instances"), read_boxes),
    "COCO captions": (
        "annotations/captions_val2017.json",
        coco_file("captions"),
        lambda path: coco_retrieval(path.parents[1]),
    ),
    "TOML rules": ("rules.toml", toml_file(fixtures() / "tolerances.toml"), read_rules),
    "TOML settings": ("clipbench.toml", toml_file(Path(__file__).with_name("settings_full.toml")), read_project),
    "embeddings JSON": ("embeddings.json", embeddings_file, check_embeddings),
    "TOML classes": ("classes.toml", toml_file(fixtures() / "classes/cifar10.toml"), read_classes),
    "npy": ("index.npy", index_file, read_index),
    "npz": ("rows.npz", saved_rows_file, read_rows),
    "safetensors": ("a.safetensors", safetensors_file, read_checkpoint),
    "torch zip": ("a.pt", torch_file, read_checkpoint),
    "torch before 1.6": ("a.pt", legacy_file, read_checkpoint),
    "JPEG": ("a.jpg", picture("JPEG", mutated_sizes), read_image),
    "PNG": ("a.png", picture("PNG", mutated_png), read_image),
    "WebP": ("a.webp", picture("WEBP", mutated_sizes), read_image),
    "TIFF": ("a.tif", picture("TIFF", mutated_tiff), read_image),
    "AVIF": ("a.jpg", picture("AVIF", mutated_sizes), read_image),
    "JPEG 2000": ("a.jp2", picture("JPEG2000", mutated_sizes), read_image),
    "GIF": ("a.gif", picture("GIF", mutated_sizes), read_image),
    "DICOM": ("a.dcm", dicom_file, read_image),
}


@pytest.mark.fault("a mutated file")
@pytest.mark.parametrize("kind", READERS)
def test_a_mutated_file_is_read_or_refused_by_one_of_our_errors(
    tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("tries", COUNT)
    name, make, read = READERS[kind]
    mutate, path = make(tmp_path), tmp_path / name

    def all_of_them() -> str:
        for seed in range(COUNT):
            content = mutate(random.Random(f"{kind} {seed}"))
            path.write_bytes(content)
            began = time.monotonic()
            try:
                with warnings.catch_warnings(action="ignore"):
                    read(path)
            except ClipbenchError as error:
                assert str(error).isprintable(), seed  # noqa: PT017  # what it says is what is tested
            except BaseException as error:
                raise RuntimeError(f"seed {seed}: {type(error).__name__}: {error}") from error
            assert time.monotonic() - began < SECONDS_EACH, seed
        return "read"

    assert outcome(all_of_them, seconds=60 + COUNT, megabytes=1500) == ("", "read")
