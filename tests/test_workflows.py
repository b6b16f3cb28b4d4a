"""What runs in CI is pinned, may do the least, and publishes what was tested."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="workflows are in a checkout only")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_with_the_version_beside_it(path):
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    assert [line for line in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more_unless_a_job_says_why(path):
    text = path.read_text()
    assert re.search(r"^permissions:( \{\}|\n  contents: read)$", text, re.MULTILINE)
    written = re.findall(r"^ +[\w-]+: write", text, re.MULTILINE)
    assert not written or path.name == "release.yml"
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert "secrets." not in text
    assert "pull_request_target" not in text


def test_one_pin_an_action():
    pins = {line for path in WORKFLOWS for line in re.findall(r"uses: (.*)", path.read_text())}
    assert len({pin.partition("@")[0] for pin in pins}) == len(pins)


def test_a_release_is_built_once_and_what_was_tested_is_published():
    text = (ROOT / ".github/workflows/release.yml").read_text()
    assert text.count("python -m build") == 1
    assert text.count("sha256sum --check --strict SHA256SUMS") == 2
    assert "needs: build" in text
    assert "needs: test" in text
    assert "password" not in text
