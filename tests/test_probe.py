"""The probe: small, the same every time, through the plain call, and every stage that the encoder shows."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import ColourEncoder, NanEncoder, colour_dataset, custom
from jsonschema import Draft202012Validator

from clipbench.embed.probe import ITEMS, MAX_PROBE_BYTES, probe_of, probed
from clipbench.embed.sample import POSITIONS, positions, sample
from clipbench.errors import EncoderError
from clipbench.experiments.natural import natural
from clipbench.models.zoo import ModelSpec
from clipbench.result import dump_json
from clipbench.run_file import run_schema
from clipbench.session import Session
from clipbench.settings import Settings

SETTINGS = Settings(batch_size=3)
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
    probe = probe_of(tiny, colours, SETTINGS)
    assert set(probe["stages"]) == OURS
    assert {len(samples) for samples in probe["stages"].values()} == {len(colours)}
    assert probe["activations"] == {"QuickGELU": 4}
    assert probe["texts"][0] == "This is a red picture"
    assert decoded(probe["stages"]["tokens"][0])[0] == 49406
    picture = np.asarray(colours.items[0].image.open())
    assert decoded(probe["stages"]["decoded_pixels"][0]).tolist() == picture.ravel()[positions(picture.size)].tolist()


def test_rows_and_similarities_are_those_of_the_plain_call(tiny, colours):
    stages = probe_of(tiny, colours, SETTINGS)["stages"]
    rows = tiny.encode_images([item.image.open() for item in colours.items])
    texts = tiny.encode_texts(["This is a red picture"])
    np.testing.assert_allclose(decoded(stages["image_rows"][2]), rows[2], atol=1e-6)  # another batch size rounds
    np.testing.assert_allclose(decoded(stages["text_rows"][0]), texts[0], atol=1e-6)
    np.testing.assert_allclose(decoded(stages["similarities"][0]), rows @ texts[0], atol=1e-6)


def test_an_encoder_that_is_not_ours_lacks_what_it_does_not_show(colours):
    probe = probe_of(custom(ColourEncoder()), colours, SETTINGS)
    assert set(probe["stages"]) == OURS - {"preprocessed_tensor", "tokens"}
    assert "activations" not in probe
    assert probe["model"]["weights_sha256"] == ""


def test_two_probes_of_one_encoder_are_one_text(tiny, colours):
    assert dump_json(probe_of(tiny, colours, SETTINGS)) == dump_json(probe_of(tiny, colours, SETTINGS))


def test_a_probe_fits_its_schema_and_a_damaged_one_does_not(tiny, colours):
    schema = run_schema()
    check = Draft202012Validator({"$ref": "#/$defs/probe", "$defs": schema["$defs"]})
    probe = json.loads(dump_json(probe_of(tiny, colours, SETTINGS)))
    assert check.is_valid(probe)
    probe["stages"]["image_rows"][0].pop("sha256")
    assert not check.is_valid(probe)


def test_a_probe_stays_within_256_kib_at_any_dim_and_number_of_items(tmp_path, colours):
    items = tuple(replace(colours.items[k % 4], id=str(k)) for k in range(20))
    probe = probe_of(custom(Wide()), replace(colours, items=items), SETTINGS)
    assert len(dump_json(probe)) <= MAX_PROBE_BYTES
    assert len(probe["images"]) == probe["dataset"]["n"] == ITEMS


def test_rows_of_the_plain_call_are_shared_and_the_result_is_freed_of_them(colours):
    wide = Wide()
    encoder = custom(wide)
    result = natural(encoder, colours, SETTINGS)
    calls = list(wide.asked)
    rest, probe = probed(encoder, colours, SETTINGS, result)
    assert wide.asked == calls
    assert set(rest.arrays) == {"similarity"}
    assert probe == probe_of(encoder, colours, SETTINGS)


@pytest.mark.parametrize("why", ["shortcut", "no rows"])
def test_the_plain_call_is_made_when_the_rows_are_not_its_own(colours, why):
    wide = Wide()
    encoder = custom(wide)
    result = natural(encoder, colours, SETTINGS)
    if why == "shortcut":
        result = replace(result, protocol={**result.protocol, "shortcuts": ["short token batches"]})
    else:
        result = replace(result, arrays={"similarity": result.arrays["similarity"]})
    wide.asked.clear()
    probed(encoder, colours, SETTINGS, result)
    assert wide.asked == [3, 1, 3, 1]


def test_a_session_takes_one_probe_a_model_with_natural_images(monkeypatch, colours):
    monkeypatch.setattr(Session, "dataset", lambda self, name: colours)
    session = Session(SETTINGS)
    spec = ModelSpec("fake", "factory", "factory")
    session.adopt(spec, custom(ColourEncoder()))
    session.measure(spec, "model_card")
    assert session.run().probes == ()
    session.measure(spec, "natural")
    session.measure(spec, "natural")
    (probe,) = session.run().probes
    assert probe["model"]["name"] == "fake"
    assert set(session.results["fake", "natural"].arrays) == {"similarity"}
    assert session.run().to_json()["probes"] == [probe]


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
        probe_of(custom(NanEncoder()), colours, SETTINGS)
    with pytest.raises(EncoderError, match="NaN or infinity"):
        sample(np.array([1.0, np.inf]))
