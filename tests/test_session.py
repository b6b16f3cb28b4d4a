"""A session: the plan, results on disk as they are measured, verdicts once, and what nobody measured."""

import json
from dataclasses import replace

import pytest
from fakes import ColourEncoder, custom

import clipbench.parts
import clipbench.session
from clipbench.data.dataset import Source
from clipbench.errors import DataError, EncoderError
from clipbench.experiments import experiment
from clipbench.models.device import Resources
from clipbench.models.zoo import ModelSpec
from clipbench.options import Options
from clipbench.parts import part_name
from clipbench.session import Session, planned
from clipbench.types import Key

pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
CARD = Key("model_card", "mine", "none")
NATURAL = Key("natural", "mine", "natural")


class Grey(ColourEncoder):
    """Reads every caption as the same."""

    def encode_texts(self, texts):
        return self.encode_images([]) if not texts else [[1.0, 2.0, 3.0]] * len(texts)


@pytest.fixture
def session(tmp_path):
    """A session of one model that is loaded already."""
    found = Session(Options(), Resources(), parts=tmp_path / "parts", plan=(CARD, NATURAL))
    found.adopt(SPEC, custom(Grey(), "mine"))
    yield found
    found.close()


SPEC = ModelSpec("mine", "factory", "factory")


def test_a_plan_is_known_without_loading_anything_and_has_one_key_per_data_set(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").touch()
    folders = {"a": tmp_path, "b": tmp_path}
    plan = planned(["m", "n"], ["zero_shot", "natural"], Options.from_kwargs(zero_shot=folders))
    assert plan[:3] == (Key("zero_shot", "m", "a"), Key("zero_shot", "m", "b"), Key("natural", "m", "natural"))
    assert planned(["m"], ["zero_shot"], Options()) == ()


def test_a_result_is_on_disk_as_soon_as_it_is_measured_and_before_it_is_judged(session, tmp_path):
    session.measure(SPEC, NATURAL)
    entry = json.loads((tmp_path / "parts" / part_name(NATURAL)).read_text())
    assert (entry["experiment"], entry["model"]["name"], entry["verdicts"]) == ("natural", "mine", [])


def test_a_full_disk_costs_the_file_and_not_the_result(session, monkeypatch):
    def full(path, content):
        raise OSError("No space left on device")

    monkeypatch.setattr(clipbench.parts, "write_atomically", full)
    assert session.measure(SPEC, NATURAL).scores
    assert "No space left" in session.unwritten[0]


def test_parts_of_two_keys_never_share_a_file():
    names = {part_name(Key("e", model, "d")) for model in ("a:b", "a_b", "a/b", "a" * 300, "a" * 301)}
    assert len(names) == 5
    assert max(map(len, names)) < 130


def test_what_the_plan_asked_for_and_nobody_measured_is_a_skip(session):
    session.measure(SPEC, NATURAL)
    run = session.run()
    assert [(skip.key, skip.reason) for skip in run.skipped] == [(CARD, "asked for and not measured")]
    assert run.plan == (CARD, NATURAL)


def test_a_result_is_judged_once_when_it_is_first_asked_for(session, monkeypatch):
    calls = []
    monkeypatch.setattr(clipbench.session, "judge", lambda result, beside, own: calls.append(result.key) or ())
    session.measure(SPEC, NATURAL)
    assert calls == []
    assert session.verdicts(NATURAL) == session.verdicts(NATURAL)
    assert calls == [NATURAL]


def test_a_subject_says_what_was_asked_and_what_was_observed(session):
    (subject,) = session.run().subjects
    assert subject.asked["alias"] == "mine"
    assert subject.asked["precision"] == "fp32"
    assert subject.observed["preprocessing"] == "the encoder's own"


def test_an_encoder_whose_scale_is_no_number_is_refused_before_anything_is_measured(tmp_path):
    encoder = Grey()
    encoder.logit_scale = float("nan")
    found = Session(Options(), Resources(), plan=(CARD,))
    with pytest.raises(EncoderError, match="logit_scale"):
        found.adopt(SPEC, custom(encoder, "mine"))


def test_a_source_that_loads_a_data_set_of_another_name_is_refused(session, monkeypatch):
    def other(options):
        (source,) = natural_sources(options)
        return (Source("natural", lambda: replace(source.load(), name="other")),)

    natural_sources = experiment("natural").sources
    monkeypatch.setattr(clipbench.session, "experiment", lambda name: replace(experiment(name), sources=other))
    with pytest.raises(DataError, match="'other'"):
        session.measure(SPEC, NATURAL)
