"""What a user may write as a path."""

from pathlib import Path

import pytest

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path


def test_a_path_stays_as_it_is_and_a_tilde_becomes_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of-somebody")
    assert user_path("a/b.h5", "-o") == Path("a/b.h5")
    assert user_path("~/a.h5", "-o") == Path("/home/of-somebody/a.h5")
    assert user_path(Path("~"), "-o") == Path("/home/of-somebody")
    assert user_path("./~a", "-o") == Path("~a")
    assert user_path("x" * 255, "-o") == Path("x" * 255)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a\0b", "NUL"),
        ("\ud800.h5", "cannot stand in the name of a file"),
        ("~nosuchuser/a.h5", "no such user"),
        ("x" * 256, "shorter name"),
        ("é" * 128, "shorter name"),
        ("x/" * 2100, "4095"),
    ],
)
def test_what_cannot_be_a_path_is_refused_with_the_words_of_the_user(written, said):
    with pytest.raises(InputError, match=r"^topology\.path: ") as refused:
        user_path(written, "topology.path")
    assert said in str(refused.value)


def test_without_a_home_folder_a_tilde_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(InputError, match="set the environment variable HOME"):
        user_path("~/a.h5", "-o")
    assert user_path("a.h5", "-o") == Path("a.h5")
