"""COCO through the plugin: what is missing, malformed or broken is said once a test, in one line that names it."""

import json

import pytest
from planted import write_coco

from clipbench.paths import benchmarks, file_name

FILES = [str(benchmarks() / f"test_coco_{name}.py") for name in ("crops", "multilabel", "retrieval")]


@pytest.fixture
def run(pytester):
    pytester.makepyfile(planted_model="from planted import PlantedEncoder as Model")
    pytester.syspathinsert()

    def call(*arguments, files=FILES):
        command = (*files, "--model", "planted_model:Model", "--device", "cpu", "-p", "no:cacheprovider", "-rs")
        return pytester.runpytest_inprocess(*command, *arguments)

    return call


@pytest.fixture
def root(tmp_path):
    return write_coco(tmp_path / "coco", [[0, 1], [2], [3, 4, 5], [6], [0, 7]])


def test_all_three_run_on_a_folder_and_leave_a_run_with_figure_and_table(run, root, pytester):
    run("--coco", root).assert_outcomes(passed=3)
    entry = json.loads((pytester.path / "results/run.json").read_text())["clipbench"]
    assert [r["experiment"] for r in entry["results"]] == ["coco_crops", "coco_multilabel", "coco_retrieval"]
    assert {r["dataset"]["name"] for r in entry["results"]} == {"coco_val2017"}
    assert (
        pytester.path / "results/figures" / file_name(("coco_crops", "planted_model:Model"), ".png")
    ).stat().st_size > 5000
    assert "Most confused classes" in (pytester.path / "results/summary.md").read_text()


@pytest.mark.parametrize("absent", ["annotations/instances_val2017.json", "annotations/captions_val2017.json"])
def test_a_folder_that_lacks_a_part_of_the_layout_skips_what_needs_it_and_names_it(run, root, absent):
    (root / absent).rename(root / "elsewhere")
    result = run("--coco", root)
    needing = {"annotations/instances_val2017.json": 2, "annotations/captions_val2017.json": 1}[absent]
    result.assert_outcomes(skipped=needing, passed=3 - needing)
    result.stdout.fnmatch_lines([f"*lacks {absent}*; expected COCO's official layout: val2017/*"])
    run("--coco", root, "--require-all").assert_outcomes(failed=needing, passed=3 - needing)


@pytest.mark.parametrize("absent", ["annotations", "val2017"])
def test_a_folder_of_which_nothing_can_be_measured_is_a_usage_error(run, root, absent):
    (root / absent).rename(root / "elsewhere")
    result = run("--coco", root)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"{absent}" in result.stderr.str()
    assert "expected COCO's official layout" in result.stderr.str()


def test_a_folder_that_does_not_exist_is_a_usage_error(run):
    result = run("--coco", "nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--coco" in result.stderr.str()


@pytest.mark.fault("annotations that lie")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "instances_val2017.json is not JSON, or cut short: * at line 1, column *"),
        (lambda text: text.replace('"category_id": 1', '"category_id": 99'), "annotation * has category_id = 99"),
        (lambda text: text.replace('"image_id": 2', '"image_id": 77'), "annotation * has image_id = 77"),
        (lambda text: text.replace('"000000.png"', '"../../x.png"'), "names the image '../../x.png', which leaves *: refused"),
    ],
)  # fmt: skip
def test_malformed_annotations_fail_with_one_line_and_no_traceback(run, root, change, words):
    path = root / "annotations/instances_val2017.json"
    path.write_text(change(path.read_text()))
    result = run("--coco", root, files=FILES[:1])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{words}*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.fault("a broken picture")
def test_a_truncated_image_is_left_out_and_under_require_all_fails_by_name(run, root, pytester):
    picture = root / "val2017" / "000002.png"
    picture.write_bytes(picture.read_bytes()[:60])
    run("--coco", root).assert_outcomes(passed=3)
    results = json.loads((pytester.path / "results/run.json").read_text())["clipbench"]["results"]
    assert [r["provenance"]["exclusions"]["broken_images"] for r in results] == [1, 1, 1]
    assert [r["dataset"]["n"] for r in results] == [6, 4, 4]
    result = run("--coco", root, "--require-all")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*1 broken image(s): 000002.png (--require-all)*"])
