"""The fixture `embedding_regression`: embeddings held to a file, in the tests of a repository that never runs our benchmarks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipbench.embed.trace import sample
from clipbench.errors import DataError, EncoderError, UsageError, WeightsUnavailableError
from clipbench.regression import EmbeddingRegression, EmbeddingsMovedError, file_of, read_embeddings

ROOT = Path(__file__).resolve().parents[1]
ENCODER = '''
import os
import numpy as np

class Encoder:
    """Mean colours of the four quarters, and letters."""
    def encode_images(self, images):
        sides = [np.asarray(i.resize((8, 8), self.how), dtype=float).reshape(-1) for i in images]
        return np.stack(sides) + self.shift
    def encode_texts(self, texts):
        codes = [np.bincount([ord(c) % 192 for c in t] + [0], minlength=192).astype(float) for t in texts]
        return np.stack(codes)
    how, shift = int(os.environ.get("HOW", 2)), float(os.environ.get("SHIFT", 0))
'''
TEST = """
from acme import Encoder

def test_embeddings(embedding_regression):
    embedding_regression.check(Encoder())
"""


class Rows:
    """An encoder whose rows are what the test says, by position."""

    def __init__(self, images=None, texts=None):
        self.images, self.texts = (np.eye(8) if rows is None else rows for rows in (images, texts))

    def encode_images(self, images):
        return self.images[: len(images)]

    def encode_texts(self, texts):
        return self.texts[: len(texts)]


@pytest.fixture
def made(tmp_path):
    """Write the stored file of an encoder; return a function that makes the fixture of a later session."""

    def fixture(**more):
        return EmbeddingRegression(tmp_path / "test_x" / "test_y.json", test="test_x.py::test_y", **more)

    fixture(update=True, reason="first", author="me").check(Rows())
    return fixture


def moved(by, item=2):
    """The unit rows of eight items, one of them turned by so large a cosine distance."""
    rows = np.eye(8)
    cosine = 1 - by
    rows[item, item], rows[item, (item + 1) % 8] = cosine, np.sqrt(1 - cosine**2)
    return rows


def test_the_file_of_a_test_lies_beside_it_as_in_pytest_regressions():
    assert file_of(Path("a/test_m.py"), "test_e[fp16 x]") == Path("a/test_m/test_e_fp16_x_.json")


def test_equal_rows_pass_and_so_do_rows_of_another_length(made):
    made().check(Rows())
    made().check(Rows(images=3 * np.eye(8)))


@pytest.mark.parametrize(("by", "passes"), [(0.00009, True), (0.00011, False)])
def test_the_limit_is_what_the_precision_explains_unless_a_test_says_otherwise(made, by, passes):
    def check(limit=None):
        made().check(Rows(texts=moved(by)), max_cosine_distance=limit)

    if passes:
        check()
        with pytest.raises(EmbeddingsMovedError):
            check(by / 2)
    else:
        with pytest.raises(EmbeddingsMovedError, match=r"1 of 8 are further than 0\.0001"):
            check()
        check(by * 2)


def test_the_message_names_items_stage_and_how_to_accept(made):
    with pytest.raises(EmbeddingsMovedError) as raised:
        made().check(Rows(images=moved(0.3)))
    said = str(raised.value)
    assert "images: 1 of 8 are further than 0.0001 from their row: tiny (0.3)" in said
    assert "first stage that moved" in said
    assert "decoding" in said
    assert 'pytest "test_x.py::test_y" --clipbench-update --clipbench-reason' in said


def test_an_encoder_that_shows_its_tensors_has_its_preprocessing_named(tmp_path, monkeypatch):
    for shift, update in ((0, True), (1, False)):
        tensors = [sample(np.full((3, 2, 2), shift, dtype=np.float32)) for _ in range(8)]
        monkeypatch.setattr("clipbench.regression.inputs_of", lambda *_, t=tensors: {"preprocessed_tensor": t})
        encoder = Rows(images=moved(0.2 * shift))
        encoder.identity = {"weights_sha256": "0" * 64}
        fixture = EmbeddingRegression(tmp_path / "e.json", update=update, reason="x")
        if update:
            fixture.check(encoder)
        else:
            with pytest.raises(
                EmbeddingsMovedError, match=r"preprocessing changed .*decoding, weights, precision did not"
            ):
                fixture.check(encoder)


def test_another_dim_is_said_as_such(made):
    with pytest.raises(EmbeddingsMovedError, match="images: dim 8 -> 9"):
        made().check(Rows(images=np.eye(8, 9)))


def test_a_missing_file_never_passes(tmp_path):
    with pytest.raises(
        EmbeddingsMovedError, match=r"no stored embeddings.*is not there\nmake it: pytest .*--clipbench-update"
    ):
        EmbeddingRegression(tmp_path / "gone.json").check(Rows())
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_fail(made, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsUnavailableError):
        made().check("ViT-L/14@336px")


@pytest.mark.parametrize("row", [np.nan, 0.0])
def test_rows_that_are_none_fail(made, row):
    with pytest.raises(EncoderError):
        made().check(Rows(images=np.full((8, 8), row)))


def test_own_pictures_and_texts_are_named_and_have_to_be_the_stored_ones(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("a", "b")]
    for k, path in enumerate(paths):
        Image.new("RGB", (9, 9), (90 * k, 0, 0)).save(path)

    def check(update=False, images=paths, texts=("one", "two")):
        EmbeddingRegression(tmp_path / "own.json", update, "x").check(Rows(), images=images, texts=texts)

    check(update=True)
    check()
    check(images={path.name: Image.open(path) for path in paths})
    for words, more in (
        ("images: 1 of the stored are not given: b.png", {"images": paths[:1]}),
        ("texts: 1 are not stored: three", {"texts": ["one", "two", "three"]}),
    ):
        with pytest.raises(EmbeddingsMovedError, match=words):
            check(**more)
    Image.new("RGB", (9, 9), (0, 99, 0)).save(paths[0])
    check()
    with pytest.raises(EmbeddingsMovedError, match=r"decoding changed"):
        EmbeddingRegression(tmp_path / "own.json").check(Rows(images=moved(0.5, 0)), images=paths, texts=["one", "two"])
    with pytest.raises(UsageError, match="given twice"):
        check(texts=["one", "one"])
    paths[0].write_bytes(b"no picture")
    with pytest.raises(DataError):
        check()


def test_two_checks_of_one_test_need_names(made):
    fixture = made()
    fixture.check(Rows())
    with pytest.raises(UsageError, match="basename"):
        fixture.check(Rows())
    with pytest.raises(EmbeddingsMovedError, match=r"other.json is not there"):
        fixture.check(Rows(), basename="other")


def test_an_update_keeps_the_history_and_the_file_is_plain_json(made, tmp_path):
    made(update=True, reason="a fine-tune", author="you").check(Rows(texts=moved(0.5)), max_cosine_distance=0.01)
    text = (tmp_path / "test_x" / "test_y.json").read_text()
    document = json.loads(text)
    assert [entry["reason"] for entry in document["history"]] == ["first", "a fine-tune"]
    assert document["format"] == "clipbench embeddings 1"
    assert document["max_cosine_distance"] == 0.01
    assert document["images"][2]["id"] == "tiny"
    assert document["images"][2]["row"] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert max(map(len, text.splitlines())) < 5000
    made().check(Rows(texts=moved(0.505)))


def hostile(path, document):
    document.update(
        {
            "format": lambda d: d.update(format="other"),
            "limit": lambda d: d.update(max_cosine_distance=3),
            "row": lambda d: d["images"][0].update(row=[1, 2]),
            "zero": lambda d: d["images"][0].update(row=[0] * 8),
            "infinity": lambda d: d["images"][0].update(row=[1e999] + [0] * 7),
            "words": lambda d: d["images"][0].update(row="words"),
            "no texts": lambda d: d.pop("texts"),
            "model": lambda d: d.update(model=[]),
            "stage": lambda d: d["stages"].update(tokens=[{}]),
        }[path](document)
        or {}
    )
    return document


@pytest.mark.parametrize("how", ["format", "limit", "row", "zero", "infinity", "words", "no texts", "model", "stage"])
def test_a_damaged_file_is_refused(made, tmp_path, how):
    path = tmp_path / "test_x" / "test_y.json"
    path.write_text(json.dumps(hostile(how, json.loads(path.read_text()))))
    with pytest.raises(DataError):
        read_embeddings(path)
    with pytest.raises(DataError):
        made().check(Rows())


@pytest.fixture
def repository(tmp_path):
    """Somebody's repository, in an environment without torch, torchvision, open_clip and pycocotools."""
    for name in ("torch", "torchvision", "open_clip", "pycocotools"):
        (tmp_path / "blocked" / name).mkdir(parents=True)
        (tmp_path / "blocked" / name / "__init__.py").write_text(f"raise ImportError('there is no {name} here')\n")
    (tmp_path / "acme.py").write_text(ENCODER)
    (tmp_path / "test_acme.py").write_text(TEST)

    def call(*command, **more):
        path = os.pathsep.join([str(tmp_path / "blocked"), str(ROOT), str(tmp_path)])
        environment = {**os.environ, "PYTHONPATH": path, **more}
        environment.pop("PYTEST_XDIST_WORKER", None)
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return call


PYTEST = ("pytest", "-q", "-p", "no:cacheprovider", "-p", "clipbench.pytest_plugin")


def test_it_works_in_a_repository_without_torch(repository, tmp_path):
    assert "there is no open_clip here" in repository("clipbench.models.open_clip").stderr
    done = repository(*PYTEST)
    assert done.returncode == 1
    assert "no stored embeddings" in done.stdout
    done = repository(*PYTEST, "--clipbench-update")
    assert "--clipbench-update needs --clipbench-reason" in done.stdout
    done = repository(*PYTEST, "--clipbench-update", "--clipbench-reason", "first")
    assert done.returncode == 0, done.stdout
    assert "wrote" in done.stdout
    assert (tmp_path / "test_acme" / "test_embeddings.json").exists()
    assert repository(*PYTEST).returncode == 0
    done = repository(*PYTEST, HOW="0")
    assert done.returncode == 1
    assert "images: " in done.stdout
    assert "to accept: pytest" in done.stdout


def test_compare_report_and_power_work_without_torch(repository, tmp_path):
    from paired_runs import RIGHT, natural, run_of, scored

    from clipbench.storage import dump_json, run_to_json

    for name in ("base", "head"):
        document = {"benchmarks": [], "clipbench": run_to_json(run_of(natural(), scored(RIGHT)))}
        (tmp_path / f"{name}.json").write_text(dump_json(document))
    (tmp_path / "clipbench.toml").write_text("tolerance = 0.02\n")
    for command in (
        ("compare", "base.json", "head.json", "--format", "markdown"),
        ("report", "base.json", "-o", "out"),
        ("power", "--items", "500"),
    ):
        done = repository("clipbench", *command)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.html").exists()
