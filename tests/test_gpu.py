"""What only a CUDA device can show: its pixels, its copies, its rows, its clock. Skipped elsewhere."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.embed.embedder import TOLERANCE, Embedder
from clipbench.experiments import speed
from clipbench.models.device import card_state, feed_of, float32_as_asked, resolve_resources
from clipbench.models.encoder import unit_rows
from clipbench.models.open_clip import load_open_clip
from clipbench.models.zoo import ModelSpec

pytestmark = pytest.mark.gpu

TEXTS = [f"a photo of {k} {word}" + " and one more" * (k % 5) for k in range(200) for word in ("cats", "dogs")]


def loaded(name="tiny-vit", precision="fp32"):
    return load_open_clip(ModelSpec(name, "random", "random:0", name, "quickgelu"), "cuda", precision, offline=True)


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for k in range(300):
        path = tmp_path / f"{k}.png"
        Image.fromarray(rng.integers(0, 256, (30 + k % 50, 70 - k % 30, 3), dtype=np.uint8)).save(path)
        found.append(Item(f"i{k}", ImageRef(path), (f"picture {k}",)))
    return found


def test_pixels_are_the_models_own(tiny_models, items):
    encoder, given = loaded(), []
    forward = encoder.forward_images
    encoder.forward_images = lambda pixels: given.append(pixels.cpu()) or forward(pixels)
    optimized, pictures = encoder.optimized(), [item.image.open() for item in items[:20]]
    optimized.start_images([optimized.prepare(picture) for picture in pictures])()
    assert torch.equal(given[0], encoder.pixels(pictures))


def test_a_buffer_is_not_filled_again_while_the_device_is_behind():
    feed = feed_of("cuda")
    batches = [[np.full((300, 300, 3), (7 * k + j) % 256, np.uint8) for j in range(16)] for k in range(30)]
    given = []
    for batch in batches:
        torch.cuda._sleep(20_000_000)  # about 10 ms of the device before each copy
        given.append(feed.upload(batch))
    for found, batch in zip(given, batches, strict=True):
        np.testing.assert_array_equal(found.cpu().numpy(), batch)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_no_shortcut_of_a_healthy_model_is_dropped(tiny_models, items, name, precision):
    if precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card multiplies no TF32")
    resources = resolve_resources("cuda", precision, None, 4)
    with float32_as_asked("cuda", precision):
        embedder = Embedder(loaded(name, precision), resources)
        images, texts = embedder.images(items), embedder.texts(TEXTS)
        expected = embedder.images(items, reference=True).rows, embedder.texts(TEXTS, reference=True).rows
    assert (images.encoding.dropped, texts.encoding.dropped) == ("", "")
    assert "normalized_on_device" in images.optimizations
    for found, rows in zip((images.rows, texts.rows), expected, strict=True):
        assert np.linalg.norm(found.astype(np.float64) - rows, axis=1).max() <= TOLERANCE[precision][1]


def test_fp32_does_not_depend_on_the_size_of_a_batch(tiny_models, items):
    encoder, pictures = loaded("tiny-rn"), [item.image.open() for item in items[:64]]
    with float32_as_asked("cuda", "fp32"):
        together = unit_rows(encoder.encode_images(pictures))
        alone = unit_rows(np.concatenate([encoder.encode_images([picture]) for picture in pictures]))
    assert np.linalg.norm(together.astype(np.float64) - alone, axis=1).max() <= 1e-5


def test_speed_has_the_devices_own_seconds(tiny_models, items):
    dataset = Dataset("some", tuple(items[:8]), "made by the tests", prompts=("{caption}",))
    found = speed.speed(Embedder(loaded(), resolve_resources("cuda", "fp32", 8, 0)), dataset)
    values = {score.spec.name: score.value for score in found.scores}
    for what in ("images", "texts"):
        assert 0 < values[f"{what}_device_seconds"] < 2 * 8 / values[f"{what}_per_second"]
    assert found.card == {} or found.card["clock_mhz"] > 0
    assert card_state("cpu") == {}
