"""Where derived files go when the usual places cannot be written, as in containers with another user."""

import tempfile
from pathlib import Path

import pytest

from deformable_detr.data.cache import FOLDER, derived_folder, user_cache


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that cannot be made, for it would lie in a file; the folder for temporary files."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_temporary_folder_takes_the_place_of_the_cache(no_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert user_cache().parent == no_cache
    assert "set XDG_CACHE_HOME" in caplog.text


def test_a_dataset_that_is_read_only_too(no_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FOLDER).touch()  # in the way, for anyone
    folder = derived_folder(tmp_path / "data")
    assert folder.is_relative_to(no_cache)
    (folder / "x").touch()


def test_a_user_without_a_home(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert user_cache().parent == no_cache


def test_nowhere_at_all(no_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file" / "temporary"))
    with pytest.raises(OSError, match="set XDG_CACHE_HOME"):
        user_cache()
