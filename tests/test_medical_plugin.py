"""The medical benchmarks through pytest, with encoders that know by heart what they are told to know."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import clipbench.models.open_clip  # loaded before the first run inside a run, which forgets what it loads itself
import clipbench.report.figures
import clipbench.report.summary
import clipbench.session  # noqa: F401
from clipbench.judge.references import contracts
from clipbench.paths import benchmarks

FILES = [str(benchmarks() / name) for name in ("test_medical.py", "test_medical_retrieval.py")]
ROCO_MINI = Path(__file__).parents[2] / "shared" / "data" / "roco_mini"
ENCODERS = '''
"""Encoders that know the packaged pictures by heart, all of them or the natural ones alone."""
import numpy as np
from clipbench.data.packaged import packaged_dataset

SETS = ("natural", "medical", "medical_other")
ITEMS = [item for name in SETS for item in packaged_dataset(name).items]
PIXELS = [hash(item.image.open().tobytes()) for item in ITEMS]

class All:
    known = 24
    def encode_images(self, images):
        return self.rows([PIXELS.index(hash(i.tobytes())) for i in images])
    def encode_texts(self, texts):
        return self.rows([next(k for k, i in enumerate(ITEMS) if i.captions[0] in t) for t in texts])
    def rows(self, places):
        eye = np.eye(24)
        eye[self.known:] = eye[0]
        return eye[places]

class NaturalOnly(All):
    known = 8

class AndOneSet(All):
    known = 16

class Blind:
    def encode_images(self, images):
        return np.stack([np.asarray(i.resize((4, 4)), dtype=float).ravel() + 1 for i in images])
    def encode_texts(self, texts):
        return np.stack([np.resize([ord(c) for c in t], 48) for t in texts])
'''


@pytest.fixture
def run(pytester, monkeypatch):
    """Run the medical benchmarks in an empty folder, contracts claimed of the encoders above, without drawing."""
    monkeypatch.setattr("clipbench.report.summary.figure_of", lambda *_: None)
    rows = tuple(replace(row, models=["*"], weights="*") for row in contracts())
    monkeypatch.setattr("clipbench.judge.references.contracts", lambda: rows)
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    pytest.importorskip("pydicom", reason="the medical pictures are DICOM")
    pytester.makepyfile(known_pictures=ENCODERS)
    pytester.syspathinsert()

    def call(model, *arguments):
        return pytester.runpytest_inprocess(
            *FILES, "--model", f"known_pictures:{model}", "--device", "cpu", "-p", "no:cacheprovider", *arguments
        )

    yield call
    sys.modules.pop("known_pictures", None)


def test_a_model_that_knows_natural_pictures_alone_fails_as_expected(run, pytester):
    run("NaturalOnly", "--require-all").assert_outcomes(passed=1, deselected=1)
    results = json.loads((pytester.path / "results/run.json").read_text())["clipbench"]["results"]
    assert [r["experiment"] for r in results] == ["natural", "medical", "medical_other"]
    (verdict,) = results[1]["verdicts"]
    assert verdict["verdict"] == "pass"
    assert verdict["reason"].startswith("fails as expected: natural 8 of 8, medical 0 of 16")


def test_a_model_that_knows_medical_pictures_too_is_an_alert(run):
    result = run("All")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*fail: text_to_image_top1: no longer fails: natural 8 of 8, medical 16 of 16*"])


def test_what_is_inconclusive_passes_is_listed_first_and_fails_under_require_all(run):
    result = run("AndOneSet")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["INCONCLUSIVE: *", "  inconclusive: medical of* on medical: text_to_image_top1: inconclusive at n=16: *"]
    )
    run("AndOneSet", "--require-all").assert_outcomes(failed=1)


def test_a_wrong_roco_folder_says_which_file_is_missing(run, pytester):
    (pytester.path / "empty").mkdir()
    result = run("NaturalOnly", "--roco", "empty")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "empty lacks train/radiology/captions.txt; expected ROCO's layout" in result.stderr.str()


@pytest.mark.skipif(not ROCO_MINI.is_dir(), reason="the sample of ROCO is not beside this checkout")
def test_a_sample_of_roco_runs_end_to_end(run, pytester):
    encoder = "Blind"
    run(encoder, "--roco", str(ROCO_MINI)).assert_outcomes(passed=1, skipped=1)
    entry = json.loads((pytester.path / "results/run.json").read_text())["clipbench"]
    result = next(r for r in entry["results"] if r["experiment"] == "medical_retrieval")
    assert result["dataset"]["n"] == 12
    assert result["metrics"]["text_to_image_top1"]["n"] == 8
    assert "ROCO_00002" in next(s["reason"] for s in entry["skipped"] if s["experiment"] == "medical")
