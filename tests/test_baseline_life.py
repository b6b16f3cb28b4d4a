"""The life of a baseline through the plugin: made, moved, accepted, grown, refused; and nothing turns a red cell green."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from clipbench.paths import benchmarks

FOLDERS = str(benchmarks() / "test_zero_shot.py")
CLASSES, SIDE = 10, 8
SETTINGS = "encoder.json"
MODEL = "living:Encoder"
LIVING = f'''
"""An encoder that reads small pictures as they are, and what befalls it in life, by the file {SETTINGS}."""
import json
from pathlib import Path
import numpy as np

PROJECTION = np.random.default_rng(0).normal(size=(192, 32))
PATTERNS = np.random.default_rng(1).uniform(60, 200, size=({CLASSES}, 192))

class Encoder:
    def __init__(self):
        self.life = json.loads(Path({SETTINGS!r}).read_text()) if Path({SETTINGS!r}).exists() else {{}}
        self.identity = {{"weights_sha256": self.life.get("weights", "a") * 64}}
        self.config = self.life.get("config", {{}})
        self.calls = 0

    def rows(self, flat):
        rows = (flat - 128) @ PROJECTION
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        move, seen = self.life.get("move", 0), (flat.sum(axis=1) * 997).astype(np.int64)
        if move:
            noise = np.stack([np.random.default_rng(abs(int(s)) % 2**32).normal(size=rows.shape[1]) for s in seen])
            rows = rows + move * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        if self.life.get("turned"):
            rows = rows @ np.linalg.qr(np.random.default_rng(7).normal(size=(32, 32)))[0]
        if "restless" in self.life:
            self.calls += 1
            rows = rows + self.life["restless"] * np.random.default_rng(self.calls).normal(size=rows.shape)
        return rows

    def encode_images(self, images):
        flat = np.stack([np.asarray(image.resize(({SIDE}, {SIDE})), dtype=np.float64).ravel() for image in images])
        rows = self.rows(flat)
        lose = self.life.get("lose", 0)
        for k in np.flatnonzero((flat.sum(axis=1) * 31).astype(np.int64) % 1000 < 1000 * lose):
            rows[k] = self.rows(PATTERNS[[int(flat[k].sum()) % {CLASSES}]])[0] + .6 * rows[k]
        return rows

    def encode_texts(self, texts):
        kinds = [next((k for k in range({CLASSES}) if f"kind{{k}}" in text), None) for text in texts]
        other = [np.random.default_rng(len(t)).uniform(60, 200, 192) for t in texts]
        return self.rows(np.stack([o if k is None else PATTERNS[k] + len(t) % 3 for k, o, t in zip(kinds, other, texts)]))
'''


def draw(folder, n, start=0):
    """`n` pictures of each kind: its pattern, with noise enough that some are taken for another."""
    patterns = np.random.default_rng(1).uniform(60, 200, size=(CLASSES, SIDE * SIDE * 3))
    for kind in range(CLASSES):
        (folder / f"kind{kind}").mkdir(parents=True, exist_ok=True)
        for k in range(start, start + n):
            noise = np.random.default_rng(kind * 10_000 + k).normal(size=SIDE * SIDE * 3) * 85
            pixels = np.clip(patterns[kind] + noise, 0, 255).astype(np.uint8).reshape(SIDE, SIDE, 3)
            Image.fromarray(pixels).save(folder / f"kind{kind}" / f"{k:04}.png")


@pytest.fixture
def session(run, pytester):
    """Run the benchmarks of a folder of 600 pictures with an encoder whose life is given; return (exit status, lines, cells)."""
    pytester.makepyfile(living=LIVING)
    draw(pytester.path / "shapes", 60)

    def call(*arguments, files=FOLDERS, **life):
        (pytester.path / SETTINGS).write_text(json.dumps(life))
        return run("--zero-shot", "shapes=shapes", "--junitxml", "junit.xml", *arguments, model=MODEL, files=files)

    return call


def update(reason, *arguments):
    return ("--baseline", "base.json", "--update-baseline", "--reason", reason, *arguments)


def history(pytester):
    return json.loads((pytester.path / "base.json").read_text())["clipbench_baseline"]["history"]


QUALITY = f"quality[zero_shot/shapes/{MODEL}]"
IMAGES, TEXTS = (f"rows[{tower}/shapes/{MODEL}]" for tower in ("images", "texts"))


def test_the_whole_life_of_a_baseline(session, pytester):
    against = ("--baseline", "base.json")
    first = session(*update("first release"))
    assert first.ret == 0, first.outlines
    assert session(*against, move=1e-5).ret == 0  # a torch-sized move

    lost = {"lose": 0.05, "weights": "b", "config": {"weights": "small"}, "move": 0.01}
    refused = session(*update("a smaller model"), **lost)
    assert refused.ret == 1
    assert [entry["reason"] for entry in history(pytester)] == ["first release"]
    assert f'--accept "{QUALITY}" --reason TEXT' in refused.stdout.str()
    accepts = [word for cell in (QUALITY, IMAGES) for word in ("--accept", cell)]
    taken = session(*update("a smaller model", *accepts), **lost)
    assert taken.ret == 0, taken.outlines
    (_, second) = history(pytester)
    assert {entry["cell"] for entry in second["accepted"]} == {QUALITY, IMAGES}
    assert all(entry["reason"] == "a smaller model" and entry["author"] for entry in second["accepted"])
    assert session(*against, **lost).ret == 0

    tuned = {"turned": True, "weights": "c", "config": {"weights": "tuned"}}  # better, and another space
    spaced = session(*against, **tuned)
    assert spaced.ret == 1
    assert any(IMAGES in line and "another space" in line for line in spaced.outlines)
    accepts = [word for cell in (IMAGES, TEXTS) for word in ("--accept", cell)]
    taken = session(*update("a fine-tune", *accepts), **tuned)
    assert taken.ret == 0, taken.outlines

    (pytester.path / "shapes/classes.toml").write_text(
        "classes = [" + ", ".join(f'"kind{k}"' for k in range(CLASSES)) + ']\nfolders = ['
        + ", ".join(f'"kind{k}"' for k in range(CLASSES)) + ']\ntemplates = ["my {}"]\nsource = "ours"\n'
    )  # fmt: skip
    prompted = session(*against, **tuned)
    assert prompted.ret == 1
    assert any(QUALITY in line and "not comparable: prompts" in line for line in prompted.outlines)
    accepts = [word for cell in (QUALITY, TEXTS) for word in ("--accept", cell)]
    assert session(*update("our own prompt", *accepts), **tuned).ret == 0

    draw(pytester.path / "shapes", 12, start=500)  # a data set that grew
    grown = session(*against, **tuned)
    assert grown.ret == 0, grown.outlines
    assert session(*update("more pictures"), **tuned).ret == 0

    (pytester.path / "shapes/kind0/0500.png").unlink()
    lacking = session(*update("fewer pictures"), **tuned)
    assert lacking.ret == 1
    assert len(history(pytester)) == 5
    draw(pytester.path / "shapes", 12, start=500)

    noisy = {**tuned, "config": {"weights": "tuned", "backend": "fast"}, "move": 2e-4, "restless": 3e-5}
    assert session(*update("a noisier kernel"), **noisy).ret == 0


def test_losses_that_pass_one_by_one_are_caught_by_the_first_outcomes(session):
    assert session(*update("first")).ret == 0
    steps = []
    for step, lose in enumerate((0.008, 0.016, 0.024, 0.032, 0.04)):
        life = {"lose": lose, "move": 0.004, "weights": "bcdef"[step], "config": {"weights": str(step)}}
        accepts = ["--accept", IMAGES]  # the rows that were lost stand out, and somebody accepts them
        result = session(*update(f"step {step}", *accepts), **life)
        steps.append(result.ret)
    assert 1 in steps
    assert any("since the first outcomes" in line for line in result.outlines)


WORSE = {"lose": 0.2}
WAYS = {
    "-k": ["-k", "nothing_of_that_name"],
    "--lf": ["--lf", "-p", "cacheprovider"],
    "--ff": ["--ff", "-p", "cacheprovider"],
    "-x": ["-x"],
    "--benchmark-only": ["--benchmark-only"],
    "--co": ["--co"],
    "one file": [],
    "--allow-inconclusive": ["--allow-inconclusive"],
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_turns_a_red_cell_green(session, way):
    files = str(benchmarks() / "test_model_card.py") if way == "one file" else FOLDERS
    assert session(*update("first")).ret == 0
    result = session("--baseline", "base.json", *WAYS[way], files=files, **WORSE)
    assert result.ret == 1, result.outlines
    if way not in ("--benchmark-only", "--co", "-x"):
        assert any(f"fail: {QUALITY}" in line for line in result.outlines)


@pytest.mark.fault("an encoder or plugin that leaves")
@pytest.mark.parametrize("how", ["pytest.skip('not today')", "item.add_marker(pytest.mark.xfail)"])
def test_a_conftest_that_skips_cells_leaves_them_unjudged_and_red(session, pytester, how):
    assert session(*update("first")).ret == 0
    pytester.makepyfile(
        skips_cells=f"import pytest\n@pytest.hookimpl(tryfirst=True)\ndef pytest_runtest_setup(item):\n"
        f"    if 'quality' in item.name:\n        {how}\n"
    )
    result = session("--baseline", "base.json", "-p", "skips_cells", **WORSE)
    assert result.ret == 1
    pytester.syspathinsert()
    healthy = session("--baseline", "base.json", "-p", "skips_cells")
    assert healthy.ret == (1 if "skip(" in how else 0)


def test_junit_holds_each_cell_as_a_test_case(session, pytester):
    assert session(*update("first")).ret == 0
    assert session("--baseline", "base.json", **WORSE).ret == 1
    tree = ElementTree.parse(pytester.path / "junit.xml")  # noqa: S314  # written by this session
    cases = {case.get("name"): [child.tag for child in case] for case in tree.iter("testcase")}
    assert "failure" in cases[QUALITY]
    assert {f"subject[{MODEL}]", f"trace[{MODEL}]", IMAGES, TEXTS, "complete"} <= cases.keys()


def test_only_judges_the_cells_it_names_and_is_no_update(session):
    assert session(*update("first")).ret == 0
    assert session("--baseline", "base.json", "--only", "subject[*]", **WORSE).ret == 0
    assert session("--baseline", "base.json", "--only", "quality[zero*", **WORSE).ret == 1
    refused = session(*update("in part", "--only", "subject[*]"))
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    unknown = session("--baseline", "base.json", "--only", "qualty[*]")
    assert unknown.ret == pytest.ExitCode.USAGE_ERROR
    assert "did you mean" in unknown.stderr.str() + unknown.stdout.str()


STEADY = {
    "images_per_second": (1.0, 1.01, 0.99, 1.0, 1.005),
    "texts_per_second": (1.0, 1.01, 0.99, 1.0, 1.005),
    "latency_p50": (0.1, 0.101, 0.099, 0.1, 0.1),
    "latency_p99": (0.2, 0.21, 0.19, 0.2, 0.2),
    "peak_memory_bytes": (1e9,) * 5,
    "memory_growth_bytes": (1e5, 0.0, 2e5, 0.0, 1e5),
}
SLOWER = {
    "the same again": ({}, 0),
    "a quarter slower": ({"images_per_second": tuple(1.24 * v for v in STEADY["images_per_second"])}, 1),
    "a tail ten times as long": ({"latency_p99": tuple(10 * v for v in STEADY["latency_p99"])}, 1),
    "two megabytes more at each call": ({"memory_growth_bytes": (2e8,) * 5}, 1),
    "a tenth more memory": ({"peak_memory_bytes": (1.1e9,) * 5}, 1),
    "noise too large to decide": ({"images_per_second": (0.6, 1.5, 1.1, 0.8, 1.4)}, 1),
}


@pytest.mark.parametrize("how", SLOWER)
def test_speed_is_judged_by_several_processes_where_that_is_asked_for(run, monkeypatch, how):
    measured = [STEADY, STEADY | SLOWER[how][0]]
    monkeypatch.setattr("clipbench.ab.timed_in_processes", lambda options, count=5: measured[0])
    monkeypatch.setattr("clipbench.experiments.speed.ROUND_SECONDS", 0.01)  # a session's own timing is only a note here
    files = str(benchmarks() / "test_model_card.py")
    speed = str(benchmarks() / "test_speed.py")
    gate = ("--baseline", "base.json", "--speed", "gate", speed)
    assert run(*gate, "--update-baseline", "--reason", "first", files=files).ret == 0
    del measured[0]
    assert run(*gate, files=files).ret == SLOWER[how][1]
    assert run(*gate[:2], files=files).ret == 0  # without being asked for it is a note
