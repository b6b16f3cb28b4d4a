"""Files of rows: written whole, read back as they were, and refused in one line where they are not what they should be."""

import json
import pickle
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from clipbench.paths import benchmarks
from clipbench.saved_rows import (
    EmbeddingsFileError,
    SavedRows,
    read_index,
    read_queries,
    read_rows,
    saved_beside,
    write_rows,
)
from clipbench.types import DatasetIdentity, ModelIdentity


@pytest.fixture
def saved():
    return SavedRows(
        "coco_retrieval",
        ModelIdentity("ViT-B/16", "openai", "a" * 64),
        DatasetIdentity("coco_karpathy", "b" * 64, 2),
        np.eye(2, 3, dtype=np.float32),
        np.eye(3, dtype=np.float32),
        ("1.jpg", "ü 2"),
        ("1#0", "1#1", "2#0"),
        np.array([0, 0, 1]),
    )


def test_rows_come_back_as_they_were_written(tmp_path, saved):
    path = write_rows(tmp_path, saved)
    found = read_rows(path)
    assert path.parent == tmp_path / "embeddings"
    assert re.fullmatch(r"ViT-B-16-openai-fp32-coco-retrieval-coco-karpathy-[0-9a-f]{16}\.npz", path.name)
    assert saved_beside(tmp_path / "run.json") == [path]
    for name in ("experiment", "model", "dataset", "image_ids", "text_ids"):
        assert getattr(found, name) == getattr(saved, name)
    for name in ("image_rows", "text_rows", "text_image"):
        np.testing.assert_array_equal(getattr(found, name), getattr(saved, name))


@pytest.mark.fault("models of one spelling")
def test_models_weights_precisions_and_items_have_files_of_their_own(tmp_path, saved):
    others = [
        replace(saved, model=replace(saved.model, pretrained="/some/where/tuned.pt")),
        replace(saved, model=replace(saved.model, precision="bf16")),
        replace(saved, experiment="medical_retrieval"),
        replace(saved, dataset=replace(saved.dataset, fingerprint="c" * 64)),
        replace(saved, model=replace(saved.model, name="ViT-B-16")),
        replace(saved, model=replace(saved.model, pretrained="/somewhere/else/tuned.pt")),
    ]
    paths = {write_rows(tmp_path, s) for s in [saved, *others]}
    assert len(paths) == 7
    assert {path.parent for path in paths} == {tmp_path / "embeddings"}


def damaged(path, **arrays):
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    np.savez(path, **{k: v for k, v in {**content, **arrays}.items() if v is not None})


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"text_rows": None}, "cannot be read: text_rows is not a file in the archive"),
        ({"about": np.array(json.dumps({"schema": 2}))}, "has schema 2, this clipbench reads 1"),
        ({"about": np.array("{")}, "cannot be read"),
        ({"image_ids": np.array([{}, {}], dtype=object)}, "its values are no plain numbers|it is pickled"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, saved, arrays, words):
    path = write_rows(tmp_path, saved)
    damaged(path, **arrays)
    with pytest.raises(EmbeddingsFileError, match="pytest benchmarks --save-embeddings") as error:
        read_rows(path)
    assert re.search(words, str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 3, 400])
def test_a_file_cut_short_is_refused(tmp_path, saved, size):
    path = write_rows(tmp_path, saved)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(EmbeddingsFileError, match="cannot be read"):
        read_rows(path)


def damages(content, count, head):
    """Yield `count` copies of the bytes: one to three of them changed, half of the time in the first `head`; each eighth cut."""
    generator = np.random.default_rng(0)
    for turn in range(count):
        copy = np.frombuffer(content, np.uint8).copy()
        places = generator.integers(0, head if turn % 2 else len(copy), generator.integers(1, 4))
        copy[places] = generator.integers(0, 256, len(places))
        yield copy.tobytes()[: None if turn % 8 else int(generator.integers(0, len(copy)))]


def test_a_damaged_index_is_refused_or_read(tmp_path):
    path, refused = tmp_path / "rows.npy", 0
    np.save(path, np.eye(3, 8, dtype=np.float32))
    for content in damages(path.read_bytes(), 600, 128):
        path.write_bytes(content)
        try:
            assert read_index(path).dtype.kind == "f"
        except EmbeddingsFileError:
            refused += 1
    assert refused > 300


def test_damaged_saved_rows_are_refused_or_read_as_they_were(tmp_path, saved):
    path, refused = write_rows(tmp_path, saved), 0
    content = path.read_bytes()
    for damage in (*damages(content, 300, 256), *(content[:-400] + d for d in damages(content[-400:], 300, 400))):
        path.write_bytes(damage)
        try:
            np.testing.assert_array_equal(read_rows(path).image_rows, saved.image_rows)
        except EmbeddingsFileError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("header", ["(" * 5000, "{'shape': 1}", "[]", "{}", "9" * 9000, "{'descr': '<f4',\x00}", "[1"])
def test_a_header_that_is_no_header_is_refused(tmp_path, header):
    path = tmp_path / "rows.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header.encode())
    with pytest.raises(EmbeddingsFileError, match="its header is damaged"):
        read_index(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_index_of_unit_rows_is_read_in_its_own_type(tmp_path, dtype):
    path = tmp_path / "rows.npy"
    np.save(path, np.eye(3, 700).astype(dtype))
    assert read_index(path).dtype == dtype


class Touches:
    """Pickled so that reading it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.fault("code in a checkpoint")
def test_a_pickled_index_is_refused_and_not_run(tmp_path):
    for name, write in (
        ("array.npy", lambda p: np.save(p, np.array([Touches(tmp_path / "ran")], dtype=object), allow_pickle=True)),
        ("plain.npy", lambda p: p.write_bytes(pickle.dumps(Touches(tmp_path / "ran")))),
    ):
        write(tmp_path / name)
        with pytest.raises(EmbeddingsFileError, match="it is pickled or no numpy file"):
            read_index(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.eye(3)[0], r"\(3,\) float64; expected \(rows, dim\)"),
        (np.eye(3, dtype=np.int8), "int8; expected"),
        (np.empty((0, 3)), r"\(0, 3\)"),
        (np.array([[1.0, 0.0], [np.nan, 0.0]]), "row 1 is not finite"),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), "row 1 has length 0"),
        (np.array([[1.0, 0.0], [1.0, 0.2]]), r"row 1 has length 1.02; .*divide each row by its length"),
    ],
)
def test_an_index_that_is_none_is_refused_naming_the_first_row(tmp_path, rows, words):
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    with pytest.raises(EmbeddingsFileError, match=words):
        read_index(path)


def test_an_archive_is_no_index(tmp_path):
    np.savez(tmp_path / "rows.npz", a=np.eye(2))
    with pytest.raises(EmbeddingsFileError, match="an archive of several arrays"):
        read_index(tmp_path / "rows.npz")


def test_queries_are_lines_without_the_blank_ones(tmp_path):
    (tmp_path / "texts.txt").write_bytes("\ufeffa dog\r\n\n  ein Küken \na dog\n".encode())
    assert read_queries(tmp_path / "texts.txt") == ("a dog", "ein Küken", "a dog")


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe\x00"])
def test_a_file_without_queries_or_in_another_encoding_is_refused(tmp_path, content):
    (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(EmbeddingsFileError, match=r"expected (UTF-8 text, )?one"):
        read_queries(tmp_path / "texts.txt")


ENCODER = """
import numpy as np
class Any:
    def encode_images(self, images):
        return np.stack([np.asarray(i.resize((4, 4)), dtype=float).ravel()[:40] + 1 for i in images])
    def encode_texts(self, texts):
        return np.stack([np.random.default_rng(len(t)).standard_normal(40) for t in texts])
"""


@pytest.fixture
def session(pytester):
    """Run the retrieval benchmark with a fake encoder and the arguments given."""
    pytest.importorskip("skimage", reason="the packaged COCO images are scikit-image's")
    pytester.makepyfile(saved_encoder=ENCODER)
    pytester.syspathinsert()
    arguments = (str(benchmarks() / "test_coco_retrieval.py"), "--model", "saved_encoder:Any", "--device", "cpu")
    yield lambda *more: pytester.runpytest_inprocess(*arguments, "-p", "no:cacheprovider", *more)
    sys.modules.pop("saved_encoder", None)


def test_save_embeddings_leaves_the_rows_beside_the_run_and_nothing_is_left_without_it(session, pytester):
    session()
    assert not (pytester.path / "results" / "embeddings").exists()
    session("--save-embeddings")
    (path,) = saved_beside(pytester.path / "results" / "run.json")
    entry = json.loads((pytester.path / "results" / "run.json").read_text())
    (result,) = (r for r in entry["clipbench"]["results"] if r["experiment"] == "coco_retrieval")
    found = read_rows(path)
    assert list(found.text_ids) == result["items"]["text_ids"]
    assert found.dataset.fingerprint == result["dataset"]["fingerprint"]


@pytest.mark.fault("files that cannot be written")
def test_rows_that_cannot_be_saved_fail_the_session_and_keep_the_result(session, pytester, monkeypatch):
    def full(folder, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipbench.saved_rows.write_rows", full)
    result = session("--save-embeddings")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: *coco_retrieval of saved_encoder:Any on coco_mini: *No space left on device*"])
    assert json.loads((pytester.path / "results" / "run.json").read_text())["clipbench"]["results"]
