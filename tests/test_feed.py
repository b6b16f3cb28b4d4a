"""How pictures reach the model: its own pixels wherever they are finished, through a ring of buffers, no further ahead than memory."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import ColourEncoder
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose, Grayscale, Normalize, ToTensor

from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.embed.embedder import Embedder
from clipbench.embed.trace import trace_of
from clipbench.experiments import speed
from clipbench.models import device
from clipbench.models.device import CudaFeed, Resources
from clipbench.models.encoder import CustomEncoder
from clipbench.models.open_clip import load_open_clip
from clipbench.models.zoo import ModelSpec

EIGHT = Resources(batch_size=8, workers=2)


class Copied(threading.Event):
    """The event of a copy."""

    synchronize = threading.Event.wait


def done():
    copied = Copied()
    copied.set()
    return copied


class StandIn(CudaFeed):
    """A CUDA device for tests: its memory is the CPU's, and a copy is done at once."""

    def __init__(self, name):
        super().__init__(name)
        self.is_queue = True

    def pinned(self, like):
        return torch.from_numpy(like)

    def copy(self, buffer):
        return buffer.clone(), done()


class Slow(StandIn):
    """A device that reads a buffer some time after it was asked to, as one with a long queue does."""

    def copy(self, buffer):
        on_device, copied = torch.zeros_like(buffer), Copied()

        def read():
            time.sleep(0.03)
            on_device.copy_(buffer)
            copied.set()

        threading.Thread(target=read).start()
        return on_device, copied


class Impatient(Slow):
    """The same, where a buffer is filled again whether it was read or not."""

    def copy(self, buffer):
        return super().copy(buffer)[0], done()


class Stale(StandIn):
    """A device that is given the batch before."""

    def copy(self, buffer):
        before, self.before = getattr(self, "before", buffer), buffer.clone()
        return before[: len(buffer)].clone(), done()


@pytest.fixture
def on(monkeypatch):
    """Put a stand-in in the CPU's place."""
    return lambda kind: monkeypatch.setitem(device.FEEDS, "cpu", kind)


@pytest.fixture
def vit(tiny_models):
    return load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu"), "cpu", "fp32", offline=True)


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for k in range(40):
        path = tmp_path / f"{k}.png"
        Image.fromarray(rng.integers(0, 256, (20 + k, 70 - k, 3), dtype=np.uint8)).save(path)
        found.append(Item(f"i{k}", ImageRef(path), (f"picture {k}",)))
    return found


def images(encoder, items, **resources):
    return Embedder(encoder, replace(EIGHT, **resources)).images(items)


def plainly(encoder, items):
    return Embedder(encoder, EIGHT, optimize=False).images(items)


# The model's own pixels.


def seen(encoder, items):
    """What the model is given for these items, (images, 3, height, width)."""
    given, forward = [], encoder.forward_images
    encoder.forward_images = lambda pixels: given.append(pixels.clone()) or forward(pixels)
    optimized = encoder.optimized()
    optimized.start_images([optimized.prepare(item.image.open()) for item in items])()
    del encoder.forward_images
    return given[0]


@pytest.mark.parametrize("kind", [device.Feed, StandIn])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_the_models_own_wherever_they_are_finished(vit, items, on, kind, mode, interpolation):
    on(kind)
    odd = PreprocessCfg(32, "RGB", (0.48, 0.1, 0.9), (0.2, 0.3, 0.7), interpolation, mode, 7)
    vit.preprocess = image_transform_v2(odd, is_train=False)
    expected = vit.pixels([item.image.open() for item in items])
    assert torch.equal(seen(vit, items), expected)
    assert vit.optimized().names("images") == (("normalized_on_device",) if kind is StandIn else ())


UNKNOWN = {
    "a step more": lambda own: Compose([Grayscale(3), *own.transforms]),
    "other last steps": lambda own: Compose([*own.transforms[:-2], ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)]),
    "a function": lambda own: lambda image: own(image) * 2,
}


@pytest.mark.parametrize("kind", [device.Feed, StandIn])
@pytest.mark.parametrize("name", UNKNOWN)
def test_a_transform_that_is_not_known_runs_whole_in_the_worker(vit, items, on, kind, name):
    on(kind)
    vit.preprocess = UNKNOWN[name](vit.preprocess)
    assert vit.optimized().prepare(items[0].image.open()).dtype == np.float32
    assert torch.equal(seen(vit, items), vit.pixels([item.image.open() for item in items]))
    assert vit.optimized().names("images") == ()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_fed_to_a_device_are_the_reference_paths_and_a_sample_of_them_is_checked(
    tiny_models, items, on, precision
):
    on(StandIn)
    spec = ModelSpec("tiny-rn", "random", "random:0", "tiny-rn", "gelu")
    encoder = load_open_clip(spec, "cpu", precision, offline=True)
    found = images(encoder, items)
    np.testing.assert_allclose(found.rows, plainly(encoder, items).rows, atol=1e-5 if precision == "fp32" else 0.02)
    assert "normalized_on_device" in found.optimizations
    assert (found.encoding.dropped, found.encoding.checked) == ("", 8)


def test_a_feed_that_gives_other_pixels_is_found_by_the_sample_and_dropped(vit, items, on):
    on(Stale)
    found = images(vit, items)
    assert "with normalized_on_device a sampled row is" in found.encoding.dropped
    np.testing.assert_array_equal(found.rows, plainly(vit, items).rows)


# The ring of buffers.


@pytest.mark.parametrize(("kind", "is_right"), [(Slow, True), (Impatient, False)])
def test_a_buffer_is_filled_again_only_when_its_copy_is_done(kind, is_right):
    feed = kind("cpu")
    batches = [[np.full((2, 2), 10 * k + j, np.uint8) for j in range(3)] for k in range(12)]
    given = [feed.upload(batch) for batch in batches]
    time.sleep(0.5)
    right = [np.array_equal(found, batch) for found, batch in zip(given, batches, strict=True)]
    assert all(right) == is_right


def test_the_ring_makes_no_buffer_more_than_it_needs_and_takes_batches_of_any_size_and_kind(monkeypatch):
    feed, made = StandIn("cpu"), []
    monkeypatch.setattr(feed, "pinned", lambda like: made.append(like.shape) or torch.from_numpy(like))
    for n in (4, 4, 3, 4, 4, 4, 1, 2):
        batch = [np.full((5, 6), k, np.uint8) for k in range(n)]
        np.testing.assert_array_equal(feed.upload(batch), batch)
    assert made == [(4, 5, 6), (4, 5, 6), (3, 5, 6), (4, 5, 6)]
    for batch in ([np.ones((5, 7), np.uint8)], [np.ones((5, 6), np.float32)], [np.ones((5, 6), np.uint8)] * 9):
        np.testing.assert_array_equal(feed.upload(batch), batch)


# How far ahead.


class Counting(CustomEncoder):
    """An encoder that is its own optimized path and notes what happens in which order: every image prepared takes 8,000 bytes."""

    def __init__(self):
        super().__init__(ColourEncoder(), "counting")
        self._lock, self.prepared, self.started, self.most, self.events = threading.Lock(), 0, 0, 0, []

    def optimized(self):
        return self

    def names(self, tower):
        return ("counted",)

    def prepare(self, image):
        with self._lock:
            self.prepared += 1
            self.most = max(self.most, self.prepared - self.started)
        return np.resize(np.asarray(image, dtype=np.float64).mean(axis=(0, 1)) - 100, 1000)

    def start_images(self, prepared):
        self.events.append(("start", self.prepared))
        time.sleep(0.01)
        self.started += len(prepared)
        rows = np.stack(prepared)[:, :3].astype(np.float32)
        return lambda: self.events.append(("fetch", len(rows))) or rows


def test_a_device_with_a_queue_starts_before_all_is_prepared_and_is_waited_for_when_all_is_started(items, on):
    on(StandIn)
    counting = Counting()
    images(counting, items, batch_size=4, workers=1)
    assert [kind for kind, _ in counting.events] == ["start"] * 10 + ["fetch"] * 10
    assert counting.events[0][1] < len(items)


def test_a_cpu_prepares_many_at_once_and_none_while_the_model_runs(items):
    counting = Counting()
    images(counting, items, batch_size=4, workers=2)
    assert [prepared for kind, prepared in counting.events if kind == "start"] == [34] * 8 + [40] * 2


@pytest.mark.parametrize("kind", [device.Feed, StandIn])
@pytest.mark.parametrize(("images_allowed", "workers", "most"), [(5, 2, 5), (1, 3, 3), (1, 0, 1)])
def test_what_is_prepared_ahead_is_bounded_in_bytes_and_no_worker_goes_without(
    items, on, monkeypatch, kind, images_allowed, workers, most
):
    on(kind)
    monkeypatch.setattr("clipbench.embed.embedder.AHEAD_BYTES", images_allowed * 8000)
    counting = Counting()
    images(counting, items, batch_size=1, workers=workers)
    assert counting.most <= most + 1  # the one that the model is given


# What never takes this path.


def test_speed_and_trace_never_take_the_feed(vit, items, on, monkeypatch):
    on(StandIn)
    monkeypatch.setattr(StandIn, "upload", lambda self, arrays: pytest.fail("fed"))
    dataset = Dataset("some", tuple(items[:8]), "made by the tests", prompts=("{caption}",))
    embedder = Embedder(vit, EIGHT)
    assert speed.speed(embedder, dataset).scores
    assert trace_of(vit)["stages"]
