"""Your own data in a session: measured, reported by slice, held to a base, chosen by name."""

import json

import pytest
from fakes import ColourEncoder
from PIL import Image

from clipbench.cli import main
from clipbench.paths import benchmarks

FILES = [str(benchmarks() / f"test_{name}.py") for name in ("zero_shot", "retrieval", "multilabel")]
MODELS = """
from fakes import ColourEncoder
class Right(ColourEncoder):
    pass
class NoRed(ColourEncoder):
    def encode_images(self, images):
        rows = super().encode_images(images)
        return [[1, 99, 99] if row[0] > row[1] and row[0] > row[2] else row for row in rows]
"""


@pytest.fixture
def run(pytester, tmp_path):
    pytester.makepyfile(own_models=MODELS)
    pytester.syspathinsert()
    lines = []
    for name, colour in zip(ColourEncoder.names, ColourEncoder.colours, strict=True):
        for k in range(15):
            path = tmp_path / "own" / f"{name}{k}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), tuple(max(0, c - k) for c in colour)).save(path)
            group = "rare" if name == "red" and k == 0 else "night" if name == "red" else "day"
            must = {"must_pass": True} if (name, k) == ("red", 3) else {}
            lines.append({"image": path.name, "label": name, "group": group, **must})
    (tmp_path / "own" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def call(*arguments, model="prod=own_models:Right"):
        command = (
            *FILES,
            "--model",
            model,
            "--device",
            "cpu",
            "-p",
            "no:cacheprovider",
            "--dataset",
            f"own={tmp_path / 'own'}",
        )
        return pytester.runpytest_inprocess(*command, *arguments)

    return call


def test_slices_are_in_the_summary_the_lowest_first_and_one_item_says_so(run, pytester):
    run(model="prod=own_models:NoRed").assert_outcomes(passed=1, deselected=2)
    text = (pytester.path / "results/summary.md").read_text()
    section = text[text.index("## Slices") :]
    assert section.index("| night |") < section.index("| day |")
    assert "(one item says nothing)" in section


def test_a_slice_that_fell_and_an_item_that_must_pass_fail_by_name(run, pytester):
    run("--benchmark-json", "base.json")
    result = run("--baseline", "base.json", model="prod=own_models:NoRed")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = "\n".join(result.outlines)
    assert "slice night: fell by 1" in text
    assert "red3.png must pass and does no more (must_pass of the data set)" in text


def test_a_limit_is_named_in_the_protocol(run, pytester):
    run("--limit", "20").assert_outcomes(passed=1, deselected=2)
    (result,) = json.loads((pytester.path / "results/run.json").read_text())["clipbench"]["results"]
    assert (result["dataset"]["n"], result["protocol"]["options"]["limit"]) == (20, 20)


def test_experiments_are_chosen_by_exact_name(run):
    run("--experiments", "zero_shot").assert_outcomes(passed=1, deselected=2)
    run("--experiments", "model_card,natural").assert_outcomes(deselected=3)
    for names, message in (
        ("zeroshot", "closest: zero_shot"),
        ("retrieval", "has no data; give its folder: --dataset NAME=ROOT"),
    ):
        result = run("--experiments", names)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert message in result.stderr.str()


def test_list_names_experiments_data_and_models_with_what_each_needs(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "retrieval          needs --dataset NAME=ROOT",
        "natural            runs on natural",
        "onnx:FOLDER with",
        "ViT-B/32",
    ):
        assert words in shown
