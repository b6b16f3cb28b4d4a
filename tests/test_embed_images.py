"""Images to rows: a file is decoded once for all its neighbouring crops, and every pixel is the plain call's."""

import numpy as np
import pytest
from fakes import custom
from planted import paint

from clipbench.data.dataset import ImageRef, Item, read_image
from clipbench.embed.images import embed_images
from clipbench.settings import Settings


class Recorder:
    """Keeps every picture it is given."""

    def __init__(self):
        self.seen = []

    def encode_images(self, images):
        self.seen += [np.asarray(image) for image in images]
        return np.ones((len(images), 2))

    def encode_texts(self, texts):
        return np.ones((len(texts), 2))


@pytest.fixture
def crops(tmp_path):
    for name in "ab":
        paint(tmp_path / f"{name}.png", list(range(10)))
    boxes = [(-6, -6, 18, 18), (0, 0, 12, 12), (12, 0, 24, 12), (100, -3, 140, 20)]
    return [Item(f"{n}{k}", ImageRef(tmp_path / f"{n}.png", crop=box)) for n in "ab" for k, box in enumerate(boxes)]


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_file_is_decoded_once_for_all_its_crops_and_no_pixel_changes(crops, monkeypatch, workers, batch_size):
    decoded = []
    monkeypatch.setattr("clipbench.embed.images.read_image", lambda path: decoded.append(path.name) or read_image(path))
    recorder = Recorder()
    embedded = embed_images(custom(recorder), crops, Settings(batch_size=batch_size, workers=workers))
    assert sorted(decoded) == ["a.png", "b.png"]
    assert list(embedded.kept) == crops
    for seen, item in zip(recorder.seen, crops, strict=True):
        np.testing.assert_array_equal(seen, np.asarray(item.image.open()))


def test_every_crop_of_a_broken_file_is_left_out_and_named(crops, tmp_path):
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:60])
    embedded = embed_images(custom(Recorder()), crops, Settings())
    assert [item.id for item in embedded.kept] == ["b0", "b1", "b2", "b3"]
    assert [reason.split(":")[0] for reason in embedded.broken] == ["a0", "a1", "a2", "a3"]
