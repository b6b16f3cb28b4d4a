"""Taking a trace: small, the same every time, by the reference path, with every stage that the encoder shows, and how well it repeats."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import ColourEncoder, NanEncoder, colour_dataset, custom
from jsonschema import Draft202012Validator

from clipbench.embed.trace import PICTURES, POSITIONS, TEXTS, pictures, positions, sample, trace_of
from clipbench.errors import EncoderError
from clipbench.models.device import Resources
from clipbench.models.encoder import unit_rows
from clipbench.models.zoo import ModelSpec
from clipbench.options import Options
from clipbench.session import Session
from clipbench.storage import dump_json, run_schema, run_to_json
from clipbench.types import Key

MAX_BYTES = 256 << 10
OURS = {"decoded_pixels", "preprocessed_tensor", "tokens", "image_rows", "text_rows"}


class Wide(ColourEncoder):
    """Rows of a large dim for any text, and the size of every batch that it was asked for."""

    dim = 4096
    noise, per_batch = 0.0, 0.0

    def __init__(self):
        self.asked = []

    def encode_images(self, images):
        return self._rows(super().encode_images(images))

    def encode_texts(self, texts):
        return self._rows(np.array([[len(text), sum(map(ord, text)), 99.0] for text in texts]))

    def _rows(self, few):
        self.asked.append(len(few))
        rows = np.tile(unit_rows(few), (1, self.dim))[:, : self.dim] + 1e-3
        wobble = np.random.default_rng(len(self.asked)).normal(size=rows.shape) * self.noise
        return rows + wobble + self.per_batch * np.eye(self.dim)[len(few)]


@pytest.fixture(scope="module")
def tiny(tiny_models):
    from clipbench.models.open_clip import load_open_clip

    return load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "quickgelu"), "cpu", "fp32", True)


def decoded(entry):
    return np.frombuffer(base64.b64decode(entry["values"]), dtype=np.dtype(entry["dtype"]).newbyteorder("<"))


def test_an_encoder_of_ours_shows_every_stage_of_every_fixed_item(tiny):
    found = trace_of(tiny)
    assert set(found["stages"]) == OURS
    assert {len(samples) for samples in found["stages"].values()} == {len(PICTURES)} == {len(TEXTS)}
    assert found["activations"] == {"QuickGELU": 4}
    assert decoded(found["stages"]["tokens"][0])[0] == 49406
    picture = np.asarray(pictures()[0])
    assert decoded(found["stages"]["decoded_pixels"][0]).tolist() == picture.ravel()[positions(picture.size)].tolist()


def test_the_fixed_items_are_those_on_which_pipelines_go_wrong(tiny):
    sizes = dict(zip(PICTURES, (picture.size for picture in pictures()), strict=True))
    assert {picture.mode for picture in pictures()} == {"RGB"}
    assert {mode for mode, _, _ in PICTURES.values()} == {"RGB", "L", "P", "RGBA"}
    assert sizes["portrait, turned by EXIF"] == (160, 240)  # production does not turn it: the tag is not obeyed
    assert min(sizes["tiny"]) == 3
    tokens = [decoded(entry) for entry in trace_of(tiny)["stages"]["tokens"]]
    assert [row[-1] != 0 for row in tokens] == [False] * 7 + [True]  # the last one is longer than any context


def test_rows_are_those_of_the_reference_path(tiny):
    stages = trace_of(tiny)["stages"]
    images, texts = unit_rows(tiny.encode_images(list(pictures()))), unit_rows(tiny.encode_texts(list(TEXTS[:1])))
    np.testing.assert_allclose(decoded(stages["image_rows"][2]), images[2], atol=1e-6)
    np.testing.assert_allclose(decoded(stages["text_rows"][0]), texts[0], atol=1e-6)  # another batch size rounds


def test_an_encoder_that_is_not_ours_lacks_what_it_does_not_show():
    found = trace_of(custom(Wide()))
    assert set(found["stages"]) == OURS - {"preprocessed_tensor", "tokens"}
    assert "activations" not in found
    assert found["model"]["weights_sha256"] == ""


@pytest.mark.parametrize("broken", [NanEncoder(), ColourEncoder()])
def test_an_encoder_that_knows_its_own_items_alone_has_an_error_in_place_of_rows(broken):
    found = trace_of(custom(broken))
    assert found["error"]
    assert set(found["stages"]) == {"decoded_pixels"}
    assert "repeat" not in found


def test_two_traces_of_one_encoder_are_one_text(tiny):
    assert dump_json(trace_of(tiny)) == dump_json(trace_of(tiny))


@pytest.mark.parametrize(
    ("how", "repeats", "is_batch_free"),
    [({}, True, True), ({"noise": 0.01}, False, False), ({"per_batch": 0.5}, True, False)],
)
def test_a_trace_says_how_far_a_row_lies_from_itself_in_the_same_batch_and_in_others(how, repeats, is_batch_free):
    wide = Wide()
    vars(wide).update(how)
    found = trace_of(custom(wide))
    assert (found["repeat"] < 1e-6, found["batches"] < 1e-6) == (repeats, is_batch_free)


def test_a_trace_fits_its_schema_and_a_damaged_one_does_not(tiny):
    schema = run_schema()
    check = Draft202012Validator({"$ref": "#/$defs/trace", "$defs": schema["$defs"]})
    found = json.loads(dump_json(trace_of(tiny)))
    assert check.is_valid(found)
    assert check.is_valid(json.loads(dump_json(trace_of(custom(NanEncoder())))))
    found["stages"]["image_rows"][0].pop("sha256")
    assert not check.is_valid(found)


def test_a_trace_stays_within_256_kib_at_any_dim():
    assert len(dump_json(trace_of(custom(Wide())))) <= MAX_BYTES


def test_a_session_takes_one_trace_per_model(monkeypatch, tmp_path):
    monkeypatch.setattr(Session, "dataset", lambda self, one, name: replace(colour_dataset(tmp_path), name=name))
    session, spec, wide = Session(Options(), Resources(batch_size=3)), ModelSpec("fake", "factory", "factory"), Wide()
    session.adopt(spec, custom(wide))
    session.measure(spec, Key("model_card", "fake", "none"))
    assert session.run().traces == ()
    for _ in range(2):
        session.measure(spec, Key("natural", "fake", "natural"))
    (found,) = session.run().traces
    assert found["model"]["name"] == "fake"
    assert found["stages"] == trace_of(custom(Wide()))["stages"]
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


def test_what_is_no_number_is_refused():
    with pytest.raises(EncoderError, match="NaN or infinity"):
        sample(np.array([1.0, np.inf]))
