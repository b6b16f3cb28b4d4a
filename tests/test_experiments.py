"""The experiments on encoders whose answers are known, and `evaluate`, the notebook's door."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import ColourEncoder, NanEncoder, colour_dataset, custom, measure
from PIL import Image

import clipbench
from clipbench.data.dataset import Dataset, Source
from clipbench.embed.embedder import Embedder
from clipbench.errors import DataError, DataUnavailableError, EncoderError, UsageError
from clipbench.experiments import all_experiments, experiment, register, registered, score, speed
from clipbench.models import device
from clipbench.models.device import Resources
from clipbench.models.encoder import CustomEncoder
from clipbench.options import Options
from clipbench.types import MetricSpec, Outcomes


@pytest.fixture
def colours(tmp_path):
    return colour_dataset(tmp_path)


def test_an_encoder_that_sees_colours_matches_all_of_them(colours):
    result = measure("natural", custom(ColourEncoder()), colours)
    assert {m: result.scores[m].value for m in ("text_to_image_top1", "image_to_text_top1")} == {
        "text_to_image_top1": 1.0,
        "image_to_text_top1": 1.0,
    }
    assert result.scores["margin_min"].value > 0
    assert result.scores["text_to_image_top1"].interval[0] < 1


def test_a_colour_blind_encoder_ties_everywhere_and_every_tie_counts_against_it(colours):
    class Blind(ColourEncoder):
        def encode_images(self, images):
            return np.ones((len(images), 3))

    result = measure("natural", custom(Blind()), colours)
    assert result.scores["text_to_image_top1"].value == 0
    assert result.scores["margin_mean"].value <= 0


def test_cells_belong_to_ids_whatever_the_order_of_the_items(tmp_path):
    straight = measure("natural", custom(ColourEncoder()), colour_dataset(tmp_path))
    back = measure("natural", custom(ColourEncoder()), colour_dataset(tmp_path, ColourEncoder.names[::-1]))
    np.testing.assert_allclose(
        straight.matrices["similarity"].values, back.matrices["similarity"].values[::-1, ::-1], atol=1e-12
    )
    assert straight.matrices["similarity"].rows == back.matrices["similarity"].rows[::-1]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("workers", [0, 3])
def test_batches_and_workers_change_nothing(colours, batch_size, workers):
    result = measure("natural", custom(ColourEncoder()), colours, batch_size=batch_size, workers=workers)
    np.testing.assert_array_equal(
        result.matrices["similarity"].values,
        measure("natural", custom(ColourEncoder()), colours).matrices["similarity"].values,
    )


def test_the_prompt_is_the_notebooks(colours):
    seen = []

    class Listening(ColourEncoder):
        def encode_texts(self, texts):
            seen.extend(texts)
            return super().encode_texts(texts)

    measure("natural", custom(Listening()), colours)
    assert seen[0] == "This is a red picture"


def test_a_broken_picture_is_named_and_left_out_of_the_rows_but_never_of_a_matrix(tmp_path, colours):
    whole = (tmp_path / "green.png").read_bytes()
    (tmp_path / "green.png").write_bytes(whole[: len(whole) // 2])
    embedded = Embedder(custom(ColourEncoder()), Resources(workers=2)).images(colours.items)
    assert embedded.ids == ("red", "blue", "white")
    assert "green.png" in embedded.broken[0]
    with pytest.raises(DataError, match=r"1 of 4 images are broken: green: .*green\.png"):
        measure("natural", custom(ColourEncoder()), colours)


def test_towers_of_different_dim_are_refused(colours):
    class Uneven(ColourEncoder):
        def encode_texts(self, texts):
            return np.ones((len(texts), 5))

    with pytest.raises(DataError, match="texts of dim 5 and images of dim 3"):
        measure("natural", custom(Uneven()), colours)


def test_the_fingerprint_changes_with_a_pixel_a_caption_and_the_order(tmp_path):
    first = colour_dataset(tmp_path)
    assert first.fingerprint == colour_dataset(tmp_path).fingerprint
    assert first.fingerprint != colour_dataset(tmp_path, ColourEncoder.names[::-1]).fingerprint
    before = first.fingerprint
    Image.new("RGB", (40, 30), (254, 0, 0)).save(tmp_path / "red.png")
    again = type(first)(first.name, first.items, first.source, prompts=first.prompts)
    assert again.fingerprint != before


def test_a_card_states_only_what_the_encoder_states():
    nothing = Dataset("none", (), "a model card needs no items")
    assert measure("model_card", custom(ColourEncoder()), nothing).scores == {}
    stated = ColourEncoder()
    stated.card = {"params": 12, "embed_dim": 3, "shoe_size": 44}
    scores = measure("model_card", custom(stated), nothing).scores
    assert {name: found.value for name, found in scores.items()} == {"params": 12, "embed_dim": 3}


def test_every_score_has_the_spec_that_its_experiment_declared(colours):
    for name in ("natural", "speed"):
        scores = measure(name, custom(ColourEncoder()), colours).scores
        assert {found.spec for found in scores.values()} <= set(experiment(name).metrics)
        assert scores.keys() == {found.spec.name for found in scores.values()}


RATE, MEAN = MetricSpec("right", "rate"), MetricSpec("mean", "mean")


def test_a_rate_has_wilsons_interval_and_a_wider_one_where_its_items_are_dependent():
    ids, values = tuple("abcdef"), np.array([1.0, 1, 1, 1, 0, 0])
    alone = score(RATE, Outcomes(ids, values))
    assert (alone.value, alone.n) == (4 / 6, 6)
    assert alone.interval == pytest.approx((0.2999934, 0.9032286), abs=1e-6)
    grouped = score(replace(RATE, cluster=True), Outcomes(ids, values, tuple("xxyyzz")))
    assert grouped.interval[0] < alone.interval[0]


def test_a_mean_has_a_bootstrap_interval_and_none_for_a_single_value():
    found = score(MEAN, Outcomes(tuple("abcd"), np.array([0.0, 0.2, 0.4, 0.6])))
    assert found.value == pytest.approx(0.3)
    assert 0 <= found.interval[0] < 0.3 < found.interval[1] <= 0.6
    assert score(MEAN, Outcomes(("a",), np.array([0.3]))).interval is None


def work(colours, size=4):
    return speed.workload(colours, size)


def test_the_workload_is_exactly_one_batch(colours):
    assert [len(work(colours, size).images) for size in (1, 4, 9)] == [1, 4, 9]
    assert len(work(colours, 9).texts) == 9


def test_throughput_is_the_batch_over_the_median_round(colours):
    (found,) = speed.images_per_second(custom(ColourEncoder()), work(colours), lambda call, rounds: [0.5, 1.0, 2.0])
    assert (found.spec.name, found.value, found.n) == ("images_per_second", 4, 3)
    assert found.spread == pytest.approx(1.9 - 0.55)


def test_throughput_without_a_timer_is_absent_not_zero(colours):
    assert speed.texts_per_second(custom(ColourEncoder()), work(colours), lambda call, rounds: []) == []


def test_rounds_fit_the_budget(colours, monkeypatch):
    asked = []

    def rounds_at(seconds):
        monkeypatch.setattr(speed, "_seconds", lambda call: seconds)
        speed.throughput(speed.IMAGES, lambda: None, 4, lambda call, rounds: asked.append(rounds) or [1.0])
        return asked[-1]

    assert [rounds_at(s) for s in (100.0, 5.0, 1.0, 0.5, 1e-6)] == [1, 2, 3, 6, 50]


@pytest.mark.parametrize(
    ("seconds", "present"),
    [
        (0.001, {"latency_p50", "latency_p90", "latency_p99"}),
        (0.2, {"latency_p50", "latency_p90"}),
        (1.0, {"latency_p50"}),
    ],
)
def test_latency_quantiles_are_absent_below_their_number_of_samples(colours, monkeypatch, seconds, present):
    monkeypatch.setattr(speed, "_seconds", lambda call: seconds)
    scores = {found.spec.name: found for found in speed.latency(custom(ColourEncoder()), work(colours))}
    assert set(scores) == present
    assert scores["latency_p50"].n == min(200, round(5 / seconds))
    assert scores["latency_p50"].value == pytest.approx(seconds)


def test_a_timed_call_that_does_other_work_is_refused(colours):
    class Shortcut(ColourEncoder):
        calls = 0

        def encode_images(self, images):
            self.calls += 1
            rows = super().encode_images(images)
            return rows if self.calls > 1 else -rows

    with pytest.raises(EncoderError, match="the timed call gives other rows"):
        speed.images_per_second(custom(Shortcut()), work(colours), speed.perf_counter_timer)


def test_speed_as_a_whole_gives_every_metric_it_can(colours):
    result = measure("speed", custom(ColourEncoder()), colours, batch_size=2)
    expected = {"images_per_second", "texts_per_second", "latency_p50", "latency_p90", "latency_p99"}
    assert expected <= result.scores.keys()
    assert all(np.isfinite(found.value) and found.value > 0 for found in result.scores.values())
    assert result.protocol.options["batch"] == 2
    assert result.is_timed


@pytest.mark.parametrize(
    ("name", "seconds", "calls"),
    [
        ("cuda", [0.9] * 3 + [0.1] * 90, 15),
        ("cuda", [0.1] * 90, 10),
        ("cuda", [0.9 * 2.0 ** -(k // 5) for k in range(90)], 10),
        ("cpu", [0.1] * 9, 0),
    ],
)
def test_a_device_is_warmed_up_until_its_calls_are_stable_or_for_five_seconds(monkeypatch, name, seconds, calls):
    left = iter(seconds)
    monkeypatch.setattr(speed, "_seconds", lambda call: next(left))
    speed.warm_up(lambda: None, name)
    assert len(seconds) - len(list(left)) == calls


def test_speed_on_cuda_gives_the_devices_own_seconds_and_what_the_card_was_doing(colours, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda name: None)
    monkeypatch.setattr(device, "device_seconds", lambda start, name: start() is not None and 0.004)
    monkeypatch.setattr(
        device, "card_state", lambda name: {"clock_mhz": 1755.0, "processes": 1.0} if name == "cuda" else {}
    )
    monkeypatch.setattr(device, "reset_peak_memory", lambda name: False)
    encoder = CustomEncoder(ColourEncoder(), "fake", "cuda")
    result = measure("speed", encoder, colours, batch_size=2)
    own = {name: found.value for name, found in result.scores.items() if "device" in name}
    assert own == dict.fromkeys(("images_device_seconds", "texts_device_seconds", "latency_device_seconds"), 0.004)
    assert result.provenance.card == {"clock_mhz": 1755.0, "processes": 1.0}
    assert result.is_timed
    assert measure("speed", custom(ColourEncoder()), colours, batch_size=2).provenance.card == {}


def test_experiments_are_found_by_looking():
    assert list(all_experiments())[:2] == ["model_card", "natural"]
    assert "speed" in all_experiments()


def test_evaluate_takes_an_object_and_names_of_experiments():
    run = clipbench.evaluate(ColourEncoder(), experiments=["model_card"], device="cpu")
    assert [r.model.name for r in run.results] == ["ColourEncoder"]
    assert run.environment["machine"]["cores"] >= 1


def test_evaluate_refuses_what_it_does_not_know():
    with pytest.raises(UsageError, match="unknown experiment 'naturel'; closest: natural"):
        clipbench.evaluate(ColourEncoder(), experiments=["naturel"], device="cpu")
    with pytest.raises(UsageError, match="expected one of fp32, tf32, bf16, fp16"):
        clipbench.evaluate(ColourEncoder(), precision="int8", device="cpu")
    with pytest.raises(UsageError, match=r"zero_shot has no data; give its folder: zero_shot=\.\.\."):
        clipbench.evaluate(ColourEncoder(), experiments=["zero_shot"], device="cpu")
    with pytest.raises(UsageError, match="unknown setting 'baseline'"):
        clipbench.evaluate(ColourEncoder(), baseline="old.json", device="cpu")
    with pytest.raises(UsageError, match="brings its own weights"):
        clipbench.evaluate(ColourEncoder(), pretrained="random", device="cpu")


def test_a_notebooks_options_follow_the_environment_and_the_home_folder(monkeypatch, tmp_path):
    (tmp_path / "a" / "cat").mkdir(parents=True)
    (tmp_path / "a" / "cat" / "0.png").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = Options.from_kwargs(cache="", zero_shot={"a": "~/a"})
    assert (options.offline, options.cache) == (True, None)
    assert options.data.roots["zero-shot"] == (("a", tmp_path / "a"),)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not Options.from_kwargs().offline


def test_evaluate_keeps_what_was_measured_before_somebody_elses_error():
    class Failing(ColourEncoder):
        def encode_images(self, images):
            raise ZeroDivisionError("the encoder's own fault")

    with pytest.warns(UserWarning, match="the encoder's own fault"):
        run = clipbench.evaluate(Failing(), experiments=["model_card", "natural"], device="cpu", plain=True)
    assert [r.experiment for r in run.results] == ["model_card"]
    assert "ZeroDivisionError: the encoder's own fault" in [skip.reason for skip in run.skipped]


def test_evaluate_notes_what_could_not_be_had_and_warns_where_that_is_all(monkeypatch):
    def gone(name):
        raise DataUnavailableError("scikit-image is not installed")

    monkeypatch.setattr("clipbench.experiments.matching.packaged_dataset", gone)
    with pytest.warns(UserWarning, match="nothing was measured: scikit-image is not installed"):
        run = clipbench.evaluate(ColourEncoder(), experiments=["natural"], device="cpu")
    assert (run.results, [s.reason for s in run.skipped]) == ((), ["scikit-image is not installed"])


def test_an_experiment_of_your_own_is_measured_like_ours(colours):
    one = replace(experiment("natural"), name="mine", sources=lambda options: (Source("colours", lambda: colours),))
    with registered(one):
        run = clipbench.evaluate(ColourEncoder(), experiments=["mine"], device="cpu")
        with pytest.raises(UsageError, match="an experiment 'mine' is there already"):
            register(one)
    assert [(r.experiment, r.dataset.name) for r in run.results] == [("mine", "colours")]
    assert "mine" not in all_experiments()


def test_an_encoder_with_nan_is_an_error_not_a_result(colours):
    with pytest.raises(EncoderError, match="NaN"):
        measure("natural", custom(NanEncoder()), colours)
