"""`--resume`: what an unfinished session measured is taken over where everything is the same, and measured anew where anything is not."""

import copy
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import NATURAL

from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.embed.embedder import ENCODED_AGAIN, Embedder
from clipbench.options import Options
from clipbench.parts import read_parts, unfinished
from clipbench.paths import LARGEST_RUN_BYTES, benchmarks
from clipbench.resume import DEPENDS, Left, module_sha256, results_left, sample_of, why_not
from clipbench.storage import read_run
from clipbench.types import DatasetIdentity, Evidence, ModelIdentity, Protocol, Result

pytestmark = pytest.mark.fault("an unfinished session, continued")
MODULE = '''
"""Encoders of any picture and any text. One stops in the middle while there is a file "stop"; each notes how much it encodes."""
import hashlib, os, signal
from pathlib import Path
import numpy as np

def row(content):
    seed = int.from_bytes(hashlib.sha256(content).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(32)

class Plain:
    def encode_images(self, images):
        with Path("encoded.txt").open("a") as file:
            file.write("image\\n" * sum(i.size == (40, 30) for i in images))
        rows = np.stack([row(i.tobytes()) for i in images])
        if Path("drift").exists():
            rows[[i.size == (40, 30) and i.getpixel((0, 0))[0] % 7 == 0 for i in images]] *= -1
        return rows
    def encode_texts(self, texts):
        return np.stack([row(text.encode()) for text in texts])

class First(Plain):
    config = {"version": 1}
    def __init__(self):
        self.identity = {"weights_sha256": hashlib.sha256(Path("weights").read_bytes()).hexdigest()}

class Stopping(First):
    def encode_texts(self, texts):
        if Path("stop").exists() and not any(text == "x" for text in texts):
            os.kill(os.getpid(), getattr(signal, Path("stop").read_text()))
        return super().encode_texts(texts)
'''
ZERO_SHOT = str(benchmarks() / "test_zero_shot.py")
MODELS = ["own_encoders:First", "own_encoders:Stopping"]
RESULTS = Path("results")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """330 pictures of three classes."""
    folder = tmp_path_factory.mktemp("own")
    for k in range(330):
        path = folder / f"class{k % 3}" / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (k % 256, k // 256, 99)).save(path)
    return folder


@pytest.fixture
def session(run, pytester, pictures):
    """Run a session on natural pictures and on those of one's own, and return its output and status."""
    (pytester.path / "own_encoders.py").write_text(MODULE)
    (pytester.path / "weights").write_text("trained")

    def call(*arguments, models=MODELS, stop=""):
        (pytester.path / "stop").write_text(stop) if stop else (pytester.path / "stop").unlink(missing_ok=True)
        (pytester.path / "encoded.txt").write_text("")
        own = (ZERO_SHOT, "--zero-shot", f"own={pictures}")
        return run(*own, *arguments, model=models, no_reraise_ctrlc=True)

    yield call
    sys.modules.pop("own_encoders", None)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, pictures):
    """The results of a session that was killed when it came to its second model."""
    folder = tmp_path_factory.mktemp("killed")
    for name, content in (("own_encoders.py", MODULE), ("weights", "trained"), ("stop", "SIGKILL")):
        (folder / name).write_text(content)
    models = [argument for model in MODELS for argument in ("--model", model)]
    command = [sys.executable, "-m", "pytest", NATURAL, ZERO_SHOT, *models, "--device", "cpu", "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(folder)])
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command += ["--zero-shot", f"own={pictures}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stdout
    return folder / "results"


@pytest.fixture
def left(session, killed, pytester):
    """The same results where a session finds them."""
    shutil.copytree(killed, pytester.path / "results")
    return session


def resumed():
    """What of a run was taken over: (experiment, model) pairs."""
    run = read_run(RESULTS / "run.json")
    return {(r.experiment, r.model.name.partition(":")[2]) for r in run.results if r.provenance.resumed}


def measured():
    run = read_run(RESULTS / "run.json")
    return {(r.experiment, r.model.name.partition(":")[2]) for r in run.results}


ALL = {(experiment, model) for experiment in ("natural", "zero_shot") for model in ("First", "Stopping")}
OF_THE_FIRST = {("natural", "First"), ("zero_shot", "First")}


def scores():
    return {str(r.key): {name: s.value for name, s in r.scores.items()} for r in read_run(RESULTS / "run.json").results}


def test_what_an_interrupted_session_measured_is_taken_over_and_the_rest_is_measured(session):
    assert session(stop="SIGINT").ret == pytest.ExitCode.INTERRUPTED
    before = read_run(RESULTS / "run.json")
    assert measured() == OF_THE_FIRST
    result = session("--resume")
    output = result.stdout.str()
    assert measured() == ALL
    assert resumed() == OF_THE_FIRST
    assert {r.provenance.resumed for r in read_run(RESULTS / "run.json").results} == {before.time, ""}
    assert (
        f"measured by the session that began {before.time} and did not come to its end, a sample encoded again: "
        in output
    )
    page = (RESULTS / "summary.md").read_text()
    assert f"Note: measured by the session that began {before.time} and did" in page.replace("\\", "")
    assert f"by the unfinished session that began {before.time}" in page
    assert not (RESULTS / "parts").exists()
    taken_over = scores()
    session()
    assert resumed() == set()
    assert scores() == taken_over


def test_299_of_the_rows_that_are_taken_over_are_encoded_again(left):
    left("--resume")
    encoded = Path("encoded.txt").read_text().split()
    assert len(encoded) == ENCODED_AGAIN + 330  # and all of the model's that is measured


def test_what_a_killed_session_measured_is_taken_over(left):
    left("--skip-existing")
    assert measured() == ALL
    assert resumed() == OF_THE_FIRST


def test_a_session_that_is_killed_twice_loses_neither_part(session):
    models = [*MODELS, "own_encoders:Plain"]
    session(stop="SIGINT", models=models)
    began = read_run(RESULTS / "run.json").time
    session("--resume", stop="SIGINT", models=models)
    assert resumed() == OF_THE_FIRST
    session("--resume", models=models)
    assert resumed() == OF_THE_FIRST
    assert {r.provenance.resumed for r in read_run(RESULTS / "run.json").results} == {began, ""}
    assert not (RESULTS / "parts").exists()


def test_resumed_results_are_held_to_a_baseline_as_executed(session):
    session()
    (RESULTS / "run.json").rename("base.json")
    judged = ("--baseline", "base.json", "--require-all")
    session(*judged, stop="SIGINT")
    session(*judged, "--resume")
    assert resumed() == OF_THE_FIRST
    run = read_run(RESULTS / "run.json")
    cells = [v for r in run.results if r.provenance.resumed for v in r.verdicts if v.cell]
    assert {v.key.experiment for v in cells} == {"natural", "zero_shot"}
    assert {v.outcome for v in cells} <= {"pass", "note"}
    assert [trace["again"]["images"]["n"] for trace in run.traces] == [ENCODED_AGAIN, ENCODED_AGAIN]


@pytest.mark.parametrize("name", DEPENDS)
def test_whatever_a_result_was_made_with_stands_against_it_where_it_is_another_or_not_known(killed, name):
    (parts,) = (read_parts(folder) for folder in unfinished(killed))
    found = results_left(killed, parts.run.plan, parts.asked, LARGEST_RUN_BYTES)
    assert len(found) == 2
    for (one,) in found.values():
        now = dict(one.made_with)
        assert why_not(one, now, one.trace) == ""
        for other in (now | {name: "another"}, now | {name: ""}):
            assert why_not(one, other, one.trace)
        assert DEPENDS[name] in why_not(one, now | {name: "another"}, one.trace)
        assert DEPENDS[name] in why_not(replace(one, made_with={}), now, one.trace)


def test_a_trace_that_moved_stands_against_a_result(killed):
    (parts,) = (read_parts(folder) for folder in unfinished(killed))
    (one,), *_ = results_left(killed, parts.run.plan, parts.asked, LARGEST_RUN_BYTES).values()
    trace = copy.deepcopy(one.trace)
    trace["stages"]["image_rows"] = trace["stages"]["image_rows"][::-1]
    assert "image rows changed" in why_not(one, one.made_with, trace)


@pytest.mark.parametrize("name", ["model", "source", "data"])
def test_a_change_between_the_sessions_is_seen(left, pictures, name):
    picture = pictures / "class0/0.png"
    if name == "model":
        Path("weights").write_text("trained more")
    elif name == "source":
        Path("own_encoders.py").write_text(MODULE + "# another line\n")
    else:
        Image.new("RGB", (40, 30), "white").save(picture)
    try:
        output = left("--resume").stdout.str()
    finally:
        Image.new("RGB", (40, 30), (0, 0, 99)).save(picture)
    assert resumed() == ({("natural", "First")} if name == "data" else set())
    assert measured() == ALL
    assert f"is measured anew: changed since: {DEPENDS[name]}" in output


def test_rows_that_come_out_otherwise_are_measured_anew_although_nothing_says_why(left):
    Path("drift").touch()
    output = left("--resume").stdout.str()
    assert resumed() == {("natural", "First")}
    assert "its images, encoded again, differ" in output


def test_an_encoder_that_states_no_config_starts_anew_and_says_so(session):
    models = ["own_encoders:Plain", "own_encoders:Stopping"]
    session(stop="SIGINT", models=models)
    output = session("--resume", models=models).stdout.str()
    assert resumed() == set()
    assert "it is not known what the encoder depends on: state a `config`" in output


def test_a_session_that_came_to_its_end_is_not_continued(session):
    session()
    output = session("--resume").stdout.str()
    assert resumed() == set()
    assert "nothing that could be continued lies in" in output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--batch-size", "3"), "--batch-size"), (("--limit", "20"), "--limit"), (("-k", "caption"), "-k or path")],
)
def test_a_session_that_is_asked_for_something_else_is_a_usage_error_that_names_it(left, arguments, named):
    result = left("--resume", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert named in result.stderr.str()
    assert "leave --resume out" in result.stderr.str()


@pytest.mark.parametrize(
    "arguments", [("--baseline", "b.json", "--update-baseline", "--reason", "new"), ("--save-embeddings",)]
)
def test_what_a_resumed_run_does_not_have_is_refused_with_it(session, arguments):
    result = session("--resume", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "drop one" in result.stderr.str()


def broken_off(text):
    return text[:-9]


def with_nan(text):
    return re.sub(r'"value": [-\d.e]+', '"value": NaN', text, count=1)


def with_better_outcomes(text):
    entry = json.loads(text)
    entry["items"]["acc1"] = [1] * len(entry["items"]["acc1"])
    entry["metrics"]["acc1"] |= {"value": 1, "low": 0.99, "high": 1}
    return json.dumps(entry)


@pytest.mark.parametrize("change", [broken_off, with_nan, with_better_outcomes])
def test_a_part_that_is_not_as_it_was_written_is_named_before_anything_is_measured(left, change):
    part = next(RESULTS.glob("parts/*/zero-shot*.json"))
    part.write_text(change(part.read_text()))
    result = left("--resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert part.name in result.stderr.str()
    assert Path("encoded.txt").read_text() == ""


def test_parts_of_another_request_stay_and_are_named(left):
    (folder,) = unfinished(RESULTS)
    output = left("--limit", "20").stdout.str()
    assert unfinished(RESULTS) == [folder]
    assert f"are kept: clipbench report {folder}" in output


LATE = """
class Late(First):
    def encode_texts(self, texts):
        if Path("full").exists() and not any(text == "x" for text in texts):
            raise RuntimeError("out of memory")
        return super().encode_texts(texts)
"""


def test_what_was_measured_beside_a_failure_is_taken_over_by_the_next_attempt(session):
    Path("own_encoders.py").write_text(MODULE + LATE)
    models = ["own_encoders:First", "own_encoders:Late"]
    Path("full").touch()
    assert "the same command with --resume continues this session" in session(models=models).stdout.str()
    session("--resume", models=models)
    assert resumed() == OF_THE_FIRST
    Path("full").unlink()
    session("--resume", models=models)
    assert resumed() == OF_THE_FIRST
    assert ("zero_shot", "Late") in measured()
    assert not (RESULTS / "parts").exists()


def test_an_encoder_that_is_edited_while_it_is_measured_is_measured_anew(session):
    edit = """
class Edited(First):
    def encode_texts(self, texts):
        Path("own_encoders.py").write_text(Path("own_encoders.py").read_text() + "# another line\\n")
        return super().encode_texts(texts)
"""
    Path("own_encoders.py").write_text(MODULE + edit)
    models = ["own_encoders:Edited", "own_encoders:Stopping"]
    session(stop="SIGINT", models=models)
    output = session("--resume", models=models).stdout.str()
    assert resumed() == set()
    assert DEPENDS["source"] in output


def test_tests_in_another_order_and_names_by_hash_continue_as_well(session, pytester):
    models = ["one=own_encoders:First", "two=own_encoders:Stopping"]
    session("--redact", stop="SIGINT", models=models)
    Path("conftest.py").write_text(
        "import pytest\n@pytest.hookimpl(tryfirst=True)\ndef pytest_collection_modifyitems(items): items.reverse()\n"
    )
    session("--redact", "--resume", models=models)
    taken_over = {r.key for r in read_run(RESULTS / "run.json").results if r.provenance.resumed}
    assert {(key.experiment, key.model) for key in taken_over} == {("natural", "one"), ("zero_shot", "one")}


def test_a_sample_of_many_classes_is_of_those_of_its_items(tmp_path):
    classes = tuple(f"class {k}" for k in range(1000))
    items = tuple(Item(f"{k}", ImageRef(tmp_path / f"{k}.png"), labels=(k % 1000,)) for k in range(3000))
    dataset = Dataset("many", items, "a test", classes, ("a {}.",))
    evidence = Evidence(tuple(item.id for item in items), *(np.zeros(0),) * 4, 2)
    identity = DatasetIdentity("many", "", 3000)
    protocol = Protocol(("the {}.",), classes=classes)
    result = Result("zero_shot", ModelIdentity("m", ""), identity, protocol, {}, evidence={"images": evidence})
    part = sample_of(dataset, Left(result, {}, {}, ""))
    assert len(part) == ENCODED_AGAIN
    assert part.prompts == ("the {}.",)
    assert len(part.classes) <= ENCODED_AGAIN + 2
    whole = {item.id: classes[item.labels[0]] for item in items}
    assert all(part.classes[item.labels[0]] == whole[item.id] for item in part.items)


def test_each_option_has_a_hash_of_its_own_and_none_shows_what_was_given(tmp_path):
    plain = Options().hashes()
    for changed, name in (
        (Options(batch_size=3), "--batch-size"),
        (Options(models=("RN50",)), "--model"),
        (Options(precision="bf16"), "--precision"),
        (Options(require_all=True), "--require-all"),
    ):
        assert {key for key, value in changed.hashes().items() if plain[key] != value} == {name}
    assert not {"--results", "--resume", "--benchmark-json"} & plain.keys()
    assert all(len(value) == 16 for value in plain.values())


def test_a_module_in_a_package_is_hashed_with_all_of_that(tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("def make(): return 1\n")
    (package / "layers.py").write_text("width = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_package.model")
    before = module_sha256("own_package.model")
    (package / "layers.py").write_text("width = 4\n")
    assert len(before) == 64
    assert module_sha256("own_package.model") not in ("", before)
    assert module_sha256("math") == module_sha256("nowhere") == ""


def test_an_encoder_that_raises_when_it_encodes_again_costs_its_own_cells_alone(session, monkeypatch):
    session()
    (RESULTS / "run.json").rename("base.json")

    def raising(embedder):
        raise RuntimeError("rate limit")

    monkeypatch.setattr(Embedder, "encode_again", raising)
    session("--baseline", "base.json")
    assert measured() == ALL
    assert {trace["error"] for trace in read_run(RESULTS / "run.json").traces} == {
        "rows of this run could not be encoded again: rate limit"
    }
