"""Taking a trace: small, the same every time, by the reference path, and every stage that the encoder shows."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import ColourEncoder, NanEncoder, colour_dataset, custom
from jsonschema import Draft202012Validator

from clipbench.embed.embedder import Embedder
from clipbench.embed.trace import ITEMS, POSITIONS, positions, sample, trace_of
from clipbench.errors import EncoderError
from clipbench.experiments.matching import matched
from clipbench.models.device import Resources
from clipbench.models.encoder import unit_rows
from clipbench.models.zoo import ModelSpec
from clipbench.options import Options
from clipbench.session import Session
from clipbench.storage import dump_json, run_schema, run_to_json
from clipbench.types import Key

MAX_BYTES = 256 << 10
OURS = {"decoded_pixels", "preprocessed_tensor", "tokens", "image_rows", "text_rows", "similarities"}


class Wide(ColourEncoder):
    """Rows of a large dim, and every batch that it was asked for."""

    dim = 4096

    def __init__(self):
        self.asked = []

    def encode_images(self, images):
        self.asked.append(len(images))
        return np.tile(super().encode_images(images), (1, self.dim))[:, : self.dim] + 1e-3

    def encode_texts(self, texts):
        self.asked.append(len(texts))
        return np.tile(super().encode_texts(texts), (1, self.dim))[:, : self.dim] + 1e-3


def trace(encoder, dataset):
    """What a session keeps: the trace of the rows that the natural images were measured with."""
    images, texts = matched(Embedder(encoder, Resources(batch_size=3)), dataset)
    return trace_of(encoder, dataset, images, texts)


@pytest.fixture
def colours(tmp_path):
    return colour_dataset(tmp_path)


@pytest.fixture(scope="module")
def tiny(tiny_models):
    from clipbench.models.open_clip import load_open_clip

    return load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "quickgelu"), "cpu", "fp32", True)


def decoded(entry):
    return np.frombuffer(base64.b64decode(entry["values"]), dtype=np.dtype(entry["dtype"]).newbyteorder("<"))


def test_an_encoder_of_ours_shows_every_stage(tiny, colours):
    found = trace(tiny, colours)
    assert set(found["stages"]) == OURS
    assert {len(samples) for samples in found["stages"].values()} == {len(colours)}
    assert found["activations"] == {"QuickGELU": 4}
    assert found["texts"][0] == "This is a red picture"
    assert decoded(found["stages"]["tokens"][0])[0] == 49406
    picture = np.asarray(colours.items[0].image.open())
    assert decoded(found["stages"]["decoded_pixels"][0]).tolist() == picture.ravel()[positions(picture.size)].tolist()


def test_rows_and_similarities_are_those_of_the_reference_path(tiny, colours):
    stages = trace(tiny, colours)["stages"]
    rows = unit_rows(tiny.encode_images([item.image.open() for item in colours.items]))
    texts = unit_rows(tiny.encode_texts(["This is a red picture"]))
    np.testing.assert_allclose(decoded(stages["image_rows"][2]), rows[2], atol=1e-6)  # another batch size rounds
    np.testing.assert_allclose(decoded(stages["text_rows"][0]), texts[0], atol=1e-6)
    np.testing.assert_allclose(decoded(stages["similarities"][0]), rows @ texts[0], atol=1e-6)


def test_an_encoder_that_is_not_ours_lacks_what_it_does_not_show(colours):
    found = trace(custom(ColourEncoder()), colours)
    assert set(found["stages"]) == OURS - {"preprocessed_tensor", "tokens"}
    assert "activations" not in found
    assert found["model"]["weights_sha256"] == ""


def test_two_traces_of_one_encoder_are_one_text(tiny, colours):
    assert dump_json(trace(tiny, colours)) == dump_json(trace(tiny, colours))


def test_a_trace_fits_its_schema_and_a_damaged_one_does_not(tiny, colours):
    schema = run_schema()
    check = Draft202012Validator({"$ref": "#/$defs/trace", "$defs": schema["$defs"]})
    found = json.loads(dump_json(trace(tiny, colours)))
    assert check.is_valid(found)
    found["stages"]["image_rows"][0].pop("sha256")
    assert not check.is_valid(found)


def test_a_trace_stays_within_256_kib_at_any_dim_and_number_of_items(tmp_path, colours):
    items = tuple(replace(colours.items[k % 4], id=str(k)) for k in range(20))
    found = trace(custom(Wide()), replace(colours, items=items))
    assert len(dump_json(found)) <= MAX_BYTES
    assert len(found["images"]) == found["dataset"]["n"] == ITEMS


def test_a_session_takes_one_trace_per_model_by_the_reference_path_and_encodes_nothing_for_it(monkeypatch, colours):
    monkeypatch.setattr(Session, "dataset", lambda self, one, name: replace(colours, name=name))
    session, spec, wide = Session(Options(), Resources(batch_size=3)), ModelSpec("fake", "factory", "factory"), Wide()
    session.adopt(spec, custom(wide))
    session.measure(spec, Key("model_card", "fake", "none"))
    assert session.run().traces == ()
    for _ in range(2):
        session.measure(spec, Key("natural", "fake", "natural"))
    assert wide.asked == [3, 1, 3, 1]
    (found,) = session.run().traces
    assert found["model"]["name"] == "fake"
    assert found["stages"] == trace(custom(Wide()), colours)["stages"]
    assert run_to_json(session.run())["traces"] == [found]


def test_a_sample_is_whole_when_small_and_at_fixed_positions_when_large():
    large = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    assert decoded(sample(large[0, 0])).tolist() == large[0, 0].tolist()
    np.testing.assert_array_equal(decoded(sample(large)), large.ravel()[positions(large.size)])
    assert sample(large)["sha256"] != sample(large.reshape(32, 96))["sha256"]


@pytest.mark.parametrize("shape", [(224, 224, 3), (3, 224, 224), (512, 512, 3), (3, 336, 336)])
def test_positions_leave_out_no_channel_and_no_part_of_a_picture(shape):
    places = np.unravel_index(positions(int(np.prod(shape))), shape)
    assert len(set(zip(*(p.tolist() for p in places), strict=True))) == POSITIONS
    for axis, size in zip(places, shape, strict=True):
        counts = np.histogram(axis, bins=min(size, 8), range=(0, size))[0]
        assert counts.min() >= POSITIONS / min(size, 8) / 2


def test_what_is_no_number_is_refused(colours):
    with pytest.raises(EncoderError, match="NaN"):
        trace(custom(NanEncoder()), colours)
    with pytest.raises(EncoderError, match="NaN or infinity"):
        sample(np.array([1.0, np.inf]))
