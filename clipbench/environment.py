"""The environment of a run: the machine that decides speed, and the software that is often the subject."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from clipbench.models.device import describe_machine
from clipbench.result import JsonObject

SUBJECTS = (
    "clipbench", "torch", "torchvision", "open_clip_torch", "timm", "transformers", "tokenizers", "numpy", "pillow",
    "safetensors", "scikit-image", "pydicom", "pycocotools", "scipy", "pytest", "pytest-benchmark",
)  # fmt: skip


def describe_environment(device: str) -> JsonObject:
    """Return {"machine": ..., "software": ...} of this process; packages that are not installed are absent."""
    software = {"python": platform.python_version(), "implementation": sys.implementation.name}
    for name in SUBJECTS:
        try:
            software[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"machine": describe_machine(device), "software": software}
