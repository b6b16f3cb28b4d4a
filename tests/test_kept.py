"""What is kept of a session that is ended from outside: at a signal its run, after a kill its parts; a folder in use is refused.

The last test kills sessions at random moments: CLIPBENCH_KILLS=300 says how many (default: 10).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from running import ENCODERS, NATURAL

import clipbench.parts
from clipbench.cli import main
from clipbench.errors import UsageError
from clipbench.parts import held, latest_run, unfinished
from clipbench.storage import dump_json, read_run, run_to_json
from clipbench.types import Run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these signals nor SIGKILL")
KILLS = int(os.environ.get("CLIPBENCH_KILLS", "10"))
MODELS = [f"Model{k}" for k in range(4)]
MODULE = (
    ENCODERS
    + "import os, signal, time\n"
    + "".join(f"class {name}(Oracle): pass\n" for name in MODELS)
    + """
class Signalled(Oracle):
    def encode_images(self, images):
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        time.sleep(20)

class Building(Oracle):
    def __init__(self):
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        time.sleep(20)

class Deaf(Oracle):
    def encode_images(self, images):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        except BaseException:
            return super().encode_images(images)

def pytest_runtest_logfinish(nodeid):
    with open("finished.txt", "a") as file:
        file.write(nodeid.partition("known_encoders:")[2].partition("]")[0] + chr(10))
"""
)


SERVER = """
import importlib, json, os, sys
for name in ("models.open_clip", "pytest_plugin", "report.summary", "judge.references", "embed.trace", "session"):
    importlib.import_module("clipbench." + name)  # what a session spends most of its seconds on
import pytest, signal
for name in ("SIGTERM", "SIGHUP", "SIGQUIT"):  # a shell's background command ignores some
    signal.signal(getattr(signal, name), signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    folder, arguments, environment = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.environ.update(environment)
        sys.path.insert(0, folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.exit(pytest.main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Started:
    """A session in a process of its own: its `pid`, and once it ended its `returncode` and `output`."""

    def __init__(self, server, folder):
        self.server, self.folder, self.pid = server, folder, int(server.stdout.readline())

    def end(self):
        self.returncode = int(self.server.stdout.readline())
        return (self.folder / "output.txt").read_text()


@pytest.fixture(scope="module")
def server():
    """A process that has imported what a session needs, and forks into one."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        yield started
        started.stdin.close()


@pytest.fixture
def start(server, tmp_path):
    """Start a session of these models in the test's folder."""
    (tmp_path / "known_encoders.py").write_text(MODULE)

    def call(*models, **environment):
        named = ",".join(f"known_encoders:{model}" for model in models)
        arguments = [NATURAL, "-k", "caption_finds", "--model", named, "--results", "r", "--device", "cpu"]
        arguments += ["-p", "known_encoders", "-p", "no:cacheprovider"]
        server.stdin.write(json.dumps([str(tmp_path), arguments, environment]) + "\n")
        server.stdin.flush()
        return Started(server, tmp_path)

    return call


def models_of(run):
    return {result.model.name.removeprefix("known_encoders:") for result in run.results}


@pytest.mark.fault("a session that is ended")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT"])
def test_a_signal_ends_a_session_with_its_run_and_its_summary(start, tmp_path, name):
    session = start("Model0", "Signalled", "Model1", SIGNAL=name)
    output = session.end()
    assert session.returncode == pytest.ExitCode.INTERRUPTED, output
    assert models_of(read_run(tmp_path / "r/run.json")) == {"Model0"}
    assert "ended before" in (tmp_path / "r/summary.md").read_text()
    assert "PASS" not in output.partition("= clipbench =")[2]
    assert len(unfinished(tmp_path / "r")) == 1  # what --resume continues
    assert "the same command with --resume continues this session" in output


@pytest.mark.fault("a session that is ended")
def test_a_signal_while_a_factory_works_is_no_failure_of_that(start, tmp_path):
    session = start("Model0", "Building", "Model1", SIGNAL="SIGHUP")
    output = session.end()
    assert session.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "the factory failed" not in output
    assert models_of(read_run(tmp_path / "r/run.json")) == {"Model0"}


@pytest.mark.fault("a session that is ended")
def test_an_encoder_that_catches_a_signal_ends_the_session_one_test_later(start, tmp_path):
    session = start("Deaf", "Model0")
    output = session.end()
    assert session.returncode == pytest.ExitCode.INTERRUPTED, output
    assert models_of(read_run(tmp_path / "r/run.json")) == {"Deaf"}


@pytest.mark.fault("a session that is ended")
def test_what_a_killed_session_measured_is_reported_from_its_parts(start, tmp_path, capsys):
    session = start("Model0", "Signalled", "Model1", SIGNAL="SIGKILL")
    session.end()
    assert session.returncode == -signal.SIGKILL
    assert not (tmp_path / "r/run.json").exists()
    assert main(["report", str(tmp_path / "r")]) == 0
    run = read_run(tmp_path / "r/run.json")
    assert models_of(run) == {"Model0"}
    assert {skip.key.model for skip in run.skipped} == {"known_encoders:Signalled", "known_encoders:Model1"}
    assert [v.outcome for r in run.results for v in r.verdicts] == ["pass", "pass"]  # the contract
    assert [trace["model"]["name"] for trace in run.traces] == ["known_encoders:Model0"]
    assert "the session was killed" in (tmp_path / "r/summary.md").read_text()


@pytest.mark.fault("a session that is ended")
def test_a_damaged_part_is_named(start, tmp_path, capsys):
    session = start("Model0", "Signalled", SIGNAL="SIGKILL")
    session.end()
    (part,) = [p for p in tmp_path.glob("r/parts/*/*.json") if p.name != "session.json"]
    part.write_bytes(part.read_bytes()[:-9])
    assert main(["report", str(tmp_path / "r")]) == 2
    assert part.name in capsys.readouterr().err


@pytest.mark.fault("two sessions at once")
def test_a_second_session_on_a_folder_in_use_is_a_usage_error(run, pytester):
    with held(pytester.path / "results"):
        result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "is in use by another session" in result.stderr.str() + result.stdout.str()
    assert run().ret == pytest.ExitCode.OK


@pytest.mark.fault("two sessions at once")
def test_a_folder_is_free_again_after_whatever_ended_its_session(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path):
        raise ZeroDivisionError
    with held(tmp_path), pytest.raises(UsageError, match="in use"), held(tmp_path):
        pass


def test_the_guide_has_the_table_of_states_that_the_code_has():
    table = clipbench.parts.__doc__.partition("\n\n")[2].rpartition("\n\n")[0]
    assert table.startswith("| state")
    assert table in (Path(clipbench.parts.__file__).parent / "docs/results.md").read_text()


def test_a_report_of_a_folder_without_a_run_or_of_a_file_without_a_folder_to_write_into_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    run = Run({"machine": {}, "software": {}}, id="a", time="2026-01-01T00:00:00+00:00")
    (tmp_path / "run.json").write_text(dump_json({"clipbench": run_to_json(run)}))
    assert main(["report", str(tmp_path / "run.json")]) == 2
    assert "give a folder with -o DIR" in capsys.readouterr().err


@pytest.mark.fault("a session that is ended")
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_session_killed_at_a_random_moment_loses_nothing_that_was_finished(start, tmp_path, seed):
    chosen = random.Random(seed)
    name = chosen.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT"])
    session, finished = start(*MODELS), tmp_path / "finished.txt"
    until = time.monotonic() + 60
    while not finished.exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(chosen.uniform(0, 2))
    with suppress(ProcessLookupError):  # it has come to its end
        os.kill(session.pid, getattr(signal, name))
    output = session.end()
    done = {*finished.read_text().split()}
    found, from_parts = latest_run(tmp_path / "r")
    assert done <= models_of(found), output
    assert {*models_of(found), *(skip.key.model.partition(":")[2] for skip in found.skipped)} == {*MODELS}, output
    assert from_parts == (session.returncode == -signal.SIGKILL and not (tmp_path / "r/run.json").exists())
    assert (session.returncode == 0) <= (done == {*MODELS}), output
    for path in tmp_path.glob("r/**/*.json"):
        json.loads(path.read_text())
