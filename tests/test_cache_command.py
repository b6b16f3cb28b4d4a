"""`clipbench cache` at the command line: what it shows, what it removes, and one line for whatever is wrong."""

import subprocess
import sys

import pytest

from clipbench.cli import main
from clipbench.embed.store import FILE, RowStore


@pytest.fixture
def folder(tmp_path):
    """The folder of a store with two entries."""
    store = RowStore(tmp_path / "cache")
    store.put({bytes(32): b"row", bytes([1] * 32): b"another"})
    store.close()
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch):
    monkeypatch.delenv("CLIPBENCH_CACHE", raising=False)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def refused(capsys):
    error = capsys.readouterr().err
    assert error.startswith("clipbench: error: ")
    assert error.count("\n") == 1
    return error


def test_cache_shows_folder_entries_size_and_use(folder, capsys):
    assert main(["cache", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"folder   {folder}", "entries  2", "size     0.1 MiB"]
    assert lines[3].startswith("used     20")
    assert lines[3].endswith(" UTC")


def test_clear_removes_the_cache_and_says_what_was_freed(folder, capsys):
    (folder / "mine.txt").write_text("kept")
    assert main(["cache", str(folder), "--clear"]) == 0
    assert capsys.readouterr().out == f"cleared {folder}: 0.1 MiB freed\n"
    assert names(folder) == ["mine.txt"]


def test_the_environment_names_the_folder_where_none_is_given(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPBENCH_CACHE", str(folder))
    assert main(["cache"]) == 0
    assert "entries  2" in capsys.readouterr().out
    assert main(["cache", str(tmp_path / "other")]) == 0
    assert "entries" not in capsys.readouterr().out


@pytest.mark.parametrize("setting", [None, ""])
def test_no_folder_at_all_is_exit_code_2(capsys, monkeypatch, setting):
    if setting is not None:
        monkeypatch.setenv("CLIPBENCH_CACHE", setting)
    assert main(["cache", "--clear"]) == 2
    assert "Give its folder (clipbench cache DIR), or set CLIPBENCH_CACHE" in refused(capsys)


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_a_cache_is_said_to_be_one(tmp_path, capsys, made):
    folder = tmp_path / "empty"
    if made:
        folder.mkdir()
    assert main(["cache", str(folder)]) == 0
    assert main(["cache", str(folder), "--clear"]) == 0
    assert capsys.readouterr().out == f"no cache in {folder}\nnothing to clear in {folder}\n"
    assert (list(folder.iterdir()) if made else folder.exists()) in ([], False)


@pytest.mark.fault("a cache that is damaged")
@pytest.mark.parametrize("options", [[], ["--clear"]])
@pytest.mark.parametrize("content", [b"no database\n" * 1_000, b"SQLite format 3\0" + bytes(range(256)) * 100])
def test_a_damaged_file_is_exit_code_2_and_stays(tmp_path, capsys, options, content):
    path = tmp_path / FILE
    path.write_bytes(content)
    assert main(["cache", str(tmp_path), *options]) == 2
    assert f"{path} is damaged (file is not a database); it is left as it is" in refused(capsys)
    assert path.read_bytes() == content


@pytest.mark.parametrize("options", [[], ["--clear"]])
def test_a_file_in_the_folders_place_is_exit_code_2(tmp_path, capsys, options):
    (tmp_path / "file").write_text("mine")
    assert main(["cache", str(tmp_path / "file"), *options]) == 2
    assert "is a file; give the folder of a cache" in refused(capsys)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.fault("a cache that is damaged")
def test_a_cache_behind_a_link_is_cleared_whole(folder, tmp_path, capsys):
    path, kept = folder / FILE, tmp_path / "elsewhere"
    path.rename(kept)
    path.symlink_to(kept)
    size = kept.stat().st_size
    assert main(["cache", str(folder), "--clear"]) == 0
    assert f"{size / (1 << 20):,.1f} MiB freed" in capsys.readouterr().out
    assert not kept.exists()


def test_cache_imports_neither_torch_nor_numpy(folder):
    code = (
        "import sys; from clipbench.cli import main\n"
        f"main(['cache', {str(folder)!r}]); main(['cache', {str(folder)!r}, '--clear'])\n"
        "print([m for m in ('torch', 'open_clip', 'scipy', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
