"""DICOM as a radiologist would see it: one frame, windowed, bright where the viewer is bright, with square pixels.

pydicom decodes and knows the transforms; this module puts them in the standard's order. pydicom is imported by the first
call, not by the module.
"""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipbench.errors import ClipbenchError, DataError, DataUnavailableError
from clipbench.paths import LARGEST_DATA_BYTES, open_data

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_PIXEL_RATIO = 10.0
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom hands all of them over as RGB
_SPACING = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
MAX_DICOM_PIXELS = 1 << 25
"""Of a frame as it is shown; windows are computed in 64 bits. The largest mammograms have 25 million."""
MAX_INFLATED_BYTES = 1 << 28

Pixels = npt.NDArray[Any]


def read_dicom(path: Path) -> Image.Image:
    """Return one frame of a DICOM file as RGB: what a viewer shows when the file is opened.

    In the standard's order: modality LUT or rescale; VOI LUT, else the file's first window, else smallest to largest value without
    padding; inversion of MONOCHROME1; for colour YBR to RGB and PALETTE COLOR through its table; last non-square pixels
    (PixelAspectRatio, else a pixel spacing) are made square by enlarging the picture along their longer side. Of several frames the
    middle one (number n // 2, from 0) is shown. A supplemental palette colours the values it covers. Overlays and ICC profiles are not
    applied.

    Raises: DataUnavailableError when the file or pydicom is missing; DataError when the file is no DICOM image, is truncated, or is
    compressed in a way that no installed decoder reads.

    Source: DICOM PS3.4 N.2 (the order), PS3.3 C.11.1 and C.11.2 (LUTs and windows), C.7.6.3.1 (colour and aspect).
    """
    try:
        import pydicom
    except ImportError as error:
        raise DataUnavailableError(
            f'{path.name} is a DICOM file and pydicom is not installed; pip install "clipbench[demo]"'
        ) from error
    try:
        with open_data(path, LARGEST_DATA_BYTES) as file:
            _check_inflated(file)
            whole = pydicom.dcmread(file)
        _check_pixels(int(whole.Rows), int(whole.Columns))
        frame = int(whole.get("NumberOfFrames") or 1) // 2
        header = _of_frame(whole, frame)
        return _square_pixels(Image.fromarray(_displayed(header, frame)).convert("RGB"), header)
    except ClipbenchError:
        raise
    except Exception as error:  # a decoder raises anything on a broken file
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot read the DICOM image {path}: {cause}; replace the file or remove it from the data set"
        ) from error


def _check_inflated(file: BinaryIO) -> None:
    """A deflated file is inflated whole by pydicom. Raises: ValueError when that is more than MAX_INFLATED_BYTES."""
    head = file.read(4096)
    if _DEFLATED in head:
        start = 144 + int.from_bytes(
            head[140:144], "little"
        )  # behind preamble, prefix and the length of the file's own group
        file.seek(start)
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), MAX_INFLATED_BYTES + 1)
        if len(inflated) > MAX_INFLATED_BYTES or head[132:140] != b"\x02\0\0\0UL\x04\0":
            raise ValueError(f"it is more than {MAX_INFLATED_BYTES:,} bytes when inflated")
    file.seek(0)


def _check_pixels(height: float, width: float) -> None:
    if height * width > MAX_DICOM_PIXELS:
        raise ValueError(f"it has {width:.0f} x {height:.0f} pixels, and at most {MAX_DICOM_PIXELS:,} are shown")


def _of_frame(header: "Dataset", frame: int) -> "Dataset":
    """The header with the functional groups of one frame (enhanced CT and MR) where a single-frame file has them."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*(header.get("SharedFunctionalGroupsSequence") or []), *per_frame[frame : frame + 1]]
    for group in groups:
        for element in group:
            if element.VR == "SQ" and element.value and not element.tag.is_private:
                header.update(element.value[0])
    return header


def _displayed(header: "Dataset", frame: int) -> npt.NDArray[np.uint8]:
    """One frame as shown: (rows, columns) or (rows, columns, 3) uint8."""
    from pydicom.pixels.utils import pixel_array

    meaning = header.PhotometricInterpretation
    pixels = pixel_array(header, index=frame)
    if meaning in _GREY:
        shown = _grey_values(header, pixels)
        grey = _eight_bits(1.0 - shown if meaning == "MONOCHROME1" else shown)
        return _with_supplemental_colours(header, pixels, grey)
    if meaning == "PALETTE COLOR":
        return _palette_colours(header, pixels)
    if meaning in _COLOUR and pixels.ndim == 3 and pixels.shape[2] == 3:
        return _eight_bits(pixels / (2**header.BitsStored - 1))
    raise ValueError(f"photometric interpretation {meaning!r} with pixels of shape {pixels.shape} cannot be shown")


def _grey_values(header: "Dataset", pixels: Pixels) -> npt.NDArray[np.float64]:
    """Display values between 0 and 1, before the inversion of MONOCHROME1: (rows, columns) float64."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

    padding = header.get("PixelPaddingValue")
    measured = np.ones(pixels.shape, dtype=bool) if padding is None else pixels != padding
    values = apply_modality_lut(pixels, header)
    if header.get("VOILUTSequence"):
        top = 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
        return np.asarray(apply_voi(np.rint(values).astype(np.int32), header) / top, dtype=np.float64)
    if header.get("WindowWidth") is not None and header.get("WindowCenter") is not None:
        if not header.get("VOILUTFunction"):
            header.VOILUTFunction = "LINEAR"  # the default; pydicom refuses one that is there but empty
        with np.errstate(over="ignore"):  # the sigmoid of a far value
            black, white = apply_windowing(np.array([-1e12, 1e12]), header)
            return np.asarray((apply_windowing(values, header) - black) / (white - black), dtype=np.float64)
    if not measured.any() or (low := float(values[measured].min())) == (high := float(values[measured].max())):
        return np.zeros(pixels.shape)
    return np.asarray((values - low) / (high - low), dtype=np.float64)


def _palette_colours(header: "Dataset", pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Stored values looked up in the file's colour tables: (rows, columns, 3) uint8."""
    from pydicom.pixels.processing import apply_color_lut

    colours = apply_color_lut(pixels, header)[..., :3]
    return _eight_bits(colours / np.iinfo(colours.dtype).max)


def _with_supplemental_colours(header: "Dataset", pixels: Pixels, grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Colour the stored values that a supplemental palette covers (parametric maps); the others stay grey.

    Source: DICOM PS3.3 C.7.6.19. pydicom refuses these files unless PixelPresentation is out of the way.
    """
    if header.pop("PixelPresentation", None) is None or "RedPaletteColorLookupTableDescriptor" not in header:
        return grey
    covered = pixels >= header.RedPaletteColorLookupTableDescriptor[1]
    return np.where(covered[..., np.newaxis], _palette_colours(header, pixels), grey[..., np.newaxis])


def _eight_bits(fractions: Pixels) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(fractions, 0.0, 1.0) * 255.0).astype(np.uint8)


def _square_pixels(image: Image.Image, header: "Dataset") -> Image.Image:
    """Stretch the side along which the pixels are longer, bicubic, so that nothing measured is thrown away."""
    ratio = _height_over_width(header)
    if not 1 / MAX_PIXEL_RATIO <= ratio <= MAX_PIXEL_RATIO:
        raise ValueError(f"pixels are said to be {ratio:g} times as high as wide; expected at most {MAX_PIXEL_RATIO:g}")
    _check_pixels(image.height * max(1.0, ratio), image.width * max(1.0, 1 / ratio))
    size = (round(image.width * max(1.0, 1 / ratio)), round(image.height * max(1.0, ratio)))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _height_over_width(header: "Dataset") -> float:
    """How many times higher than wide a pixel is; 1.0 where the file does not say (absent, empty or zero)."""
    for keyword in ("PixelAspectRatio", *_SPACING):
        values = [float(value) for value in header.get(keyword) or ()]
        if len(values) == 2 and min(values) > 0:
            return values[0] / values[1]
    return 1.0
