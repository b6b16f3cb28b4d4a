"""A built wheel, installed by itself and used from an empty folder, as a user of a release would."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel, install it into a folder that lies beside nothing else of the project; return that folder."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("clipbench-*.whl")
    target = folder / "site-packages"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True, timeout=120
    )
    return target, wheel


def use(installed, folder, *command):
    """Run Python in an empty folder with the installed wheel first on its path."""
    environment = {**os.environ, "PYTHONPATH": str(installed[0])}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_carries_benchmarks_fixtures_schema_and_typing(installed):
    names = set(zipfile.ZipFile(installed[1]).namelist())
    for name in (
        "benchmarks/test_natural.py",
        "fixtures/floors.toml",
        "fixtures/natural.toml",
        "run.schema.json",
        "py.typed",
        "models/zoo.toml",
    ):
        assert f"clipbench/{name}" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "fixtures/")) for name in names)


def test_fixtures_and_benchmarks_are_found_inside_the_installed_package(installed, tmp_path):
    code = "from clipbench.paths import benchmarks, fixtures; print(benchmarks()); print(fixtures())"
    done = use(installed, tmp_path, "-c", code)
    inside = installed[0] / "clipbench"
    assert done.stdout.split() == [str(inside / "benchmarks"), str(inside / "fixtures")], done.stderr


def test_the_benchmarks_of_the_wheel_run_from_an_empty_folder(installed, tmp_path):
    arguments = (
        "--pyargs",
        "clipbench.benchmarks",
        "-k",
        "card",
        "--model",
        "RN50",
        "--pretrained",
        "random",
        "--device",
        "cpu",
    )
    done = use(installed, tmp_path, "-m", "pytest", "-p", "clipbench.pytest_plugin", *arguments)
    assert "7 passed" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "results" / "summary.md").exists()


def test_the_console_module_works_from_the_wheel(installed, tmp_path):
    done = use(installed, tmp_path, "-m", "clipbench", "models")
    assert done.returncode == 0, done.stderr
    assert "ViT-L/14@336px" in done.stdout


def test_beside_a_conftest_with_the_same_option_names_the_wheel_leaves_its_tests_alone_and_runs_by_itself(
    installed, tmp_path
):
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n"
        "    for name in ('--model', '--device', '--dataset', '--limit', '--resume'):\n"
        "        parser.addoption(name, default=None)\n"
    )
    (tmp_path / "test_own.py").write_text(
        "def test_own(request): assert request.config.getoption('--model') == 'mine'\n"
    )
    own = use(installed, tmp_path, "-m", "pytest", "-p", "clipbench.pytest_plugin", "--model", "mine", "-q")
    assert "1 passed" in own.stdout, own.stdout + own.stderr
    run = ("run", "-k", "card", "--model", "RN50", "--pretrained", "random", "--device", "cpu")
    done = use(installed, tmp_path, "-m", "clipbench", *run)
    assert "7 passed" in done.stdout, done.stdout + done.stderr
    assert use(installed, tmp_path, "-m", "clipbench", "init").returncode == 0
