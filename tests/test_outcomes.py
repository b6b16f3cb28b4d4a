"""The exit status of a session: what was asked for and did not pass is red, by whatever an encoder, a plugin or a test leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ENCODERS, NATURAL

LEAVING = {
    "skips as unittest does": "import unittest; raise unittest.SkipTest('not today')",
    "skips": "import pytest; pytest.skip('not today')",
    "is expected to fail": "import pytest; pytest.xfail('known')",
    "ends the session well": "import pytest; pytest.exit('bye', returncode=0)",
    "ends Python": "raise SystemExit(0)",
    "is interrupted": "raise KeyboardInterrupt",
    "raises what nobody catches": "raise BaseException('odd')",
    "is a generator that ends": "raise GeneratorExit",
    "raises": "raise StopIteration",
    "says that it fails": "import pytest; pytest.fail('no')",
    "needs more memory": "raise MemoryError",
}


def encoder(statement):
    """A module whose encoder executes this statement in place of the first image."""
    return ENCODERS + f"\nclass Leaving(Oracle):\n    def encode_images(self, images):\n        {statement}\n"


@pytest.mark.fault("an encoder or plugin that leaves")
@pytest.mark.parametrize("statement", LEAVING.values(), ids=LEAVING)
def test_whatever_leaves_an_encoder_no_session_is_green_and_its_run_is_written(run, pytester, statement):
    pytester.makepyfile(known_encoders=encoder(statement))
    result = run(model="known_encoders:Leaving", no_reraise_ctrlc=True)
    assert result.ret not in (0, pytest.ExitCode.INTERNAL_ERROR), result.stdout.str()
    entry = json.loads((pytester.path / "results/run.json").read_text())["clipbench"]
    assert entry["results"] == []
    assert entry["skipped"]
    assert "PASS" not in (pytester.path / "results/summary.md").read_text()


@pytest.mark.fault("an encoder or plugin that leaves")
def test_a_process_that_is_left_in_the_middle_has_not_passed(tmp_path):
    (tmp_path / "known_encoders.py").write_text(encoder("import os; os._exit(0)"))
    command = [sys.executable, "-m", "pytest", NATURAL, "--model", "known_encoders:Leaving", "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=120
    )
    assert done.returncode == 1


OTHERS = {
    "skips every test": "import pytest\n@pytest.fixture(autouse=True)\ndef no(): pytest.skip('flaky runner')",
    "expects every test to fail": """
        import pytest
        def pytest_collection_modifyitems(items):
            for item in items: item.add_marker(pytest.mark.xfail(run=False, reason="known"))
        """,
    "marks every test as skipped": """
        import pytest
        def pytest_collection_modifyitems(items):
            for item in items: item.add_marker(pytest.mark.skip(reason="not today"))
        """,
    "reports every failure as a skip": """
        import pytest
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            report.outcome, report.longrepr = "skipped", (__file__, 1, "rerun")
            return report
        """,
}  # fmt: skip


@pytest.mark.fault("an encoder or plugin that leaves")
@pytest.mark.parametrize("plugin", OTHERS.values(), ids=OTHERS)
def test_under_require_all_another_plugin_s_skip_is_no_pass(run, pytester, plugin):
    pytester.makepyfile(other_plugin=plugin)
    model = "known_encoders:Raising" if "makereport" in plugin else "known_encoders:Oracle"
    result = run("--require-all", "-p", "other_plugin", model=model)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["FAIL: *"])


@pytest.mark.fault("an encoder or plugin that leaves")
def test_a_session_that_ends_before_its_benchmarks_begin_is_red(run, pytester):
    pytester.makepyfile(test_before="import pytest\ndef test_it(): pytest.exit('bye', returncode=0)")
    result = run(NATURAL, files="test_before.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_what_was_not_asked_for_is_not_missed(run):
    assert run("--require-all", "-k", "caption_finds").ret == pytest.ExitCode.OK
