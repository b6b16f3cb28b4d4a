"""How the built `lite` is kept: found again, mended when damaged, moved or half written, shared by processes."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipbench.errors import WeightsUnavailableError
from clipbench.models import lite
from clipbench.models.lite import WEIGHTS_FILE, lite_directory
from clipbench.paths import user_cache

FAKE = {WEIGHTS_FILE: b"weights" * 1000, "config.json": b"{}", "vocab.txt": b"a\nb\n"}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the build by a tiny one; the list grows by one with each."""
    made: list[str] = []

    def build_files() -> dict[str, bytes]:
        made.append("built")
        return dict(FAKE)

    monkeypatch.setattr(lite, "build_files", build_files)
    monkeypatch.setattr(lite, "PINS", {name: hashlib.sha256(content).hexdigest() for name, content in FAKE.items()})
    monkeypatch.setattr(lite, "require_packages", lambda: None)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FAKE}


def test_a_second_call_builds_nothing(tmp_path: Path, builds: list[str]) -> None:
    assert lite_directory(tmp_path) == lite_directory(tmp_path)
    assert builds == ["built"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut short": lambda folder: truncate(folder / WEIGHTS_FILE),
    "weights edited": lambda folder: flip(folder / WEIGHTS_FILE),
    "weights gone": lambda folder: (folder / WEIGHTS_FILE).unlink(),
    "tokenizer edited": lambda folder: flip(folder / "vocab.txt"),
    "weights exchanged": lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"other weights"),
    "code brought along": lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "a.B"}}'),
}


@pytest.mark.fault("the built model, exchanged")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(damage: str, tmp_path: Path, builds: list[str]) -> None:
    folder = lite_directory(tmp_path)
    DAMAGES[damage](folder)
    assert contents(lite_directory(tmp_path)) == FAKE
    assert len(builds) == 2


@pytest.mark.fault("the built model, exchanged")
def test_a_build_killed_at_any_write_leaves_no_usable_half(
    tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lite.write_atomically
    for survived in range(len(FAKE)):
        written: list[Path] = []

        def die(path: Path, content: str | bytes, left: int = survived, written: list[Path] = written) -> None:
            if len(written) == left:
                raise KeyboardInterrupt
            written.append(path)
            whole(path, content)

        cache = tmp_path / str(survived)
        monkeypatch.setattr(lite, "write_atomically", die)
        with pytest.raises(KeyboardInterrupt):
            lite_directory(cache)
        monkeypatch.setattr(lite, "write_atomically", whole)
        builds.clear()
        assert contents(lite_directory(cache)) == FAKE
        assert builds == ["built"], f"killed after {survived} files"


def test_a_moved_cache_names_its_new_folder(tmp_path: Path, builds: list[str]) -> None:
    lite_directory(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    folder = lite_directory(tmp_path / "new")
    text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text["hf_model_name"] == text["hf_tokenizer_name"] == str(folder)
    assert builds == ["built"]


def test_the_folder_changes_with_the_recipe(tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = lite_directory(tmp_path)
    monkeypatch.setattr("clipbench.models.lite.RIDGE", 2.0)
    assert lite_directory(tmp_path) != before
    assert len(builds) == 2


RACE = """
import hashlib
import sys
from pathlib import Path
from clipbench.models import lite
lite.require_packages = lambda: None
lite.PINS = {
    lite.WEIGHTS_FILE: hashlib.sha256(b"weights" * 100_000).hexdigest(), "config.json": hashlib.sha256(b"{}").hexdigest()
}
lite.build_files = lambda: {lite.WEIGHTS_FILE: b"weights" * 100_000, "config.json": b"{}"}
for turn in range(40):
    folder = lite.lite_directory(Path(sys.argv[1]))
    if turn % 2:
        (folder / lite.WEIGHTS_FILE).write_bytes(b"broken")
folder = lite.lite_directory(Path(sys.argv[1]))
"""


@pytest.mark.fault("the built model, exchanged")
def test_processes_that_build_and_break_the_cache_at_once_leave_a_good_one(tmp_path: Path, builds: list[str]) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    racing = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in racing] == [("", 0)] * 2
    (folder,) = tmp_path.iterdir()
    assert (folder / WEIGHTS_FILE).read_bytes() == b"weights" * 100_000
    assert not list(folder.glob(".*"))
    assert builds == []


@pytest.mark.fault("files that cannot be written")
def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path, builds: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailableError, match="XDG_CACHE_HOME") as caught:
        lite_directory(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    assert builds == ["built"]


@pytest.mark.fault("a user without name or home")
@pytest.mark.usefixtures("homeless")
@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")
def test_without_a_home_folder_the_way_out_is_named(builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(WeightsUnavailableError, match="XDG_CACHE_HOME"):
        lite_directory()
    assert builds == []


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")
def test_the_cache_is_where_xdg_says_and_is_not_made_by_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    assert user_cache() == tmp_path / "here" / "clipbench"
    assert not (tmp_path / "here").exists()


def test_importing_it_does_not_import_torch() -> None:
    program = (
        "import sys, clipbench.models.lite; print(sorted({'torch', 'open_clip', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
