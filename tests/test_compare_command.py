"""`clipbench compare` at the command line: exit codes, formats, bad input in one line, and no torch."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paired_runs import EYE, INT8, RIGHT, flipped, moved, natural, run_of, scored

from clipbench.cli import main
from clipbench.storage import dump_json, run_to_json

EVIL = "<img src=x onerror=alert(1)> | `x` [l](http://h) @team www.evil.example\n::error::boo \x1b[31m"
WORSE = flipped(RIGHT, lost=200)


def stored(path, *results, **more):
    path.write_text(dump_json({"benchmarks": [], "clipbench": run_to_json(run_of(*results, **more))}))
    return str(path)


@pytest.fixture
def pair(tmp_path):
    """Two run files: head is worse on a large set and has changed on a small one."""
    base = stored(tmp_path / "base.json", natural(), scored(RIGHT), software={"torch": "2.6"})
    worse = natural(moved(EYE, 2, 5, 0.5), **INT8), scored(WORSE, **INT8)
    return base, stored(tmp_path / "head.json", *worse, software={"torch": "2.14"})


QUALITY, SMALL = "quality[coco_crops/items/ViT-B/32]", "quality[natural/natural/ViT-B/32]"


@pytest.mark.parametrize(
    ("head", "code", "word"),
    [
        ([natural(), scored(RIGHT)], 0, "PASS: 8 pass"),
        ([natural(EYE * 0.99, **INT8), scored(WORSE, **INT8)], 1, "FAIL: 1 fail, 7 pass"),
        ([natural()], 3, "INCONCLUSIVE: 1 inconclusive, 5 pass"),
    ],
)
def test_the_exit_code_and_the_first_line_are_the_verdict(tmp_path, capsys, head, code, word):
    base = stored(tmp_path / "base.json", natural(), scored(RIGHT))
    assert main(["compare", base, stored(tmp_path / "head.json", *head)]) == code
    assert capsys.readouterr().out.startswith(word)


def test_text_says_what_failed_what_changed_which_items_and_how_to_reproduce(pair, capsys):
    main(["compare", *pair])
    text = capsys.readouterr().out
    for words in (
        f"fail         {QUALITY}: acc1 0.6 -> 0.56: fell by 0.04, more than the 0.01 allowed",
        f'--accept "{QUALITY}" --reason TEXT',
        "2.6 -> 2.14",
        "lost   astronaut  margin +0.2000 -> -0.2000",
        "after:  camera 0.500, astronaut 0.300",
        f"reproduce: clipbench compare {pair[0]} {pair[1]}",
    ):
        assert words in text


def test_json_is_complete_and_finite(pair, capsys):
    assert main(["compare", *pair, "--accept", SMALL, "--reason", "eight pictures", "--format", "json"]) == 1
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (told["verdict"], told["exit_code"]) == ("fail", 1)
    assert {"cells", "findings", "items", "differences", "stages", "command", "headline", "alpha"} <= told.keys()
    failed = [f for f in told["findings"] if f["verdict"] == "fail"]
    assert [(f["metric"], f["lost"], f["gained"], f["cell"]) for f in failed] == [("acc1", 200, 0, QUALITY)]
    cells = {one["id"]: one for one in told["cells"]}
    assert (cells[QUALITY]["verdict"], cells[QUALITY]["accepted"]) == ("fail", "")
    assert cells[QUALITY]["to_accept"] == f'--accept "{QUALITY}" --reason TEXT'
    small = cells[SMALL]
    assert (small["verdict"], small["found"], small["accepted"]) == ("note", "inconclusive", "eight pictures")
    assert {one["verdict"] for name, one in cells.items() if name not in (QUALITY, SMALL)} == {"pass"}


def test_markdown_answers_in_the_order_in_which_a_reader_asks(pair, capsys):
    main(["compare", *pair, "--format", "markdown"])
    text = capsys.readouterr().out
    order = [
        "## FAIL",
        "Do not ship",
        "### What changed",
        "| fail |",
        "### What else differs",
        "torch",
        "### Which items",
    ]
    order += ["astronaut", "### Reproduce", "    clipbench compare", "<details>", "</details>"]
    place = 0
    for words in order:
        place = text.index(words, place)
    assert text.startswith("## FAIL")
    assert text.index("| margin_min of natural |") > text.index("<details>")


def test_github_annotates_failures_as_errors_and_appends_the_summary(pair, capsys, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert main(["compare", *pair, "--format", "github"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("::error title=clipbench::FAIL: 1 fail, 1 inconclusive, 6 pass")
    assert lines[1].startswith(f"::error title=clipbench fail%2C {QUALITY}::acc1 0.6 -> 0.56: fell")
    assert all(line.startswith(("::error ", "::warning ", "::notice ")) for line in lines)
    assert summary.read_text().startswith("before\n## FAIL")


@pytest.mark.fault("text that steers", "text that hides or links")
@pytest.mark.parametrize("form", ["text", "markdown", "github"])
def test_text_of_a_run_steers_nothing(tmp_path, capsys, form):
    ids = [EVIL, *(f"i{k}" for k in range(4999))]
    base = stored(tmp_path / "base.json", scored(RIGHT, ids=ids, model=EVIL), software={EVIL: "1"})
    head = stored(tmp_path / "head.json", scored(WORSE, ids=ids, model=EVIL, **INT8), software={EVIL: EVIL})
    assert main(["compare", base, head, "--format", form]) == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text
    if form == "github":
        assert not any(line.startswith("::error::") for line in text.splitlines())
    if form == "markdown":
        bare = text.replace("\\<", "").replace("\\]", "")
        assert "<img" not in bare
        assert "](http" not in bare
        assert "@team" not in text
        assert "www.evil" not in text


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--tolerance", "acc1=0.05", "--alpha", "0.1", "--only", "coco_crops"], 0),
        (["--only", "quality[coco*"], 1),
        (["--accept", QUALITY, "--accept", SMALL, "--reason", "int8"], 0),
        (["--speed", "off", "--max-cosine-distance", "0.5"], 1),
    ],
)
def test_options_reach_the_rules_and_the_command_that_reproduces_it(pair, capsys, options, code):
    assert main(["compare", *pair, *options]) == code
    assert capsys.readouterr().out.rstrip().endswith(shlex.join(options))


def test_an_anchor_is_a_second_base(pair, capsys):
    base, head = pair
    assert main(["compare", head.replace("head", "base"), base]) == 0
    same = head.replace("head.json", "again.json")
    Path(same).write_text(Path(head).read_text())
    assert main(["compare", same, head, "--anchor", base]) == 1
    assert f"fail         anchor {QUALITY}: acc1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--tolerance", "x"],
        ["--tolerance", "acc=0.1"],
        ["--alpha", "2"],
        ["--only", "no_such"],
        ["--accept", "no_such", "--reason", "x"],
        ["--accept", QUALITY],
        ["--settings", "gone.toml"],
    ],
)
def test_options_that_cannot_be_meant_are_exit_code_2_and_one_line(pair, capsys, options):
    assert main(["compare", *pair, *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def broken():
    """Each bad input of a gate: its words, and how it is made of a whole run's JSON."""
    whole = dump_json({"benchmarks": [], "clipbench": run_to_json(run_of(natural()))})

    def changed(change):
        entry = json.loads(whole)
        change(entry["clipbench"]["results"][0], entry["clipbench"])
        return json.dumps(entry)

    first = "text_to_image_top1"
    return {
        "not JSON, or cut short": "hello",
        "is not JSON": whole[: len(whole) // 2],
        "is no run": "[1]",
        "without the key `clipbench`": '{"benchmarks": []}',
        "run schema 1, this clipbench reads 2": changed(lambda r, run: run.update(schema=1)),
        "more than once": changed(lambda r, run: r["items"]["ids"].__setitem__(1, "page")),
        "7 outcomes for 8 ids": changed(lambda r, run: r["items"][first].pop()),
        "holds NaN": whole.replace("0.1", "NaN", 1),
        "no finite number": changed(lambda r, run: r["items"][first].__setitem__(0, None)),
        "text_to_image_top1 has an outcome": changed(lambda r, run: r["items"][first].__setitem__(0, "1")),
        "margin_min is no finite number": changed(lambda r, run: r["metrics"]["margin_min"].update(value=10**400)),
        "something other than texts": changed(
            lambda r, run: r["items"].update(axes={first: "text_ids"}, text_ids=[[1]] * 8)
        ),
        "two results of natural": changed(lambda r, run: run["results"].append(r)),
        "holds 1e999": whole.replace("0.1,", "1e999,", 1),
        "clipbench.results": changed(lambda r, run: run.update(results={})),
        "is not UTF-8": "\udcff",
    }


@pytest.mark.fault("a run file that lies")
@pytest.mark.parametrize("words", list(broken()))
@pytest.mark.parametrize("which", ["base", "head"])
def test_bad_input_is_exit_code_2_and_one_line(tmp_path, capsys, words, which):
    good, bad = stored(tmp_path / "good.json", natural()), tmp_path / "bad.json"
    bad.write_bytes(broken()[words].encode(errors="surrogateescape"))
    assert main(["compare", *([str(bad), good] if which == "base" else [good, str(bad)])]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_a_file_that_is_not_there_is_exit_code_2(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "a.json is not there" in capsys.readouterr().err


def test_a_repeated_id_at_the_end_of_a_long_list_is_found(tmp_path, capsys):
    entry = {"clipbench": run_to_json(run_of(scored([1] * 60_000)))}
    entry["clipbench"]["results"][0]["items"]["ids"][-1] = "i0"
    path = tmp_path / "run.json"
    path.write_text(json.dumps(entry))
    assert main(["compare", str(path), str(path)]) == 2
    assert "'i0' more than once" in capsys.readouterr().err


def test_compare_and_power_import_no_torch(pair):
    code = (
        "import sys; from clipbench.cli import main\n"
        f"for form in ('text', 'json', 'markdown', 'github'): main(['compare', {pair[0]!r}, {pair[1]!r}, '--format', form])\n"
        "main(['power'])\n"
        "print([m for m in ('torch', 'open_clip', 'torchvision', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_power_prints_for_each_size_what_one_metric_decides_and_the_worst_of_six(capsys):
    assert main(["power"]) == 0
    text = capsys.readouterr().out
    assert all(f"{n:>7,}  " in text for n in (100, 500, 5_000, 25_000))
    assert "excluded: one metric     six  failed: one metric     six" in text
    assert "0.0784  0.1029" in text


def test_power_says_before_a_run_what_a_number_of_items_decides(capsys):
    assert main(["power", "--items", "4500", "--flips", "0.05"]) == 0
    *_, header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["n", "flips"]
    assert row.split()[:3] == ["4,500", "0.05", "0.0099"]
    main(["power", "--items", "4500"])
    assert capsys.readouterr().out.count("4,500") == 4


def test_power_says_before_a_run_how_many_items_decide_a_drop(capsys):
    assert main(["power", "--drop", "0.01", "--flips", "0.001"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["0.001", "473", "628"]
    main(["power", "--drop", "0.02"])
    assert capsys.readouterr().out.splitlines()[-4].split() == ["0", "149", "149"]


@pytest.mark.parametrize(
    "options",
    [["--tolerance", "2"], ["--alpha", "0.9"], ["--items", "0"], ["--drop", "1"], ["--drop", "nan"], ["--flips", "1"]],
)
def test_power_of_what_cannot_be_is_exit_code_2(capsys, options):
    assert main(["power", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_outcomes_may_be_anything_numpy_reads(tmp_path):
    base = stored(tmp_path / "a.json", scored([True, False] * 8, "top1", "mine"))
    head = stored(tmp_path / "b.json", scored(np.array([1.0, 0.0] * 8).tolist(), "top1", "mine"))
    assert main(["compare", base, head]) == 0


def test_a_comment_fits_into_githubs_limit_and_says_what_was_cut(tmp_path, capsys):
    ids = [f"a picture with a name of some length, number {k}/{'x' * 200}.jpg" for k in range(5000)]
    models = [f"model {k}" for k in range(40)]
    base = stored(tmp_path / "base.json", *(scored(RIGHT, ids=ids, model=model) for model in models))
    head = stored(tmp_path / "head.json", *(scored(WORSE, ids=ids, model=model, **INT8) for model in models))
    assert main(["compare", base, head, "--format", "markdown"]) == 1
    text = capsys.readouterr().out
    assert len(text.encode()) <= 60_000
    assert text.startswith("## FAIL")
    assert "more parts are left out here for their length" in text
