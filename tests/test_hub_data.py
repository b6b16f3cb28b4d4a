"""Data sets of the Hugging Face hub: pinned, read by their columns, without a network in the tests."""

import io

import pytest
from fakes import ColourEncoder, custom, measure
from PIL import Image

from clipbench.data import hub
from clipbench.data.own import _look
from clipbench.errors import DataError, DataUnavailableError, UsageError
from clipbench.experiments import experiment
from clipbench.options import Options

datasets = pytest.importorskip("datasets")
PLACE = "hf:org/colours@v1"


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Put this table where the hub's would be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _look.cache_clear()

    def put(columns, names=None, split="test", kind="string"):
        pictures = {"image": [png(colour) for colour in ColourEncoder.colours]}
        label = {"label": datasets.ClassLabel(names=names)} if names else {}
        own = {key: label.get(key, datasets.Value(kind)) for key in columns if not isinstance(columns[key][0], list)}
        lists = {key: datasets.List(datasets.Value("string")) for key in columns if isinstance(columns[key][0], list)}
        features = datasets.Features({"image": datasets.Image(), **own, **lists})
        made = datasets.Dataset.from_dict({**pictures, **columns}, features=features)
        monkeypatch.setattr(datasets, "load_dataset", lambda repository, revision: datasets.DatasetDict({split: made}))

    yield put
    _look.cache_clear()


def load(name):
    return experiment(name).sources(Options.from_kwargs(dataset={"colours": PLACE}).data)[0].load()


def test_labels_are_classified_with_the_table_s_own_names_and_the_revision_is_in_the_protocol(table):
    table({"label": [0, 1, 2, 3]}, names=list(ColourEncoder.names))
    dataset = load("zero_shot")
    assert dataset.classes == ColourEncoder.names
    assert dataset.options == {"revision": "v1", "split": "test"}
    assert measure("zero_shot", custom(ColourEncoder()), dataset).scores["acc1"].value == 1.0


def test_labels_may_be_texts(table):
    table({"label": list(ColourEncoder.names)})
    dataset = load("zero_shot")
    assert dataset.classes == tuple(sorted(ColourEncoder.names))
    assert measure("zero_shot", custom(ColourEncoder()), dataset).scores["acc1"].value == 1.0


def test_numbers_without_names_are_refused(table):
    table({"cls": [3, 2, 1, 0]}, kind="int64")
    with pytest.raises(DataError, match=r"row 0 has cls = 3, and nothing says what it is called"):
        load("zero_shot")


def test_texts_are_searched(table):
    table({"captions": [[f"a {name} one", f"so {name}"] for name in ColourEncoder.names]})
    assert load("retrieval").items[1].captions == ("a green one", "so green")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hf:org/colours", "names no revision, and a branch moves under a gate"),
        ("hf:colours@v1", "names no data set of the hub; expected hf:ORG/REPO@REVISION"),
        ("hf:org/colours@v1:train", "has no split 'train'; it has test"),
    ],
)
def test_what_is_not_pinned_or_not_there_is_a_usage_error(table, place, message):
    table({"label": [0, 1, 2, 3]}, names=list(ColourEncoder.names))
    with pytest.raises(UsageError, match=message):
        Options.from_kwargs(dataset={"colours": place})


def test_columns_that_are_not_understood_are_listed(table):
    table({"question": ["x"] * 4})
    with pytest.raises(UsageError, match="has the columns image, question; expected image and label or texts"):
        Options.from_kwargs(dataset={"colours": PLACE})


def test_labels_that_nobody_published_are_refused(table):
    table({"label": [0, 1, -1, 3]}, names=list(ColourEncoder.names))
    with pytest.raises(DataError, match="row 2 has the label"):
        load("zero_shot")


@pytest.mark.fault("paths that leave their folder")
def test_a_table_that_names_a_file_of_this_machine_gets_nothing(tmp_path):
    (tmp_path / "secret.png").write_bytes(png("red")["bytes"])
    assert hub._fetched(str(tmp_path / "secret.png")) == b""


def test_no_network_is_said_as_such(monkeypatch):
    def gone(repository, revision):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", gone)
    with pytest.raises(DataUnavailableError, match="org/colours@v1 cannot be had from the hub: no route to host"):
        hub.fetch(hub.Place.of(PLACE))
