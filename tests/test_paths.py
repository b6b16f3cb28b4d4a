"""Files of installed packages, and TOML rows that are read strictly."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from clipbench.errors import DataError
from clipbench.paths import installed_file, strict_row


@dataclass(frozen=True)
class Row:
    name: str
    names: tuple[str, ...] = ("a",)
    share: float = 0.5
    n: int = 1
    is_open: bool = False
    pins: Mapping[str, str] | None = None


def read(text):
    return strict_row("rows.toml, row 1", tomllib.loads(text), Row)


def test_a_row_takes_its_keys_and_the_defaults_of_those_it_lacks():
    assert read('name = "x"\nnames = ["b", "c"]\nshare = 1\nis_open = true') == Row("x", ("b", "c"), 1, is_open=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the key 'name' is missing; expected name, names, share"),
        ('name = "x"\nshaer = 1', "unknown key 'shaer'; did you mean share"),
        ('"" = 1', "unknown key ''; did you mean name, names, share"),
        ('name = " "', "name = ' '; expected a text that is not empty"),
        ('name = "x"\nnames = "a"', "names = 'a'; expected a list of texts"),
        ('name = "x"\nshare = nan', "share = nan; expected a finite number"),
        ('name = "x"\nshare = true', "share = True; expected a finite number"),
        ('name = "x"\nn = 1.0', "n = 1.0; expected a whole number"),
        ('name = "x"\nis_open = 1', "is_open = 1; expected true or false"),
    ],
)
def test_a_wrong_row_is_refused_with_the_key_and_what_was_expected(text, message):
    with pytest.raises(DataError) as caught:
        read(text)
    assert str(caught.value).startswith(f"rows.toml, row 1: {message}")


def test_an_installed_modules_file_is_found_without_importing_it_and_in_whichever_of_its_folders_it_is(
    tmp_path, monkeypatch
):
    for number in (1, 2):
        (tmp_path / f"site{number}/shared_space").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path / f"site{number}")
    (tmp_path / "site1/shared_space/a.txt").write_text("a")
    assert installed_file("shared_space", "a.txt") == tmp_path / "site1/shared_space/a.txt"
    assert installed_file("shared_space", "absent.txt") == tmp_path / "site2/shared_space/absent.txt"
    assert installed_file("no_such_module", "a.txt") is None
