"""DICOM rendering: each transform alone on a file of a few pixels, written here; broken files by name."""

import sys

import numpy as np
import pytest
from PIL import Image

from clipbench.data.dataset import read_image
from clipbench.data.dicom import read_dicom
from clipbench.errors import DataError, DataUnavailableError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (the demo extra)")

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
RAMP = np.array([[0, 50, 100, 150, 200, 250]], dtype=np.uint8)


@pytest.fixture
def dicom(tmp_path):
    """Write a DICOM file with the given pixels (8 or 16 bits, grey or RGB) and further elements; return its path."""

    def write(pixels, name="image.dcm", photometric="MONOCHROME2", **elements):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = EXPLICIT_LITTLE
        header = pydicom.Dataset()
        header.file_meta = meta
        header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        header.SOPInstanceUID = "1.2.3"
        is_colour = pixels.ndim >= 3 and pixels.shape[-1] == 3
        header.Rows, header.Columns = pixels.shape[-3:-1] if is_colour else pixels.shape[-2:]
        header.SamplesPerPixel = 3 if is_colour else 1
        if is_colour:
            header.PlanarConfiguration = 0
        header.PhotometricInterpretation = photometric
        header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
        header.HighBit = header.BitsStored - 1
        header.PixelRepresentation = int(pixels.dtype.kind == "i")
        data = pixels.tobytes()
        header.PixelData = data + b"\0" * (len(data) % 2)
        for keyword, value in elements.items():
            setattr(header, keyword, value)
        header.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write


def lut(entries, first, bits, kind="US"):
    item = pydicom.Dataset()
    item.add_new(0x00283002, kind, [len(entries), first, bits])
    item.add_new(0x00283006, "US", list(entries))
    return pydicom.Sequence([item])


def shown(path):
    return np.asarray(read_dicom(path))


def grey(path):
    pixels = shown(path)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def test_picture_is_rgb_and_reached_through_read_image(dicom):
    image = read_image(dicom(RAMP))
    assert (image.mode, image.size) == ("RGB", (6, 1))


def test_without_window_smallest_to_largest_fills_the_range(dicom):
    assert grey(dicom(RAMP)) == [[0, 51, 102, 153, 204, 255]]


def test_padding_does_not_widen_the_range(dicom):
    values = np.array([[-2000, 0, 50, 100]], dtype=np.int16)
    assert grey(dicom(values, PixelPaddingValue=-2000)) == [[0, 0, 128, 255]]


def test_constant_picture_is_black(dicom):
    assert grey(dicom(np.full((2, 2), 7, dtype=np.uint8))) == [[0, 0], [0, 0]]


def test_window_clips_at_both_ends_and_is_not_stretched_to_the_picture(dicom):
    clipped = grey(dicom(RAMP, WindowCenter=125.5, WindowWidth=51))
    assert clipped == [[0, 0, 0, 255, 255, 255]]
    within = grey(dicom(RAMP[:, 2:4], WindowCenter=128, WindowWidth=256))
    assert within == [[100, 150]]


def test_first_of_several_windows_is_used(dicom):
    assert grey(dicom(RAMP, WindowCenter=[25.5, 225.5], WindowWidth=[51, 51])) == [[0, 255, 255, 255, 255, 255]]


def test_window_is_in_rescaled_units(dicom):
    path = dicom(RAMP, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100.5, WindowWidth=201)
    assert grey(path) == [[0, 0, 128, 255, 255, 255]]


def test_falling_rescale_slope_turns_the_picture_around(dicom):
    assert grey(dicom(RAMP, RescaleSlope=-1, RescaleIntercept=0)) == [[255, 204, 153, 102, 51, 0]]


def test_empty_voi_lut_function_means_linear(dicom):
    assert grey(dicom(RAMP[:, 2:4], WindowCenter=128, WindowWidth=256, VOILUTFunction="")) == [[100, 150]]


def test_sigmoid_window_is_half_bright_at_its_centre(dicom):
    assert grey(dicom(RAMP, WindowCenter=100, WindowWidth=50, VOILUTFunction="SIGMOID"))[0][2] == 128


def test_voi_lut_goes_before_the_window(dicom):
    values = np.array([[0, 1, 2]], dtype=np.uint8)
    path = dicom(values, VOILUTSequence=lut([255, 0, 51], 0, 8), WindowCenter=1, WindowWidth=2)
    assert grey(path) == [[255, 0, 51]]


def test_voi_lut_is_scaled_by_its_bits_not_by_its_largest_entry(dicom):
    values = np.array([[0, 1]], dtype=np.uint8)
    assert grey(dicom(values, VOILUTSequence=lut([0, 2048], 0, 12))) == [[0, 128]]


def test_modality_lut_replaces_stored_values(dicom):
    values = np.array([[0, 1, 2]], dtype=np.uint8)
    assert grey(dicom(values, ModalityLUTSequence=lut([1000, 0, 500], 0, 16))) == [[255, 0, 128]]


def test_monochrome1_is_inverted_after_the_window(dicom):
    straight = grey(dicom(RAMP, WindowCenter=100, WindowWidth=151))
    inverted = grey(dicom(RAMP, photometric="MONOCHROME1", WindowCenter=100, WindowWidth=151))
    assert inverted == [[255 - value for value in straight[0]]]
    assert inverted != straight


def test_rgb_is_kept(dicom):
    pixels = np.array([[[255, 0, 0], [1, 2, 3]]], dtype=np.uint8)
    assert (shown(dicom(pixels, photometric="RGB")) == pixels).all()


def test_rgb_of_sixteen_bits_is_scaled_to_eight(dicom):
    pixels = np.array([[[65535, 32896, 0]]], dtype=np.uint16)
    assert shown(dicom(pixels, photometric="RGB")).tolist() == [[[255, 128, 0]]]


def test_ybr_becomes_rgb(dicom):
    pixels = np.array([[[76, 85, 255], [128, 128, 128]]], dtype=np.uint8)
    red, middle = shown(dicom(pixels, photometric="YBR_FULL"))[0].tolist()
    assert red[0] >= 250
    assert max(red[1:]) <= 5
    assert middle == [128, 128, 128]


def palette(first=0):
    columns = {"Red": [0, 65535, 0], "Green": [0, 0, 65535], "Blue": [65535, 0, 0]}
    elements = {}
    for colour, entries in columns.items():
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [3, first, 16]
        elements[f"{colour}PaletteColorLookupTableData"] = np.array(entries, dtype="<u2").tobytes()
    return elements


def test_palette_colour_is_looked_up(dicom):
    values = np.array([[0, 1, 2]], dtype=np.uint8)
    colours = shown(dicom(values, photometric="PALETTE COLOR", **palette()))
    assert colours.tolist() == [[[0, 0, 255], [255, 0, 0], [0, 255, 0]]]


def test_supplemental_palette_colours_only_the_values_it_covers(dicom):
    values = np.array([[0, 50, 101]], dtype=np.uint8)
    window = {"WindowCenter": 50.5, "WindowWidth": 101}
    colours = shown(dicom(values, PixelPresentation="COLOR", **window, **palette(first=100)))
    assert colours.tolist() == [[[0, 0, 0], [128, 128, 128], [255, 0, 0]]]


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_middle_frame_is_shown(dicom, frames, middle):
    pixels = np.stack([np.full((2, 2), 10 * k, dtype=np.uint8) for k in range(frames)])
    path = dicom(pixels, NumberOfFrames=frames, WindowCenter=128, WindowWidth=256)
    assert grey(path) == [[10 * middle] * 2] * 2


def test_window_of_the_shown_frame_is_used(dicom):
    def group(center):
        window, item = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = center, 2
        item.FrameVOILUTSequence = pydicom.Sequence([window])
        return item

    pixels = np.stack([RAMP, RAMP])
    groups = pydicom.Sequence([group(25), group(225)])
    path = dicom(pixels, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups)
    assert grey(path) == [[0, 0, 0, 0, 0, 255]]


@pytest.mark.parametrize(
    ("elements", "size"),
    [
        ({"PixelAspectRatio": [4, 3]}, (6, 8)),
        ({"PixelAspectRatio": [1, 2]}, (12, 6)),
        ({"PixelSpacing": [0.5, 0.25]}, (6, 12)),
        ({"ImagerPixelSpacing": [0.2, 0.3]}, (9, 6)),
        ({"PixelAspectRatio": [1, 1], "PixelSpacing": [2, 1]}, (6, 6)),
        ({"PixelSpacing": [0, 0]}, (6, 6)),
        ({"PixelSpacing": None}, (6, 6)),
        ({}, (6, 6)),
    ],
    ids=str,
)
def test_pixels_are_made_square(dicom, elements, size):
    pixels = np.tile(RAMP, (6, 1))
    assert read_dicom(dicom(pixels, **elements)).size == size


def test_impossible_aspect_is_refused_by_name(dicom):
    with pytest.raises(DataError, match=r"image\.dcm.*100 times as high as wide"):
        read_dicom(dicom(RAMP, PixelAspectRatio=[100, 1]))


@pytest.mark.fault("a broken picture")
@pytest.mark.parametrize("kept", [0, 1, 100, 140, 300, -1, -500])
def test_truncated_file_is_a_data_error_that_names_it(dicom, kept):
    path = dicom(np.arange(1600, dtype=np.uint8).reshape(40, 40))
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with pytest.raises(DataError, match=r"image\.dcm.*replace the file"):
        read_dicom(path)


@pytest.mark.fault("a broken picture")
def test_file_that_is_no_dicom_is_a_data_error_that_names_it(tmp_path):
    path = tmp_path / "picture.dcm"
    Image.new("RGB", (4, 4)).save(path, format="PNG")
    with pytest.raises(DataError, match=r"picture\.dcm.*DICM"):
        read_dicom(path)


@pytest.mark.fault("a broken picture")
def test_header_without_pixels_is_a_data_error_that_names_it(dicom):
    path = dicom(RAMP)
    header = pydicom.dcmread(path)
    del header.PixelData
    header.save_as(path)
    with pytest.raises(DataError, match=r"image\.dcm"):
        read_dicom(path)


def test_unknown_photometric_interpretation_is_named(dicom):
    with pytest.raises(DataError, match=r"image\.dcm.*'HSV'"):
        read_dicom(dicom(np.zeros((2, 2, 3), dtype=np.uint8), photometric="HSV"))


def test_compression_without_a_decoder_is_named(dicom):
    path = dicom(RAMP)
    header = pydicom.dcmread(path)
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no decoder \xff\xd9"])
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    header.save_as(path)
    with pytest.raises(DataError, match=r"image\.dcm.*MPEG2"):
        read_dicom(path)


def test_missing_file_is_unavailable(tmp_path):
    with pytest.raises(DataUnavailableError, match=r"absent\.dcm"):
        read_dicom(tmp_path / "absent.dcm")


def test_missing_pydicom_names_the_install_command(dicom, monkeypatch):
    path = dicom(RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataUnavailableError, match=r'pydicom is not installed; pip install "clipbench\[demo\]"'):
        read_dicom(path)
