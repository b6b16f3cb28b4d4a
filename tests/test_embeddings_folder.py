"""`embeddings:FOLDER`: rows made elsewhere are measured by id, without torch, and what has no row is named."""

import json
import subprocess
import sys

import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset, custom, measure

from clipbench.embed.trace import trace_of
from clipbench.errors import DataError, DataUnavailableError
from clipbench.models import load_encoder
from clipbench.models.device import Resources
from clipbench.models.zoo import resolve

NAMES = ColourEncoder.names
TEXTS = [f"a {name} picture" for name in NAMES]


def write(folder, ids=NAMES, texts=TEXTS, **arrays):
    """Rows that ColourEncoder would give, as another program leaves them."""
    folder.mkdir(exist_ok=True)
    colours = dict(zip(NAMES, ColourEncoder.colours, strict=True))
    rows = np.array([colours[name] for name in NAMES], dtype=np.float32) - 100
    np.save(folder / "images.npy", arrays.get("images", rows))
    np.save(folder / "texts.npy", arrays.get("rows", rows))
    (folder / "image_ids.txt").write_text("".join(f"{name}\n" for name in ids))
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    return folder


def load(folder):
    (spec,) = resolve([f"prod=embeddings:{folder}"])
    return load_encoder(spec, Resources(), True)


@pytest.fixture
def retrieval(tmp_path):
    return colour_dataset(tmp_path)


def test_rows_by_id_give_what_the_encoder_that_made_them_gives(tmp_path, retrieval):
    found = measure("coco_retrieval", load(write(tmp_path / "rows")), retrieval)
    expected = measure("coco_retrieval", custom(ColourEncoder()), retrieval)
    assert found.model.name == "prod"
    assert found.scores["image_retrieval_recall@1"].value == expected.scores["image_retrieval_recall@1"].value == 1.0
    for tower in ("images", "texts"):
        np.testing.assert_array_equal(found.evidence[tower].sketches, expected.evidence[tower].sketches)
        np.testing.assert_array_equal(found.evidence[tower].pixels, expected.evidence[tower].pixels)


def test_the_order_of_a_file_is_no_matter_and_texts_may_be_json(tmp_path, retrieval):
    folder = write(tmp_path / "rows")
    np.save(folder / "images.npy", np.load(folder / "images.npy")[::-1])
    (folder / "image_ids.txt").write_text("\n".join(NAMES[::-1]))
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, TEXTS)))
    (folder / "texts.txt").unlink()
    (folder / "about.json").write_text('{"config": {"model": "v7"}, "logit_scale": 100}')
    encoder = load(folder)
    assert (encoder.asked(), encoder.observed()["logit_scale"]) == ({"config": {"model": "v7"}}, 100.0)
    assert measure("coco_retrieval", encoder, retrieval).scores["text_retrieval_recall@1"].value == 1.0


def test_items_without_a_row_are_an_error_and_data_without_any_is_skipped(tmp_path, retrieval):
    with pytest.raises(DataError, match=r"no row for 1 of 4 images, such as the id 'white'; add their rows"):
        measure("coco_retrieval", load(write(tmp_path / "a", ids=(*NAMES[:3], "x"))), retrieval)
    with pytest.raises(DataUnavailableError, match=r"no row for 4 of 4 texts, such as the text 'a red picture'"):
        measure("coco_retrieval", load(write(tmp_path / "b", texts="abcd")), retrieval)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"ids": NAMES[:3]}, r"images\.npy has 4 rows for 3 images that are named"),
        ({"ids": ("red",) * 4}, "images name 'red' twice"),
        ({"images": np.ones((4, 5), np.float32)}, r"images\.npy has rows of dim 5, texts\.npy of dim 3"),
        ({"images": np.full((4, 3), np.nan, np.float32)}, r"images\.npy returned NaN for input 0"),
        ({"rows": np.zeros((4, 3), np.float32)}, r"texts\.npy returned a zero row for input 0"),
        ({"images": np.array([[1, 2, 3]] * 4)}, r"it is \(4, 3\) int64"),
        ({"images": np.ones(4, np.float32)}, r"it is \(4,\) float32"),
        ({"images": np.array([{}] * 4, dtype=object)}, "pickle"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_named_with_what_is_expected(tmp_path, how, message):
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path / "rows", **how))
    assert "expected embeddings:FOLDER with images.npy" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    folder = write(tmp_path / "rows")
    (folder / "image_ids.txt").unlink()
    with pytest.raises(DataError, match=r"image_ids\.txt is not there; expected embeddings:"):
        load(folder)


def test_there_is_no_trace_and_nothing_to_time(tmp_path):
    encoder = load(write(tmp_path / "rows"))
    assert "no picture can be encoded" in trace_of(encoder)["error"]
    with pytest.raises(DataUnavailableError, match="nothing to time"):
        encoder.ready_images([])


def test_it_works_where_torch_cannot_be_imported(tmp_path):
    for name in NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
    colour_dataset(tmp_path)
    for name in NAMES:
        (tmp_path / f"{name}.png").rename(tmp_path / "data" / name / "0.png")
    write(tmp_path / "rows", ids=[f"{name}/0.png" for name in NAMES], texts=[f"a photo of a {name}." for name in NAMES])
    code = (
        "import sys\nfor name in ('torch', 'torchvision', 'open_clip', 'pycocotools'):\n    sys.modules[name] = None\n"
        "import clipbench\nrun = clipbench.evaluate('prod=embeddings:rows', 'zero_shot', dataset={'own': 'data'}, device='cpu')\n"
        "print(run.results[0].scores['acc1'].value)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1.0", done.stderr
