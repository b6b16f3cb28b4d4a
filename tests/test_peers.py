"""The comparison with the peers: the same work or no clock, ratios with intervals, data in layout, tables that say what was found."""

import json
import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from fakes import matching
from PIL import Image

from clipbench.data.coco import coco_crops, coco_multilabel, coco_retrieval
from clipbench.environment import describe_environment
from clipbench.errors import UsageError
from clipbench.models.open_clip import load_open_clip
from clipbench.models.zoo import ModelSpec
from clipbench.peers import bench as bench_module
from clipbench.peers import growth, measure, memory, ours, processes, table, theirs
from clipbench.peers.__main__ import NAMES, main
from clipbench.peers.bench import QUICK, STEPS, Bench
from clipbench.peers.captions import captions
from clipbench.peers.coco_like import BOXES_AN_IMAGE, CAPTIONS_AN_IMAGE, mean_file_bytes, write_coco_like
from clipbench.peers.comparisons import COMPARISONS
from clipbench.peers.flops import TowerFlops, matmul_flops_per_second, token_lengths, tower_flops
from clipbench.peers.growth import Growth
from clipbench.peers.memory import Peak
from clipbench.peers.work import Flops, PeerError, Work, check_same, timed
from clipbench.report.document import to_markdown
from clipbench.result import Run, dump_json
from clipbench.settings import Settings

pytest.importorskip("skimage", reason="the photographs are scikit-image's")
pytest.importorskip("clip_benchmark", reason="the peer is in the test extra")

TINY = ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu")
WIDTH, LAYERS, DIM, CONTEXT = 64, 2, 32, 77
PATCH, PATCHES = 8, 16


def tiny(seed=0):
    return load_open_clip(replace(TINY, pretrained=f"random:{seed}"), "cpu", "fp32", True)


@pytest.fixture(scope="module")
def bench(tiny_models, tmp_path_factory):
    made = Bench(Settings(offline=True), QUICK, tmp_path_factory.mktemp("peers"), lambda line: None)
    made.encoder = tiny()
    return made


@pytest.fixture(scope="module")
def root(bench):
    return bench.root(QUICK.images)


class Clock:
    """Time that passes only when work says so."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def side(self, name, seconds):
        """A side that takes the next of these seconds at each call, the first being the check."""
        left = iter(seconds)

        def call():
            self.calls.append(name)
            self.now += next(left)
            return {"rows": np.eye(2)}

        return call


def work_of(clock, ours_seconds, theirs_seconds, rounds, turns=1):
    sides = clock.side("ours", ours_seconds), clock.side("theirs", theirs_seconds)
    return Work("captions", "encode", "peer", 2.0, *sides, Flops(4e9, 2e9), rounds, turns)


def silent(line):
    pass


# The data.


def test_the_folder_is_in_the_official_layout_and_every_reader_reads_all_of_it(root):
    crops, labels, retrieval = coco_crops(root), coco_multilabel(root), coco_retrieval(root)
    assert (len(crops), len(labels), len(retrieval)) == (QUICK.images * BOXES_AN_IMAGE, QUICK.images, QUICK.images)
    assert len(crops.classes) == 80
    assert not any({**crops.notes, **labels.notes, **retrieval.notes}.values())
    assert all(len(item.captions) == CAPTIONS_AN_IMAGE for item in retrieval.items)
    categories = json.loads((root / "annotations/instances_val2017.json").read_text())["categories"]
    assert (categories[0]["name"], categories[-1]["name"], categories[-1]["id"]) == ("person", "toothbrush", 90)


def test_pictures_are_640_by_480_in_colour_and_about_as_large_as_coco_s(root):
    opened = [Image.open(item.image.path) for item in coco_retrieval(root).items]
    assert {tuple(sorted(image.size)) for image in opened} == {(480, 640)}
    assert {(image.format, image.mode) for image in opened} == {("JPEG", "RGB")}
    assert 120e3 < mean_file_bytes(root) < 200e3


def test_pictures_and_captions_are_distinct_and_their_seed_s(root, tmp_path):
    def content(folder):
        items = coco_retrieval(folder).items
        return [item.image.path.read_bytes() for item in items], [text for item in items for text in item.captions]

    pictures, texts = content(root)
    fewer, other = (write_coco_like(tmp_path / str(seed), 4, seed) for seed in (0, 1))
    assert len(set(pictures)) == len(pictures)
    assert len(set(texts)) == len(texts)
    assert content(fewer) == (pictures[:4], texts[: 4 * CAPTIONS_AN_IMAGE])
    assert not set(content(other)[0]) & set(pictures)
    assert len(set(content(other)[1]) & set(texts)) <= 1


def test_captions_are_as_long_as_coco_s():
    texts = captions(2000)
    lengths = open_clip.get_tokenizer("ViT-B-32")(texts).argmax(dim=-1) + 1
    assert 10 < np.mean([len(text.split()) for text in texts]) < 11
    assert 12 < lengths.float().mean() < 13
    assert 8 <= lengths.min() <= lengths.max() <= 30


def test_one_image_is_refused(tmp_path):
    with pytest.raises(UsageError, match="2 or more"):
        write_coco_like(tmp_path / "one", 1)


# The same work, or no clock.


@pytest.mark.parametrize("name", COMPARISONS)
def test_both_sides_of_every_comparison_do_the_same_work(bench, name):
    work = COMPARISONS[name](bench)
    found = work.ours()
    check_same(name, found, work.theirs())
    assert all(len(array) for array in found.values())
    assert work.flops.peer >= work.flops.ours > 0


def test_a_peer_with_other_weights_is_refused(bench):
    other = tiny(seed=1)
    work = replace(COMPARISONS["captions"](bench), theirs=lambda: theirs.encoded_captions(other, bench.items(8)))
    with pytest.raises(PeerError, match="rows of clipbench differs from the peer's"):
        timed(work, silent)


PLANTED = {
    "off by more than additions make": {"rows": np.eye(2) + 2e-5},
    "another shape": {"rows": np.eye(3)},
    "no number": {"rows": np.full((2, 2), np.nan)},
    "an array that is absent": {"recalls": np.eye(2)},
    "nothing": {},
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_peer_that_does_other_work_is_refused_before_the_clock_is_read(planted):
    def no_clock():
        raise AssertionError("the clock was read")

    work = Work("captions", "encode", "peer", 2, lambda: {"rows": np.eye(2)}, lambda: planted, Flops(1, 1), 2)
    with pytest.raises(PeerError, match="captions: "):
        timed(work, silent, no_clock)


def test_rows_within_the_order_of_additions_are_the_same():
    check_same("captions", {"rows": np.eye(2, dtype=np.float32)}, {"rows": np.eye(2) + 5e-6})


def test_a_recall_of_one_hit_more_is_not_the_same():
    with pytest.raises(PeerError, match="recalls"):
        check_same("retrieval", {"recalls": np.array([0.5])}, {"recalls": np.array([0.5 + 1 / 25_000])})


def test_what_clipbench_keeps_on_an_encoder_does_not_outlive_a_turn(bench, monkeypatch):
    seen = []

    def remembering(encoder, texts, settings):
        seen.append(hasattr(encoder, "memory"))
        encoder.memory = texts
        return np.eye(2)

    monkeypatch.setattr(ours, "embed_texts", remembering)
    for _ in range(2):
        ours.encoded_captions(bench.encoder, bench.items(8), bench.settings)
    assert seen == [False, False]


def test_a_peer_that_is_not_installed_is_named_with_the_command(monkeypatch):
    def absent(name):
        raise theirs.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(theirs.importlib.metadata, "version", absent)
    with pytest.raises(PeerError, match=r"pip install \"clipbench\[test\]\""):
        theirs.clip_benchmark_version()


# Ratios.


def test_the_ratio_is_the_peer_s_time_over_ours_and_sides_take_turns():
    clock = Clock()
    ratio = timed(work_of(clock, [9] + [2] * 4, [1] + [6] * 4, rounds=2, turns=2), silent, clock)
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((3, 3, 3))
    assert (ratio.base, ratio.head) == (2, 6)
    assert clock.calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "theirs", "ours", "ours", "theirs"]


def test_the_interval_is_student_s_over_the_logarithms_of_the_rounds_ratios():
    clock = Clock()
    ratio = timed(work_of(clock, [1, 1, 1, 1], [1, 2, 4, 8], rounds=3), silent, clock)
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert ratio.rounds == pytest.approx((2, 4, 8))
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((4, 4 * math.exp(-half), 4 * math.exp(half)), rel=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (2, 3, "yes"),
        (2.1, 3, "yes"),
        (1, 3, "cannot tell"),
        (1, 2, "cannot tell"),
        (1, 1.9, "no"),
        (None, None, "cannot tell"),
    ],
)
def test_a_target_is_reached_by_the_whole_interval(low, high, word):
    assert table.reached(low, high, 2) == word


# Operations.


def test_operations_are_those_of_the_layers_by_hand(bench):
    found = tower_flops(bench.encoder)
    block, projection = 2 * 12 * WIDTH**2, 2 * WIDTH * DIM
    attention = 2 * 2 * WIDTH
    tokens = PATCHES + 1
    assert found.linear == LAYERS * CONTEXT * block + projection
    assert found.attention == LAYERS * CONTEXT**2 * attention
    embedded = 2 * PATCHES * 3 * PATCH**2 * WIDTH
    assert found.image == embedded + LAYERS * (tokens * block + tokens**2 * attention) + projection


def test_operations_of_a_text_grow_with_its_length_and_its_square():
    tower = TowerFlops(image=1, linear=100, attention=10, context=77)
    assert tower.texts([77, 77]) == tower.full_texts(2) == 220
    assert tower.texts([38.5]) == 50 + 2.5


def test_a_text_is_as_long_as_its_words_with_start_and_end(bench):
    assert token_lengths(bench.encoder, ["a photo", "", "cat " * 100]) == [4, 2, 77]


def test_the_fused_layer_is_switched_on_again_after_counting(bench):
    tower_flops(bench.encoder)
    assert torch.backends.mha.get_fastpath_enabled()
    assert matmul_flops_per_second() > 0


# Growth, memory, processes.


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_exponent_is_the_power_that_values_grow_with(power):
    sizes = tuple(10 * step for step in STEPS)
    assert Growth("x", sizes, tuple(3.0 * n**power for n in sizes)).exponent == pytest.approx(power, abs=1e-9)


def test_cost_is_taken_at_every_size_up_and_down(bench, monkeypatch):
    seen = []
    monkeypatch.setattr(ours, "encoded_images", lambda encoder, items, settings: seen.append(len(items)))
    ticks = iter(range(1000))
    wide = Bench(bench.settings, replace(QUICK, steps_rounds=2), bench.folder, silent)
    wide.encoder = bench.encoder
    texts, images = growth.cost_against_size(wide, lambda: next(ticks))
    assert seen == [2, 2, 4, 8, 16, 16, 8, 4, 2]
    assert (texts.sizes, images.sizes) == ((10, 20, 40, 80), (2, 4, 8, 16))
    assert images.values == (1, 1, 1, 1)


@pytest.mark.parametrize("side", memory.SIDES)
def test_a_peak_is_no_lower_than_the_memory_before(bench, side):
    found = memory.encoding_peak(side, bench.encoder, bench.items(8)[:2], bench.settings)
    assert 0 < found.before <= found.peak


def test_where_peaks_cannot_be_counted_memory_is_not_measured_and_passes_nothing(bench, monkeypatch):
    monkeypatch.setattr(memory, "reset_peak_memory", lambda device: False)
    monkeypatch.setattr(memory, "fresh_peak", lambda b, side, n: memory.encoding_peak(side, b.encoder, [], b.settings))
    found = measure.measure(["memory"], bench)
    assert [line.reached for line in found.lines] == ["not measured"]
    assert "cannot be counted anew" in found.notes[0]
    assert found.exit_code == 3


def test_memory_is_compared_in_pairs_of_processes_that_alternate(bench, monkeypatch):
    seen = []

    def peak(bench, side, images):
        seen.append(side)
        return Peak(10, 100 if side == "clipbench" else 150)

    monkeypatch.setattr(memory, "fresh_peak", peak)
    ratio, pair = memory.memory_ratio(bench)
    assert (ratio.ratio, ratio.base, ratio.head) == pytest.approx((1.5, 100, 150))
    assert seen == [*memory.SIDES, *memory.SIDES[::-1]]
    assert pair["clipbench"] == Peak(10, 100)


def test_memory_against_size_shows_the_whole_and_what_encoding_added(bench, monkeypatch):
    monkeypatch.setattr(memory, "fresh_peak", lambda bench, side, images: Peak(1000, 1000 + images))
    whole, added = memory.memory_against_size(bench)
    assert whole.exponent < 0.02
    assert added.exponent == pytest.approx(1)


def test_a_process_of_memory_that_fails_says_why(bench, monkeypatch):
    done = memory.subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no room\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda *a, **k: done)
    with pytest.raises(PeerError, match="code 1: MemoryError: no room"):
        memory.fresh_peak(bench, "clipbench", QUICK.images)


def test_a_session_that_does_not_pass_is_no_timing(tmp_path):
    with pytest.raises(PeerError, match=r"ended with code 4.*unrecognized arguments: --no-such-option"):
        processes.pytest_benchmarks(["--no-such-option"], tmp_path)


def test_the_first_run_of_the_main_job_is_not_counted(bench):
    seconds = iter([99.0, 20.0, 22.0, 21.0])
    wide = Bench(bench.settings, replace(QUICK, lite_runs=3), bench.folder, silent)
    assert processes.lite_seconds(wide, lambda arguments, results: next(seconds)) == [20, 22, 21]


def run_json(off_diagonal):
    found = matching([[1.0, off_diagonal], [0.0, 1.0]], ["a", "b"])
    return dump_json({"clipbench": Run(describe_environment("cpu"), (found,)).to_json()})


def started(seconds, values):
    left, texts = iter(seconds), iter(values)

    def start(arguments, results):
        assert {"--cache", "--coco"} <= set(arguments)
        results.mkdir(parents=True, exist_ok=True)
        (results / "run.json").write_text(run_json(next(texts)))
        return next(left)

    return start


def test_the_second_runs_are_compared_with_the_first(bench):
    ratio = processes.cached_ratio(bench, started([24, 2, 48, 2], [0.5, 0.5, 0.5, 0.5]))
    assert ratio.rounds == pytest.approx((12, 24))
    assert ratio.low < 12 * math.sqrt(2) < ratio.high


def test_a_second_run_that_measures_something_else_is_refused(bench):
    with pytest.raises(PeerError, match="natural: the run from the cache measures something else"):
        processes.cached_ratio(bench, started([24, 2, 24, 2], [0.5, 0.5, 0.5, 0.4]))


# The tables and the command.


def lines(*words):
    return measure.Findings([table.Line("w", "p", "o", "r", "1", word) for word in words])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["yes", "yes"], 0),
        (["yes", "no", "cannot tell"], 1),
        (["yes", "cannot tell"], 3),
        (["not measured"], 3),
        ([], 0),
    ],
)
def test_the_exit_code_says_whether_every_target_is_reached(words, code):
    assert lines(*words).exit_code == code


@pytest.mark.parametrize(("seconds", "word"), [([20, 29], "yes"), ([29, 31], "cannot tell"), ([30, 31], "no")])
def test_the_main_job_is_held_to_thirty_seconds(seconds, word):
    line = table.lite_line(seconds)
    assert line.reached == word
    assert line.ours == f"{np.median(seconds):.1f} s ({seconds[0]:.1f} to {seconds[1]:.1f})"


def test_tables_say_what_each_side_did_in_cells_as_many_as_the_header():
    clock = Clock()
    work = work_of(clock, [0] + [1] * 2, [0] + [4] * 2, rounds=2)
    ratio = timed(work, silent, clock)
    tables = [
        table.targets_table([table.work_line(work, ratio), table.memory_line(8, ratio), table.cached_line(500, ratio)]),
        table.flops_table([table.Achieved("encode", work.flops, ratio, 4e9)]),
        table.growth_table([Growth("captions", (1, 2, 4, 8), (1.0, 2.0, 4.0, 8.0))], "seconds (items)", 1),
    ]
    assert all(len(row) == len(t.header) for t in tables for row in t.rows)
    text = to_markdown(tables)
    assert "| encode | peer, 4.00 s | 1.00 s | 4 (4 to 4) | 2 | yes |" in text
    assert "| encode | 1 (25%) | 2 (50%) |" in text
    assert "| captions | 1 (1) | 2 (2) | 4 (4) | 8 (8) | 1.00 |" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "captoins"], "closest: captions"),
        (["--rounds", "1"], "--rounds 1: expected 2 or more"),
        (["--images", "0"], "--images 0: expected 2 or more"),
        (["--threads", "0"], "--threads 0: expected 1 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_every_name_of_the_command_is_measured():
    assert set(NAMES) == {*COMPARISONS, *measure.OTHERS}


def test_the_command_prints_the_tables(tiny_models, monkeypatch, capsys):
    monkeypatch.setattr(bench_module, "resolve", lambda names, weights: [TINY])
    code = main(["--quick", "--only", "cost", "--only", "captions"])
    printed = capsys.readouterr().out
    assert code in (0, 1, 3)
    assert printed.count("| clip-benchmark, ") == 1
    threads = f"{torch.get_num_threads()} threads"
    for expected in ("| work | peer |", "| encode 40 COCO captions |", "| captions |", "clip-benchmark 1.6.2", threads):
        assert expected in printed
