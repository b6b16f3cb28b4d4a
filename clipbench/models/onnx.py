"""`onnx:FOLDER`: a vision and a text model as optimum and transformers.js export them, run by onnxruntime. Imports no torch.

    vision_model.onnx, text_model.onnx    in the folder, or in its onnx/
    preprocessor_config.json, tokenizer.json, and where they are config.json and tokenizer_config.json

What is not in these files is not guessed: a preprocessing that is not resize, centre crop, rescale and normalize is refused.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipbench.data.dataset import file_sha256
from clipbench.errors import CheckpointError, ClipbenchError, DataError, WeightsUnavailableError
from clipbench.models.encoder import Encoder, Ready, Rows, checked_rows
from clipbench.models.grammar import EXPECTED
from clipbench.paths import LARGEST_SETTINGS_BYTES, open_data, read_json, read_text
from clipbench.types import JsonObject, ModelIdentity

Array = npt.NDArray[Any]

OUTPUTS = ("image_embeds", "text_embeds", "pooler_output", "sentence_embedding")
"""What an export calls its rows; else its one output of two axes."""

_QUANTIZED = (b"MatMulInteger", b"QLinearMatMul", b"DynamicQuantizeLinear", b"DequantizeLinear", b"ConvInteger")
_STEPS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
_LARGEST_TOKENIZER_BYTES = 1 << 27
FINGERPRINT_TEXTS = ("a photo of a dog.", "  Größe, ÉTÉ & naïve — 3.14", "antidisestablishmentarianism " * 40)
ACTIVATIONS = {"quick_gelu": "quickgelu", "gelu": "gelu"}


class ImageSteps:
    """The preprocessing that preprocessor_config.json describes, by Pillow and numpy."""

    def __init__(self, settings: Mapping[str, Any], where: str) -> None:
        """Raises: DataError for a step that is none of resize, centre crop, rescale and normalize."""
        wanted = [
            key
            for key, value in settings.items()
            if key.startswith("do_") and value and key not in (*_STEPS, "do_convert_rgb")
        ]
        if wanted or "patch_size" in settings:
            raise DataError(
                f"{where} asks for {', '.join(wanted) or 'patches'}, which is not known here; use your own module:factory"
            )
        found = dict(settings)
        crops = bool(found.get("do_center_crop", False))
        for key, edge in (("size", "shortest_edge" if crops else ""), ("crop_size", "")):
            if type(found.get(key)) is int:  # as it was written before transformers 4.26
                found[key] = {edge: found[key]} if edge else {"height": found[key], "width": found[key]}
        self.settings = {key: found[key] for key in _STEPS if found.get(key) is not None}
        size = self.settings.get("size", {})
        if self.settings.get("do_resize") and not (
            {"shortest_edge"} <= size.keys() or {"height", "width"} <= size.keys()
        ):
            raise DataError(f"{where} has size = {size}; expected shortest_edge, or height and width")

    def __str__(self) -> str:
        return " ".join(f"{key}={self.settings[key]}" for key in _STEPS if key in self.settings)

    def __call__(self, image: Image.Image) -> Array:
        """Return (3, height, width) float32."""
        picture, of = image.convert("RGB"), self.settings
        if of.get("do_resize"):
            picture = picture.resize(self._target(picture.size), Image.Resampling(int(of.get("resample", 3))))
        if of.get("do_center_crop"):
            width, height = int(of["crop_size"]["width"]), int(of["crop_size"]["height"])
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        pixels = np.asarray(picture, dtype=np.float32)
        if of.get("do_rescale", True):
            pixels = pixels * np.float32(of.get("rescale_factor", 1 / 255))
        if of.get("do_normalize"):
            mean, std = (np.asarray(of[key], dtype=np.float32) for key in ("image_mean", "image_std"))
            pixels = (pixels - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        of = self.settings["size"]
        if "shortest_edge" not in of:
            return int(of["width"]), int(of["height"])
        edge, short = int(of["shortest_edge"]), min(size)
        longer = int(edge * max(size) / short)
        return (edge, longer) if size[0] <= size[1] else (longer, edge)


class OnnxEncoder(Encoder):
    """Two ONNX graphs with their preprocessing and tokenizer."""

    card: Mapping[str, int] = {}

    def __init__(self, folder: Path, name: str, pretrained: str, device: str) -> None:
        """Raises: as `load_onnx`."""
        import onnxruntime
        from tokenizers import Tokenizer

        settings, said = (_settings(folder / file, required=False) for file in ("config.json", "tokenizer_config.json"))
        path = folder / "preprocessor_config.json"
        self._steps = ImageSteps(_settings(path), str(path))
        self.preprocessing = str(self._steps)
        files = [_graph(folder, f"{tower}_model.onnx") for tower in ("vision", "text")]
        providers = ["CUDAExecutionProvider"] if device.startswith("cuda") else ["CPUExecutionProvider"]
        if providers[0] not in onnxruntime.get_available_providers():
            raise WeightsUnavailableError(
                f"{name}: this onnxruntime has no {providers[0]}; use --device cpu, or install onnxruntime-gpu"
            )
        self._sessions = [onnxruntime.InferenceSession(str(file), providers=providers) for file in files]
        self._outputs = [_output(session, file) for session, file in zip(self._sessions, files, strict=True)]
        text: Mapping[str, Any] = settings.get("text_config") or {}
        self._lowercase = str(settings.get("model_type", "")).startswith("siglip")
        tokenizer = Tokenizer.from_str(read_text(folder / "tokenizer.json", _LARGEST_TOKENIZER_BYTES))
        self._length = _context(self._sessions[1], text, said, folder)
        pad = said.get("pad_token") or (tokenizer.padding or {}).get("pad_token") or "<|endoftext|>"
        pad = pad.get("content") if isinstance(pad, dict) else pad
        if (pad_id := tokenizer.token_to_id(str(pad))) is None:
            raise DataError(
                f"{folder / 'tokenizer.json'} has no token {pad!r} to pad with; give tokenizer_config.json with pad_token"
            )
        tokenizer.enable_truncation(self._length)
        tokenizer.enable_padding(length=self._length, pad_id=pad_id, pad_token=str(pad))
        self._tokenizer = tokenizer
        is_int8 = any(map(_is_quantized, files))
        half = "float16" in self._sessions[0].get_inputs()[0].type
        weights = [file_sha256(f) for file in files for f in sorted(file.parent.glob(f"{file.name}*"))]
        self._activation = ACTIVATIONS.get(str(text.get("hidden_act", "")), "")
        self.identity = ModelIdentity(
            name,
            pretrained,
            hashlib.sha256("".join(weights).encode()).hexdigest(),
            activation=self._activation,
            precision="int8" if is_int8 else "fp16" if half else "fp32",
            device=device,
        )

    def _run(self, tower: int, given: Mapping[str, Array]) -> Array:
        session = self._sessions[tower]
        inputs = {one.name: given[one.name].astype(_numpy_type(one.type), copy=False) for one in session.get_inputs()}
        return np.asarray(session.run([self._outputs[tower]], inputs)[0])

    def _pixels(self, images: Sequence[Image.Image]) -> dict[str, Array]:
        return {"pixel_values": np.stack([self._steps(image) for image in images])}

    def _tokens(self, texts: Sequence[str]) -> dict[str, Array]:
        given = [text.lower() for text in texts] if self._lowercase else list(texts)
        rows = self._tokenizer.encode_batch(given)
        ids, mask = (
            np.array([getattr(row, what) for row in rows], dtype=np.int64) for what in ("ids", "attention_mask")
        )
        return {"input_ids": ids, "attention_mask": mask}

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        return checked_rows(self._run(0, self._pixels(images)), len(images), f"{self.identity.name}: vision_model.onnx")

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        return checked_rows(self._run(1, self._tokens(texts)), len(texts), f"{self.identity.name}: text_model.onnx")

    def ready_images(self, images: Sequence[Image.Image]) -> Ready:
        return Ready(partial(self._run, 0, self._pixels(images)), "cpu")  # onnxruntime waits for its device itself

    def ready_texts(self, texts: Sequence[str]) -> Ready:
        return Ready(partial(self._run, 1, self._tokens(texts)), "cpu")

    def asked(self) -> JsonObject:
        """Return the precision: which file is given decides it."""
        return {"precision": self.identity.precision}

    def observed(self) -> JsonObject:
        tokens = self._tokens(FINGERPRINT_TEXTS)["input_ids"].astype("<i8")
        return {
            "weights": self.identity.weights_sha256,
            "activation": self._activation,
            "preprocessing": self.preprocessing,
            "tokenizer": hashlib.sha256(tokens.tobytes()).hexdigest(),
            "device": self.identity.device,
        }

    def close(self) -> None:
        self._sessions = []


def load_onnx(folder: Path, name: str, pretrained: str, device: str) -> OnnxEncoder:
    """Return the encoder of a folder of ONNX graphs.

    Raises: WeightsUnavailableError without onnxruntime or tokenizers; CheckpointError for a file that is missing, damaged, or asks for
    what is not known here.
    """
    try:
        return OnnxEncoder(folder, name, pretrained, device)
    except ImportError as error:
        raise WeightsUnavailableError(
            f'{name}: {error.name} is not installed; pip install "clipbench[onnx]"'
        ) from error
    except WeightsUnavailableError:
        raise
    except ClipbenchError as error:
        raise CheckpointError(f"{error}; expected {EXPECTED['onnx']}") from error
    except Exception as error:  # onnxruntime and tokenizers raise classes of their own, and plain Exception
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder} cannot be loaded: {reason}; expected {EXPECTED['onnx']}") from error


def _is_quantized(file: Path) -> bool:
    """Whether a graph names an operation on quantized numbers."""
    longest = max(map(len, _QUANTIZED))
    before = b""
    with open_data(file, sys.maxsize) as content:
        while part := content.read(1 << 24):
            if any(word in before + part for word in _QUANTIZED):
                return True
            before = part[-longest:]
    return False


def _settings(path: Path, required: bool = True) -> dict[str, Any]:
    if not required and not path.is_file():
        return {}
    found = read_json(path, LARGEST_SETTINGS_BYTES)
    if not isinstance(found, dict):
        raise DataError(f"{path} is {json.dumps(found)[:60]}; expected an object")
    return found


def _graph(folder: Path, name: str) -> Path:
    found = next((path for path in (folder / name, folder / "onnx" / name) if path.is_file()), None)
    if found is None:
        there = ", ".join(sorted(path.name for path in folder.rglob("*.onnx"))[:5]) or "no .onnx file"
        raise DataError(f"{folder} has no {name} (it has {there})")
    return found


def _output(session: Any, file: Path) -> str:
    """The name of the graph's rows. Raises: DataError where the graph does not say."""
    outputs = session.get_outputs()
    named = next((name for name in OUTPUTS for one in outputs if one.name == name), None)
    flat = [one.name for one in outputs if len(one.shape) == 2]
    if named is None and len(flat) != 1:
        listed = ", ".join(f"{one.name} {one.shape}" for one in outputs)
        raise DataError(
            f"{file} has the outputs {listed}; expected one called {', '.join(OUTPUTS)}, or one of two axes"
        )
    return named or str(flat[0])


def _context(session: Any, text: Mapping[str, Any], said: Mapping[str, Any], folder: Path) -> int:
    """How many tokens a text has. Raises: DataError where no file says it."""
    shape: Sequence[Any] = next((one.shape for one in session.get_inputs() if one.name == "input_ids"), [])
    stated = [shape[1] if len(shape) == 2 else None, text.get("max_position_embeddings"), said.get("model_max_length")]
    length = next((n for n in stated if type(n) is int and 1 < n < 10_000), None)
    if length is None:
        raise DataError(
            f"{folder} does not say how many tokens a text has; give config.json with text_config.max_position_embeddings"
        )
    return length


def _numpy_type(kind: str) -> Any:
    return {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float16)": np.float16}.get(kind, np.float32)
