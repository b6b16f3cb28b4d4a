"""`clipbench run`, `check` and `init`, in somebody else's repository."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from planted import paint

from clipbench.cli import main
from clipbench.project import workflow
from clipbench.settings import read_settings

ROOT = Path(__file__).resolve().parents[1]
HOST = """
def pytest_addoption(parser):
    for name in ("--model", "--device", "--dataset", "--limit", "--resume"):
        parser.addoption(name, default="the host's")

def pytest_collection_modifyitems(items):
    raise RuntimeError("the host's conftest was loaded")
"""
SHOP = 'model = "planted_model:Model"\ndevice = "cpu"\n[zero-shot]\nshop = "data/shop"\n'


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A repository with an encoder, nine pictures, a conftest and pytest settings that nobody else could live with."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "conftest.py").write_text(HOST)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "planted_model.py").write_text("from planted import PlantedEncoder as Model\n")
    for number in range(9):
        paint(tmp_path / "data" / "shop" / f"class_{number % 3}" / f"{number}.png", [number])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("planted_model", None)


def clipbench(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "clipbench", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_run_is_the_front_door_with_the_hosts_conftest_and_settings_left_out(host):
    (host / "clipbench.toml").write_text(SHOP)
    done = clipbench("run", "-k", "zero_shot", "-p", "no:cacheprovider", "--junitxml", "junit.xml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"clipbench settings: {host / 'clipbench.toml'}" in done.stdout
    assert "zero_shot of planted_model:Model on shop" in done.stdout
    assert {"results", "junit.xml"} <= {path.name for path in host.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model", "no_such", "--collect-only"], 4),
        (["--no-such-option"], 4),
        (["-k", "no_such_test"], 5),
        (["--collect-only", "-q", "--model", "ViT-B/16"], 0),
    ],
)
def test_the_exit_codes_of_run_are_pytests(host, arguments, code):
    assert clipbench("run", *arguments).returncode == code


@pytest.mark.parametrize("command", ["run", "check"])
def test_help_shows_the_options_and_examples(command, capsys):
    with suppress(SystemExit):
        assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for words in ("--model NAME", "--zero-shot NAME=ROOT", "examples:", "clipbench run --baseline ci/base.json"):
        assert words in text


def test_check_takes_two_pictures_through_everything_and_says_what_is_next(host, capsys):
    (host / "clipbench.toml").write_text('baseline = "ci/{device}.json"\n' + SHOP)
    assert main(["check"]) == 0
    text = capsys.readouterr().out
    for words in (
        "clipbench.toml",
        "shop (zero_shot): 9 pictures, 3 classes",
        "model     planted_model:Model: dim",
        "ci/cpu.json is not there yet",
    ):
        assert words in text
    assert not (host / "results").exists()


BROKEN = """
from planted import PlantedEncoder
import numpy as np
class Nan(PlantedEncoder):
    def encode_images(self, images): return np.full((len(images), 8), np.nan)
class Wide(PlantedEncoder):
    def encode_texts(self, texts): return np.ones((len(texts), 3))
class Raising(PlantedEncoder):
    def encode_texts(self, texts): raise ArithmeticError("no row today")
def factory(): raise RuntimeError("no weights in this branch")
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SHOP.replace("planted_model:Model", "broken:Nan"), "model broken:Nan: broken:Nan: encode_images returned NaN"),
        (SHOP.replace("planted_model:Model", "broken:Wide"), "texts 3; a dual encoder gives both the same dim"),
        (SHOP.replace("planted_model:Model", "broken:Raising"), "ArithmeticError: no row today"),
        (SHOP.replace("planted_model:Model", "broken:factory"), "RuntimeError: no weights in this branch"),
        (SHOP + "[prompts]\nshopp = ['a {}']\n", "prompts of shopp: there is no such data set here (shop)"),
        (
            SHOP + "[[floor]]\nexperiment = 'zero_shot'\ndataset = 'shopp'\nmetrics = ['acc1']\nat_least = 0.5\n",
            "floor of zero_shot on shopp: there is no such data set here",
        ),
        ("baseline = 'conftest.py'\n" + SHOP, "problem   baseline: "),
    ],
)
def test_check_names_each_problem(host, capsys, text, words):
    (host / "broken.py").write_text(BROKEN)
    (host / "clipbench.toml").write_text(text)
    assert main(["check"]) == 1
    assert words in capsys.readouterr().out
    sys.modules.pop("broken", None)


@pytest.mark.fault("options that cannot be meant")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle = 'lite'", "did you mean model"),
        (SHOP.replace("data/shop", "data"), "no class folder of 1"),
        (SHOP.replace("zero-shot", "dataset").replace("data/shop", "acme"), "--dataset shop="),
    ],
)
def test_check_refuses_what_cannot_be_meant(host, capsys, text, words):
    (host / "clipbench.toml").write_text(text)
    assert main(["check"]) == 2
    assert words in capsys.readouterr().err


def test_one_s_own_data_alone_make_a_first_baseline_and_hold_another_factory_to_it(host):
    (host / "planted_other.py").write_text("from planted import PlantedEncoder as Model\n")
    settings = f'require-all = true\nbaseline = "base.json"\nexperiments = ["zero_shot"]\n{SHOP.replace("zero-shot", "dataset")}'
    (host / "clipbench.toml").write_text(settings)
    assert clipbench("run", "--update-baseline", "--reason", "first").returncode == 0
    done = clipbench("run", "--model", "planted_other:Model")
    assert done.returncode == 0, done.stdout
    assert "PASS: " in done.stdout


def test_check_finds_data_whatever_option_gives_it(host, capsys):
    (host / "clipbench.toml").write_text(SHOP.replace("zero-shot", "dataset"))
    assert main(["check"]) == 0
    assert "data      shop (zero_shot): " in capsys.readouterr().out


def test_init_writes_settings_and_a_workflow_that_fit_the_repository_and_replaces_nothing(host, capsys):
    (host / "acme").mkdir()
    (host / "acme" / "clip.py").write_text(
        "class Other:\n    def encode_images(self, images): ...\n\n\nclass Clip:\n"
        "    def encode_images(self, images): ...\n    def encode_texts(self, texts): ...\n"
    )
    (host / "pyproject.toml").write_text("[project]\nname = 'acme'\n")
    assert main(["init"]) == 0
    assert 'model = ["acme.clip:Clip"]' in (host / "clipbench.toml").read_text()
    written = (host / ".github/workflows/clipbench.yml").read_text()
    assert "pip install -e . 'clipbench[demo]'" in written
    assert "requirements.txt" not in written
    assert main(["init"]) == 2
    assert "clipbench.toml is there already" in capsys.readouterr().err


def test_what_init_comments_out_can_be_taken_in(host):
    assert main(["init", "--ci", "none"]) == 0
    text = (host / "clipbench.toml").read_text()
    taken = re.sub(r"^# (?=[\[a-z])", "", text, flags=re.MULTILINE)
    (host / "taken.toml").write_text(taken.partition("\n")[2])
    from clipbench.options import declared_options

    found = read_settings(host / "taken.toml", declared_options())
    assert (found.floors[0].at_least, found.prompts.keys(), found.tolerances) == (0.85, {"shop"}, {"acc1": 0.02})
    assert not (host / ".github").exists()


def test_gitlab_gets_its_own(host):
    (host / ".gitlab-ci.yml").write_text("")
    assert main(["init"]) == 0
    assert "junit: results/junit.xml" in (host / "clipbench.gitlab-ci.yml").read_text()


# What the guide shows.

ACTION = ROOT / ".github/actions/clipbench"


def test_workflows_of_the_guide_are_pinned_and_may_do_the_least(tmp_path):
    yaml = pytest.importorskip("yaml", reason="reads the workflows")
    pins = set(re.findall(r"uses: (actions/.*)", (ROOT / ".github/workflows/ci.yml").read_text()))
    for name in ("github", "github gpu", "gitlab"):
        text = workflow(name, tmp_path)
        found = yaml.safe_load(text)
        assert set(re.findall(r"uses: (.*)", text)) <= pins
        if name != "gitlab":
            assert found["permissions"]["contents"] == "read"
            assert found[True]["schedule"]  # YAML's "on"
            assert text.count("actions/checkout@") == text.count("persist-credentials: false")
            assert "pull_request_target" not in text
    action = yaml.safe_load((ACTION / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    assert set(re.findall(r"uses: (.*)", (ACTION / "action.yml").read_text())) <= pins


GH = """#!/bin/sh
case "$*" in
  *--method*) if [ -n "$READ_ONLY" ]; then echo "HTTP 403" >&2; exit 1; fi; echo "$@" >> "$CALLS";;
  *) [ -e "$CALLS" ] && echo 77;;
esac
exit 0
"""


@pytest.fixture
def comment(tmp_path):
    """The comment script of the action and of the guide's workflow, with a `gh` that notes what it is asked."""
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "report.md").write_text("## PASS\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/summary.md").write_text("the summary\n")
    (tmp_path / "clipbench").write_text("#!/bin/sh\necho '## PASS'\n")
    (tmp_path / "clipbench").chmod(0o755)
    yaml = pytest.importorskip("yaml", reason="reads the workflow")
    steps = yaml.safe_load(workflow("github", tmp_path))["jobs"]["gate"]["steps"]
    scripts = {
        "action": ["bash", str(ACTION / "comment.sh"), "report.md", "5"],
        "guide": ["bash", "-e", "-c", next(step["run"] for step in steps if step.get("name") == "Report")],
    }

    def call(which, **more):
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "GITHUB_REPOSITORY": "o/r",
            "CALLS": str(tmp_path / "calls"),
        }
        environment |= {"GITHUB_STEP_SUMMARY": str(tmp_path / "step.md"), "NUMBER": "5", **more}
        return subprocess.run(scripts[which], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)

    return call


@pytest.mark.skipif(not shutil.which("bash"), reason="a shell script")
@pytest.mark.parametrize("which", ["action", "guide"])
def test_a_comment_is_made_once_and_then_updated_and_falls_back_to_the_summary(comment, tmp_path, which):
    for expected in ("POST repos/o/r/issues/5/comments", "PATCH repos/o/r/issues/comments/77"):
        done = comment(which)
        assert done.returncode == 0, done.stderr
        assert expected in (tmp_path / "calls").read_text().splitlines()[-1]
    step = tmp_path / "step.md"
    step.unlink(missing_ok=True)
    assert comment(which, READ_ONLY="1").returncode == 0
    assert "## PASS" in step.read_text()
