"""The fault table of pictures: other formats under a picture's name, bombs, boxes of another picture, depths that become white or black."""

import os
import stat
import struct
import sys
import zlib

import numpy as np
import pytest
from bounds import outcome
from fakes import ColourEncoder, custom, load, measure
from PIL import Image

from clipbench import evaluate
from clipbench.data.coco import coco_crops
from clipbench.data.dataset import MAX_PIXELS, ImageRef, read_image
from clipbench.data.dicom import read_dicom
from clipbench.data.folders import labelled_folder
from clipbench.embed.embedder import Embedder
from clipbench.errors import DataError
from clipbench.models.device import Resources
from clipbench.storage import dump_json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded as Linux does it")


@pytest.mark.fault("a broken picture")
def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    fake = tmp_path / "bin/gs"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=r"cannot decode the image .*a\.jpg"):
        read_image(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault("a broken picture")
@pytest.mark.parametrize("kind", ["DDS", "ICNS", "ICO", "IM", "PCX", "SGI", "TGA", "XBM", "MSP", "PDF", "PALM"])
def test_a_format_that_nobody_has_is_none(tmp_path, kind):
    path = tmp_path / "a.png"
    mode = {"XBM": "1", "MSP": "1", "PALM": "1"}.get(kind, "RGB")
    Image.new(mode, (64, 64)).save(path, kind)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(path)


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
def test_a_format_that_people_have_is_read_whatever_it_is_called(tmp_path, kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "a.jpg", kind)
    assert read_image(tmp_path / "a.jpg").size == (40, 30)


def png(path, width, height):
    """One bit a pixel, all of them black: some 100 kB for any size that is tried here."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    body = (
        b"".join(deflate.compress(row * 1000) for _ in range(height // 1000))
        + deflate.compress(row * (height % 1000))
        + deflate.flush()
    )

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.fault("pictures larger than memory")
@pytest.mark.parametrize("size", [(13_300, 13_300), (8_200, 8_200), (60_000, 60_000), (2_000_000, 100)])
def test_a_picture_of_more_pixels_than_the_bound_is_refused_before_they_are_made(tmp_path, size):
    path = png(tmp_path / "a.png", *size)
    name, message = outcome(lambda: read_image(path), seconds=10, megabytes=150)
    assert name == "DataError", (name, message)
    assert "a.png" in message


@pytest.mark.fault("pictures larger than memory")
def test_a_picture_of_the_bound_is_read_within_its_memory(tmp_path):
    path = png(tmp_path / "a.png", 8192, MAX_PIXELS // 8192)
    assert outcome(lambda: read_image(path).size, seconds=20, megabytes=500) == ("", "(8192, 8192)")


def coco(root, width, height, box):
    Image.new("RGB", (40, 40), "red").save(root / "1.png")
    (root / "val2017").mkdir()
    (root / "1.png").rename(root / "val2017/1.png")
    (root / "annotations").mkdir()
    content = {
        "categories": [{"id": 1, "name": "red"}],
        "images": [{"id": 1, "file_name": "1.png", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}],
    }
    (root / "annotations/instances_val2017.json").write_text(dump_json(content))
    return root


@pytest.mark.fault("pictures larger than memory")
@pytest.mark.parametrize("crop", ["square", "tight"])
@pytest.mark.parametrize("side", [80, 12_000, 40_000, 9_000_000])
def test_a_box_of_a_picture_of_another_size_is_named_and_left_out_before_it_is_cut(tmp_path, side, crop):
    dataset = coco_crops(coco(tmp_path, side, side, [0, 0, side, side]), crop)
    embedder = Embedder(custom(ColourEncoder()), Resources())

    def embed():
        return embedder.images(dataset.items)

    name, message = outcome(embed, seconds=10, megabytes=200)
    assert name == "DataError", (name, message)
    assert f"has 40 x 40 pixels, and its annotation says {side} x {side}" in message


@pytest.mark.fault("pictures larger than memory")
def test_a_box_beyond_its_picture_is_cut_within_the_published_padding(tmp_path):
    dataset = coco_crops(coco(tmp_path, 40, 40, [-9_000_000, 0, 9_999_999, 9_999_999]))
    assert outcome(lambda: dataset.items[0].image.open().size, megabytes=200)[0] == ""


@pytest.mark.fault("pictures larger than memory")
def test_a_part_larger_than_any_picture_is_refused(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    ref = ImageRef(tmp_path / "a.png", crop=(0, 0, 100_000, 100_000))
    assert outcome(ref.open, megabytes=200)[0] == "DataError"


DEEP = {
    "16 bits, PNG": ("a.png", np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16),
    "16 bits, TIFF": ("a.tif", np.arange(4096, dtype=np.uint16).reshape(64, 64)),
    "32 bits": ("a.tif", np.arange(4096, dtype=np.int32).reshape(64, 64)),
    "floats": ("a.tif", np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)),
    "16 bits, PGM": ("a.pgm", np.arange(4096, dtype=np.uint16).reshape(64, 64)),
}


@pytest.mark.fault("deep pictures")
@pytest.mark.parametrize("kind", DEEP)
def test_a_picture_of_more_than_eight_bits_is_refused_with_the_option_that_converts_it(tmp_path, kind):
    name, pixels = DEEP[kind]
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(DataError, match=r"more than eight bits.*--high-bit-depth convert"):
        read_image(tmp_path / name)
    assert read_image(tmp_path / name, True).mode == "RGB"


@pytest.mark.fault("deep pictures")
def test_deep_pictures_are_left_out_by_name_and_measured_where_that_was_asked_for(tmp_path):
    for colour in ("red", "blue"):
        (tmp_path / colour).mkdir()
        Image.new("RGB", (20, 20), colour).save(tmp_path / colour / "a.png")
    Image.fromarray(np.full((20, 20), 60_000, dtype=np.uint16)).save(tmp_path / "red/deep.png")
    result = measure("zero_shot", custom(ColourEncoder()), load("zero_shot", zero_shot={"mine": tmp_path}))
    assert (result.scores["acc1"].n, result.provenance.broken) == (2, ("deep.png",))
    (result,) = evaluate(
        ColourEncoder(), ["zero_shot"], zero_shot={"mine": tmp_path}, high_bit_depth="convert", device="cpu"
    ).results
    assert (result.scores["acc1"].n, result.provenance.broken) == (3, ())
    assert result.protocol.options["high_bit_depth"] == "convert"


@pytest.mark.fault("a broken picture")
@pytest.mark.parametrize(
    "error", [RuntimeError, NotImplementedError, MemoryError, RecursionError, AssertionError, KeyError]
)
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(DataError, match=r"a\.png: \S"):
        read_image(tmp_path / "a.png")


@pytest.mark.fault("links in a folder of pictures")
def test_links_in_a_labelled_folder_are_followed_and_counted(tmp_path):
    store, root = tmp_path / "store", tmp_path / "root"
    (root / "red").mkdir(parents=True)
    (store / "blue").mkdir(parents=True)
    for colour in ("red", "blue"):
        Image.new("RGB", (20, 20), colour).save(store / f"{colour}.png")
    (root / "red/a.png").symlink_to(store / "red.png")
    (store / "blue.png").rename(store / "blue/b.png")
    (root / "blue").symlink_to(store / "blue")
    dataset = labelled_folder("mine", root)
    assert len(dataset) == 2
    assert dataset.exclusions["links_followed"] == 2


def dicom(path, *, deflated=False, rows=64, columns=64, **more):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        SecondaryCaptureImageStorage,
        generate_uid,
    )

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    header = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    values = {"Rows": rows, "Columns": columns, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "SamplesPerPixel": 1}
    values |= {"PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0} | more
    for name, value in values.items():
        setattr(header, name, value)
    header.PixelData = more.get("PixelData", bytes(64 * 64))
    pydicom.dcmwrite(path, header, enforce_file_format=True)
    return path


@pytest.mark.fault("pictures larger than memory")
def test_a_deflated_dicom_is_read_and_a_bomb_is_not(tmp_path):
    assert read_dicom(dicom(tmp_path / "a.dcm", deflated=True)).size == (64, 64)
    bomb = dicom(tmp_path / "b.dcm", deflated=True, PixelData=bytes(600 << 20))
    assert bomb.stat().st_size < 2 << 20
    name, message = outcome(lambda: read_image(bomb), seconds=20, megabytes=700)
    assert name == "DataError", (name, message)
    assert "inflated" in message


@pytest.mark.fault("pictures larger than memory")
@pytest.mark.parametrize(
    "more",
    [
        {"rows": 65_535, "columns": 65_535},
        {"PixelAspectRatio": [9, 1], "rows": 2000, "columns": 2000, "PixelData": bytes(4_000_000)},
    ],
)
def test_a_dicom_of_more_pixels_than_the_bound_is_refused(tmp_path, more):
    path = dicom(tmp_path / "a.dcm", **more)
    name, message = outcome(lambda: read_image(path), seconds=10, megabytes=400)
    assert name == "DataError", (name, message)
