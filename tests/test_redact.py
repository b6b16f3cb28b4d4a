"""`--redact`: no caption, label or file name of somebody's data leaves the session, and two runs compare as before."""

import json
import re

import pytest
import scipy.sparse.csgraph  # noqa: F401  # a pytest run inside a test forgets what it loads itself
from planted import paint, write_coco

from clipbench.cli import main
from clipbench.paths import benchmarks
from clipbench.redact import LEFT_OUT, pseudonym

FILES = [str(benchmarks() / f"test_{name}.py") for name in ("zero_shot", "coco_retrieval", "coco_multilabel")]
SETTINGS = """
model = "planted_model:Model"
device = "cpu"
redact = true
baseline = "base.json"
[dataset]
shop = "data/shop"
[[must_pass]]
experiment = "zero_shot"
dataset = "shop"
metric = "acc1"
items = ["secretclass 0/secretfile 0.png"]
"""


@pytest.fixture
def run(pytester):
    for number in range(30):
        paint(pytester.path / "data" / "shop" / f"secretclass {number % 3}" / f"secretfile {number}.png", [number])
    (pytester.path / "data" / "shop" / "secretclass 1" / "secretbroken.png").write_bytes(b"no picture")
    pytester.makepyfile(
        planted_model="import os\nfrom planted import PlantedEncoder\nModel = lambda: PlantedEncoder(seed=int(os.environ.get('SEED', 0)))"
    )
    pytester.syspathinsert()
    (pytester.path / "clipbench.toml").write_text(SETTINGS)

    def call(*arguments):
        return pytester.runpytest_inprocess(*FILES, "-p", "no:cacheprovider", *arguments)

    return call


def written(folder):
    """All text that a session wrote, and the names of its files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files if path.suffix != ".png"]
    return "\n".join([*texts, *(str(path.relative_to(folder)) for path in files)])


NAMES = re.compile(r"secret|caption \d of picture|\d{6}\.png|class \d")


def first(run, pytester, *arguments):
    """A first run, kept as the base."""
    run("--update-baseline", "--reason", "first", *arguments)
    assert not NAMES.search(written(pytester.path / "results"))
    (pytester.path / "base.json").write_bytes((pytester.path / "results" / "run.json").read_bytes())
    return json.loads((pytester.path / "base.json").read_text())["clipbench"]["results"]


def test_names_stay_inside_and_runs_compare_as_before(run, pytester, monkeypatch, capsys):
    more = "--coco", str(write_coco(pytester.path / "coco", [[0, 1], [2], [3, 4, 5], [6], [0, 7]]))
    results = {result["experiment"]: result for result in first(run, pytester, *more)}
    assert results.keys() == {"zero_shot", "coco_retrieval", "coco_multilabel"}
    assert results["zero_shot"]["protocol"]["classes"] == [pseudonym(f"secretclass {k}") for k in range(3)]
    assert len(results["zero_shot"]["provenance"]["broken"]) == 1
    monkeypatch.setenv("SEED", "1")
    done = run(*more)
    assert done.ret == 1
    assert not NAMES.search(written(pytester.path / "results"))
    assert not re.search(r"secret(?!broken)", done.stdout.str().partition("= clipbench =")[2])
    capsys.readouterr()
    for form in ("text", "markdown", "json", "github"):
        assert main(["compare", "base.json", "results/run.json", "--format", form]) == 1
        assert not NAMES.search(capsys.readouterr().out)


def test_an_item_that_must_pass_is_found_under_its_pseudonym(run, pytester):
    (result,) = (r for r in first(run, pytester) if r["experiment"] == "zero_shot")
    assert pseudonym("secretclass 0/secretfile 0.png") in result["items"]["ids"]
    assert "must pass and was not scored" not in run().stdout.str()


def test_data_that_grew_are_scored_on_the_same_items_under_their_pseudonyms(run, pytester):
    first(run, pytester)
    paint(pytester.path / "data" / "shop" / "secretclass 1" / "secretnew.png", [77])
    assert "quality[zero_shot/shop/planted_model:Model]" not in "".join(
        line for line in run().stdout.lines if line.strip().startswith(("fail", "inconclusive"))
    )


def test_why_something_was_not_measured_is_left_to_the_log(run, pytester):
    for path in (pytester.path / "data" / "shop").rglob("*.png"):
        path.write_bytes(b"no picture")
    (pytester.path / "clipbench.toml").write_text(SETTINGS.replace('baseline = "base.json"\n', ""))
    run()
    text = written(pytester.path / "results")
    assert LEFT_OUT in text
    assert "secret" not in text


def test_saved_rows_would_hold_the_names(run):
    assert run("--save-embeddings").ret == pytest.ExitCode.USAGE_ERROR
