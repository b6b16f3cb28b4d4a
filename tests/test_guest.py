"""An installed clipbench in other people's test sessions, and one checkout beside another."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST = """
def pytest_addoption(parser):
    for name in ("--model", "--device", "--dataset", "--limit", "--resume", "--results", "--baseline", "--cache", "--only"):
        parser.addoption(name, default="the host's")
"""


@pytest.fixture
def session(tmp_path):
    """Run pytest by itself in an empty folder, with this clipbench loaded as its entry point would; return the process."""

    def call(*arguments, plugins=("-p", "clipbench.pytest_plugin"), folder=tmp_path, path=ROOT, **variables):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugins, *arguments]
        environment = {**inherited, "PYTHONPATH": str(path), **variables}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)

    return call


@pytest.fixture
def checkout(tmp_path):
    """A second checkout."""
    for name in ("clipbench", "benchmarks", "fixtures"):
        shutil.copytree(ROOT / name, tmp_path / "second" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "conftest.py", tmp_path / "second")
    return tmp_path / "second"


def test_a_repository_keeps_its_own_option_names_and_its_own_subject(session, tmp_path):
    (tmp_path / "conftest.py").write_text(HOST)
    (tmp_path / "test_own.py").write_text(
        "import pytest\n"
        "@pytest.fixture(params=[1, 2])\n"
        "def subject(request): return request.param\n"
        "def test_option(request): assert request.config.getoption('--device') == 'mine'\n"
        "def test_subject(subject): assert subject in (1, 2)\n"
    )
    done = session("--device", "mine", "--model", "own")
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_a_session_of_others_does_not_pay_for_what_the_benchmarks_import(session, tmp_path):
    (tmp_path / "test_own.py").write_text(
        "import sys\n"
        "def test_modules(): assert not {'numpy', 'torch', 'PIL', 'jsonschema', 'clipbench.session'} & sys.modules.keys()\n"
    )
    done = session(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_only_a_session_that_names_the_benchmarks_has_the_options(session):
    assert "clipbench: CLIP benchmarks" not in session("--help").stdout
    for named in ([str(ROOT / "benchmarks")], [str(ROOT)], ["--pyargs", "clipbench.benchmarks.test_natural"]):
        assert "clipbench: CLIP benchmarks" in session(*named, "--help").stdout
    done = session("--model", "lite")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "unrecognized arguments: --model" in done.stderr


def test_the_tests_of_this_checkout_have_no_benchmark_options(session):
    assert "clipbench: CLIP benchmarks" not in session("--help", folder=ROOT).stdout


@pytest.mark.parametrize(
    "module", ["clipbench.benchmarks", "clipbench.benchmarks.test_natural::test_every_caption_finds_its_own_image"]
)
def test_the_benchmarks_are_found_by_name_beside_the_package_too(session, module):
    done = session("--pyargs", module, "--collect-only", "-q")
    assert "test_every_caption_finds_its_own_image[lite]" in done.stdout, done.stdout + done.stderr


def test_the_benchmarks_run_by_name_in_a_repository_whose_own_options_have_the_same_names(session, tmp_path):
    (tmp_path / "conftest.py").write_text(HOST)
    done = session("--pyargs", "clipbench.benchmarks", "--collect-only", "--model", "ViT-B/16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clipbench model: ViT-B/16" in done.stdout


def test_an_option_that_somebody_else_defined_in_the_same_session_is_a_usage_error_by_name(session, tmp_path):
    (tmp_path / "conftest.py").write_text(HOST)
    done = session(".", str(ROOT / "benchmarks"))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--model" in done.stderr
    assert "--noconftest" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_benchmarks_of_another_checkout_say_which_clipbench_they_met(session, checkout):
    program = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, "benchmarks", "--model", "lite", "-p", "clipbench.pytest_plugin"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    for words in (
        f"{checkout / 'benchmarks'} belongs to another clipbench",
        str(ROOT / "clipbench"),
        "python -m pytest",
    ):
        assert words in done.stderr


def test_a_checkout_that_is_not_installed_runs_its_own_benchmarks(session, checkout):
    plugins = ("-p", "pytest_benchmark.plugin")
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    arguments = ("benchmarks/test_natural.py", "--collect-only", "--model", "ViT-B/16")
    done = session(*arguments, plugins=plugins, folder=checkout, path=checkout, **alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clipbench model: ViT-B/16" in done.stdout
