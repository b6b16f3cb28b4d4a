"""The fault table: files made to harm, and what must hold of each.

No code of theirs runs, no half file is left, one line names the thing and the next step, the exit code is right, and seconds and
memory are bounded. A row is one test; `pytest tests/test_hostile.py` is the table alone. Mutated files are in `test_mutations.py`.
"""

import base64
import errno
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from bounds import outcome
from fakes import matching
from hypothesis import given
from hypothesis import strategies as st

from clipbench.cli import main
from clipbench.data.folders import class_set, labelled_folder
from clipbench.errors import ClipbenchError, DataError, sanitize
from clipbench.judge.baseline import read_base
from clipbench.judge.tolerances import read_rules
from clipbench.models.zoo import checkpoint_config
from clipbench.options import declared_options
from clipbench.paths import file_name, open_data, read_json, read_toml
from clipbench.regression import read_embeddings
from clipbench.report.document import Code, Details, Heading, Paragraph, Table, to_markdown
from clipbench.report.page import to_html
from clipbench.report.ranking import rankings_by_experiment
from clipbench.report.summary import write_report
from clipbench.saved_rows import EmbeddingsFileError, read_index, read_queries, read_rows
from clipbench.settings import read_settings
from clipbench.storage import dump_json, read_run, run_to_json, write_atomically
from clipbench.types import Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded and files are made as Linux does it")

ENVIRONMENT = {"machine": {}, "software": {"python": "3"}}
NAMES = tuple(f"item {k}" for k in range(8))
ODD = "a\n::error::b\x1b]0;t\x07\x00\u202e\u200b\u2028\u061c\ufeff\ud800\udce9##[stop-commands]x"


def a_run(model="RN50", **identity):
    return Run(ENVIRONMENT, (matching(np.eye(8), NAMES, model, **identity),), id="a", time="2026-01-01T00:00:00+00:00")


def stored(path, run=None, **changes):
    """A run file, its `clipbench` object changed."""
    path.write_text(json.dumps({"clipbench": json.loads(dump_json(run_to_json(run or a_run()))) | changes}))
    return path


def is_plain(text):
    """Does nothing in the text steer, hide or reorder?"""
    return not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\u2060"]


# --- text


@pytest.mark.fault("a name that is no UTF-8", "text that steers", "text that hides or links")
@given(st.text(st.characters(codec=None)))
def test_sanitized_text_is_one_plain_line_that_is_no_command_and_stays_so(text):
    shown = sanitize(text)
    assert is_plain(shown)
    assert "\n" not in shown
    assert not shown.lstrip().startswith("::")
    assert "##[" not in shown
    assert shown.encode().decode() == shown == sanitize(shown)
    assert sanitize("plain text, naïve 猫 👍") == "plain text, naïve 猫 👍"


@pytest.mark.fault("text that steers")
def test_what_is_not_plain_is_shown_escaped():
    assert sanitize("a\x1b[31m\u202eb\udce9") == r"a\x1b[31m\u202eb\udce9"


@pytest.mark.fault("text that steers")
def test_every_error_of_ours_is_one_plain_line():
    assert is_plain(str(DataError(ODD)))
    assert "\n" not in str(ClipbenchError(ODD))


@pytest.mark.fault("a name that is no UTF-8", "text that steers", "text that hides or links")
@pytest.mark.parametrize("render", [to_markdown, lambda blocks: to_html(blocks[:3], ODD)], ids=["Markdown", "HTML"])
def test_a_page_holds_none_of_it(render):
    blocks = [Heading(ODD), Paragraph(ODD), Table((ODD,), [(ODD,)]), Code(ODD), Details(ODD, [Paragraph(ODD)])]
    page = render(blocks)
    assert is_plain(page)
    assert not any(line.startswith("::") for line in page.splitlines())
    page.encode()


@pytest.mark.fault("text that hides or links")
def test_no_address_in_a_page_becomes_a_link():
    assert "@e" not in to_markdown([Paragraph("a@evil.example @team")])


@pytest.mark.fault("a name that is no UTF-8", "text that steers", "text that hides or links")
@pytest.mark.parametrize("form", ["text", "markdown", "github", "json"])
def test_a_comparison_of_runs_full_of_it_is_plain_and_keeps_its_exit_code(tmp_path, capsys, form, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    result = matching(np.eye(8), (ODD, *NAMES[1:]), ODD, ODD)
    path = stored(tmp_path / "run.json", Run(ENVIRONMENT | {"software": {ODD: ODD}}, (result,), id="a", time=""))
    assert main(["compare", str(path), str(path), "--format", form]) in (0, 3)
    text = capsys.readouterr().out
    assert is_plain(text)
    if form == "github":
        assert all(line.startswith(("::notice ", "::warning ")) for line in text.splitlines())
    assert main(["report", str(path), "-o", str(tmp_path / "out")]) == 0
    pages = [tmp_path / "out/summary.md", tmp_path / "out/summary.html", *tmp_path.glob("step.md")]
    assert all(is_plain(page.read_text(encoding="utf-8")) for page in pages)


@pytest.mark.fault("a name that is no UTF-8")
def test_a_terminal_of_few_letters_costs_no_verdict(tmp_path):
    path = stored(tmp_path / "run.json", a_run("猫"))
    command = [sys.executable, "-m", "clipbench", "compare", str(path), str(path)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60)
    assert done.returncode in (0, 3), done.stderr


@pytest.mark.fault("models of one spelling")
def test_two_models_never_share_a_figure(tmp_path):
    results = tuple(matching(np.eye(8), NAMES, name) for name in ("enc:a_b", "enc_a:b"))
    write_report(Run(ENVIRONMENT, results), (), tmp_path, [])
    assert len(list((tmp_path / "figures").iterdir())) == 2
    assert file_name(("a", ODD), ".png").isascii()


@pytest.mark.fault("a name that is no UTF-8")
def test_a_folder_that_is_no_utf8_has_a_class_that_a_tokenizer_takes(tmp_path):
    for name in (b"caf\xe9", b"dog"):
        (tmp_path / os.fsdecode(name)).mkdir()
        (tmp_path / os.fsdecode(name) / "a.png").touch()
    for text in (*class_set("mine", tmp_path).classes, *labelled_folder("mine", tmp_path).classes):
        text.encode()


# --- files as data


def fifo(path):
    os.mkfifo(path)
    return path


NO_FILES = {
    "pipe": lambda folder: fifo(folder / "pipe"),
    "device": lambda folder: Path("/dev/zero"),
    "folder": lambda folder: folder,
    "nothing": lambda folder: folder / "nothing",
    "dangling link": lambda folder: (folder / "link").symlink_to("nowhere") or folder / "link",
    "link loop": lambda folder: (folder / "loop").symlink_to("loop") or folder / "loop",
    "name with NUL": lambda folder: folder / "a\0b",
    "endless name": lambda folder: folder / ("x" * 5000),
}
READERS = {
    "run": read_run,
    "baseline": lambda path: read_base(path, "baseline"),
    "index": read_index,
    "queries": read_queries,
    "rows": read_rows,
    "rules": read_rules,
    "settings": lambda path: read_settings(path, declared_options()),
    "embeddings": read_embeddings,
    "JSON": read_json,
    "TOML": read_toml,
}


@pytest.mark.fault("what is no file")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, reader):
    path = NO_FILES[kind](tmp_path)
    name, message = outcome(lambda: READERS[reader](path), seconds=5, megabytes=200)
    assert name.endswith("Error"), (name, message)
    assert issubclass(getattr(sys.modules["clipbench.errors"], name, EmbeddingsFileError), ValueError), (name, message)
    assert (
        "not there" in message or "cannot read" in message or "no regular file" in message or "is a folder" in message
    )


@pytest.mark.fault("what is no file")
@pytest.mark.parametrize("command", ["compare", "report"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_a_command_ends_with_2_and_one_line(tmp_path, kind, command):
    path = str(NO_FILES[kind](tmp_path))
    arguments = ["compare", path, path] if command == "compare" else ["report", path, "-o", str(tmp_path / "out")]
    assert outcome(lambda: main(arguments), seconds=10, megabytes=200) == ("", "2")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("what is no file")
def test_a_run_file_is_no_larger_than_the_option_says(tmp_path, capsys):
    path = stored(tmp_path / "run.json", junk="x" * 2_000_000)
    assert main(["compare", str(path), str(path), "--max-file-size", "1"]) == 2
    assert "--max-file-size MB" in capsys.readouterr().err
    assert main(["compare", str(path), str(path), "--max-file-size", "3"]) in (0, 3)
    assert "--max-file-size 3" in capsys.readouterr().out


@pytest.mark.fault("what is no file")
def test_a_sparse_file_is_refused_by_its_size_before_it_is_read(tmp_path):
    path = tmp_path / "run.json"
    path.touch()
    os.truncate(path, 1 << 40)
    for read in READERS.values():
        name, message = outcome(lambda read=read: read(path), seconds=5, megabytes=200)
        assert name.endswith("Error"), (name, message)
        assert "bytes" in message


@pytest.mark.fault("what is no file")
def test_a_file_that_changes_size_is_read_to_the_size_it_had(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    with open_data(path, 10) as file:
        path.write_text("{}" * 100)
        assert file.read(2) == b"{}"


JSONS = {
    "deep lists": b'{"clipbench": ' + b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and whole": b'{"clipbench": ' + b"[" * 500 + b"]" * 500 + b"}",
    "a long integer": b'{"clipbench": ' + b"9" * 5_000_000 + b"}",
    "a long exponent": b'{"clipbench": 1e999999999}',
    "NaN": b'{"clipbench": NaN}',
    "UTF-16": '{"clipbench": 1}'.encode("utf-16"),
    "cut": b'{"clipbench": {"schema": 2',
    "a number": b"1",
    "a text": b'"x"',
    "a million errors": b'{"clipbench": {"schema": 2, "plan": [' + b",".join([b"1"] * 1_000_000) + b"]}}",
    "endless text": b'{"clipbench": "' + b"a" * 50_000_000 + b'"}',
    "zero bytes": b"\0" * 1000,
}


@pytest.mark.fault("JSON and TOML made to harm")
@pytest.mark.parametrize("kind", JSONS)
def test_hostile_json_is_refused_in_bounded_time(tmp_path, kind):
    path = tmp_path / "run.json"
    path.write_bytes(JSONS[kind])
    name, message = outcome(lambda: read_run(path), seconds=15)
    assert name == "RunFormatError", (name, message)
    assert len(message) < 700
    (tmp_path / "open_clip_config.json").write_bytes(JSONS[kind])
    name, message = outcome(lambda: checkpoint_config(tmp_path / "weights.pt"), seconds=5)
    assert name == "UsageError", (name, message)


def square(run, n):
    result = run["results"][0]
    result["matrices"]["similarity"].update(rows=["x"] * n, columns=["x"] * n, values=[[0.5] * n] * n)


def answered(run, n):
    """Every item taken for one of n classes."""
    result = run["results"][0]
    result["lists"]["classes"] = result["protocol"]["classes"] = [f"c{k}" for k in range(n)]
    answers = next(iter(result["answers"].values()))
    answers |= {
        "candidates": "classes",
        "labels": answers["margins"] | {"dtype": "<i4", "base64": base64.b64encode(bytes(32)).decode()},
    }


def deep(n):
    inner = []
    for _ in range(n):
        inner = [inner]
    return inner


RUNS = {
    "deep environment": lambda run: run["environment"]["machine"].update(x=deep(300)),
    "a huge matrix": lambda run: run["results"][0]["matrices"]["similarity"].update(
        rows=["x"] * 3000, columns=["x"] * 3000
    ),
    "a matrix of nothing": lambda run: run["results"][0]["matrices"]["similarity"].update(
        rows=[], columns=[], values=[]
    ),
    "texts as outcomes": lambda run: run["results"][0]["items"].update(margin_min=["a"] * 8),
    "a number no float holds": lambda run: run["results"][0]["metrics"]["margin_min"].update(value=10**400),
    "a shape without end": lambda run: next(iter(run["results"][0]["answers"].values()))["top"].update(shape=[10**30]),
    "an index out of range": lambda run: next(iter(run["results"][0]["answers"].values()))["top"].update(
        base64=np.full((8, 5), 99, "<i4").tobytes().hex(), shape=[8, 5]
    ),
    "a negative n": lambda run: run["results"][0]["dataset"].update(n=-1),
    "no results": lambda run: run.update(results={}),
    "a metric called ids": lambda run: run["results"][0]["metrics"].update(
        ids=run["results"][0]["metrics"]["margin_min"]
    ),
    "classes without end": lambda run: answered(run, 100_000),
    "many classes": lambda run: answered(run, 5_000),
    "the largest matrix": lambda run: square(run, 256),
    "the largest matrix drawn": lambda run: square(run, 64),
}


@pytest.mark.fault("a run file that lies")
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_lies_costs_a_line_or_a_verdict_and_never_a_traceback(tmp_path, kind):
    path, good = tmp_path / "run.json", stored(tmp_path / "good.json")
    entry = json.loads(good.read_text())
    RUNS[kind](entry["clipbench"])
    path.write_text(json.dumps(entry))
    for arguments in (["compare", good, path], ["compare", path, good], ["report", path, "-o", tmp_path / "out"]):
        name, code = outcome(lambda arguments=arguments: main([str(word) for word in arguments]), seconds=30)
        assert (name, code in "0123") == ("", True), (arguments, name, code)


@pytest.mark.fault("a figure that cannot be drawn")
def test_a_run_of_many_models_costs_figures_and_pairs_of_some_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("clipbench.report.summary.MOST_DRAWN", 2)
    monkeypatch.setattr("clipbench.judge.ranking.MOST_RANKED", 3)
    run = Run(ENVIRONMENT, tuple(matching(np.eye(8), NAMES, f"m{k}") for k in range(6)))
    ranked = rankings_by_experiment(run)
    assert {len(one.pairs) for _, found in ranked for one in found} == {3}
    assert ranked[0][1][0].not_comparable[0][1] == "not among the 3 best"
    undrawn, _ = write_report(run, (), tmp_path, [])
    assert undrawn == ["4 results after the first 2"]
    assert "4 results after the first 2" in (tmp_path / "summary.md").read_text()


@pytest.mark.fault("a figure that cannot be drawn")
@pytest.mark.parametrize(
    "error", [RuntimeError, TypeError, AttributeError, AssertionError, KeyError, OSError, MemoryError, RecursionError]
)
def test_whatever_drawing_raises_costs_that_figure_alone(tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error("no such font")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    run = Run(ENVIRONMENT, tuple(matching(np.eye(8), NAMES, f"m{k}") for k in range(2)))
    undrawn, unwritten = write_report(run, rankings_by_experiment(run), tmp_path, [])
    assert [f"{error.__name__}: " in line for line in undrawn] == [True] * 3  # two results, one ranking
    assert unwritten == []
    assert all("no such font" in (tmp_path / name).read_text() for name in ("summary.md", "summary.html"))


@pytest.mark.fault("a figure that cannot be drawn")
def test_figures_that_cannot_be_written_cost_no_page(tmp_path):
    (tmp_path / "figures").write_text("in the folder's place")
    undrawn, unwritten = write_report(a_run(), (), tmp_path, [])
    assert undrawn == []
    assert [line.startswith("natural-RN50") for line in unwritten] == [True]
    assert all("natural of RN50" in (tmp_path / name).read_text() for name in ("summary.md", "summary.html"))


def test_a_text_of_what_is_no_letter_is_refused(tmp_path):
    arrays = {name: np.eye(2, dtype=np.float32) for name in ("image_rows", "text_rows")}
    arrays |= {"text_image": np.arange(2), "image_ids": np.array(["a", "b"]), "text_ids": np.array(["a", "b"])}
    np.savez(tmp_path / "rows.npz", about=np.array([0x7FFFFFFF], dtype="<u4").view("<U1")[0:1].reshape(()), **arrays)
    with pytest.raises(EmbeddingsFileError, match="no letter"):
        read_rows(tmp_path / "rows.npz")


TOMLS = {
    "deep lists": "a = " + "[" * 100_000,
    "deep tables": "a = " + "{a = " * 100_000,
    "a long integer": "a = " + "9" * 500_000,
    "a dotted key": ".".join(["a"] * 100_000) + " = 1",
    "a quoted key": ".".join(['"!"'] * 100_000) + " = 1",
    "a dotted table": "[" + " . ".join(["a"] * 100_000) + "]",
    "too large": "# " + "x" * 2_000_000,
    "half a character": 'classes = ["\\ud800"]',
    "no text": b"\xff\xfe",
}


@pytest.mark.fault("JSON and TOML made to harm")
@pytest.mark.parametrize("kind", TOMLS)
@pytest.mark.parametrize("name", ["rules", "classes"])
def test_hostile_toml_is_refused_in_bounded_time(tmp_path, kind, name):
    content = TOMLS[kind]
    path = tmp_path / "classes.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "dog").mkdir()
    read = (lambda: read_rules(path)) if name == "rules" else (lambda: class_set("mine", tmp_path))
    kind, message = outcome(read, seconds=5)
    assert kind in ("DataError", "TooLargeError"), (kind, message)


@pytest.mark.fault("code in a run file")
@pytest.mark.parametrize("command", ["compare", "report", "power"])
def test_a_run_file_makes_nothing_import_or_connect(tmp_path, command):
    """The models and data sets that it names are modules here, and importing one, or a socket, ends the process."""
    for name in ("payload", "torch", "open_clip"):
        (tmp_path / f"{name}.py").write_text("import os\nopen('ran', 'w').close()\nos._exit(77)\n")
    run = a_run("payload:go", pretrained="factory")
    path = stored(tmp_path / "run.json", run)
    entry = json.loads(path.read_text())
    for result in entry["clipbench"]["results"]:
        result["experiment"] = result["dataset"]["name"] = "payload"
    (tmp_path / "other.json").write_text(json.dumps(entry))
    np.save(tmp_path / "index.npy", np.eye(8, dtype=np.float32))
    arguments = {
        "compare": ["compare", "run.json", "other.json", "--index", "index.npy", "--queries", "index.npy", "index.npy"],
        "report": ["report", "other.json", "-o", "out"],
        "power": ["power"],
    }[command]
    code = (
        "import os, sys\n"
        "sys.addaudithook(lambda event, a: event.startswith(('socket.', 'subprocess.', 'os.system', 'os.exec')) and os._exit(78))\n"
        f"sys.path.insert(0, ''); from clipbench.cli import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 3), done.stderr
    assert not (tmp_path / "ran").exists()


# --- writing


@pytest.mark.fault("a writer that was killed")
def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_live_ones_stays(tmp_path):
    old, live, foreign = (tmp_path / name for name in (".run.json.abc.part", ".run.json.def.part", ".run.jsonx.part"))
    for path in (old, live, foreign):
        path.write_text("half")
    os.utime(old, (1, 1))
    os.utime(foreign, (1, 1))
    write_atomically(tmp_path / "run.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.json.def.part", ".run.jsonx.part", "run.json"]


@pytest.mark.fault("a writer that was killed")
def test_the_folder_is_flushed_after_the_rename(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(Path(f"/proc/self/fd/{handle}").readlink()))
    write_atomically(tmp_path / "run.json", "whole")
    assert seen[-1] == tmp_path
    assert len(seen) == 2


@pytest.mark.fault("files that cannot be written")
def test_a_file_system_that_flushes_no_folder_is_no_error_and_a_broken_disk_is(tmp_path, monkeypatch):
    flush = os.fsync

    def fail(code):
        def call(handle):
            if Path(f"/proc/self/fd/{handle}").is_dir():
                raise OSError(code, "no")
            flush(handle)

        return call

    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    write_atomically(tmp_path / "run.json", "whole")
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="no"):
        write_atomically(tmp_path / "run.json", "whole")
