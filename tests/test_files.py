"""Files are written whole or not at all."""

import json
import os
import threading
from pathlib import Path

import pytest

from deformable_detr.files import atomic_file, atomic_folder, check_place, short_stem, write_json, write_text


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "deep" / "report.png"
    with atomic_file(path) as partial:
        assert partial.suffix == ".png" and partial.parent == path.parent
        partial.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_record_without_a_form_in_json(tmp_path):
    path = write_json(tmp_path / "a.json", {"ü": [1, 2]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": [1, 2]}


def test_a_link_keeps_pointing_where_it_does(tmp_path):
    target = write_text(tmp_path / "store" / "a.txt", "old")
    link = tmp_path / "a.txt"
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    path = write_text(tmp_path / "a.txt", "x")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_pipe_stays_one(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    with atomic_file(pipe) as partial:  # as safetensors writes: a new file in place of the old one
        write_text(partial.with_name("new"), "through").replace(partial)
    reader.join(10)
    assert got == ["through"] and pipe.is_fifo()


def test_folders(tmp_path):
    path = tmp_path / "data"
    with atomic_folder(path) as partial:
        write_text(partial / "a.txt", "x")
        assert not path.exists()
    assert [item.name for item in path.iterdir()] == ["a.txt"]
    with pytest.raises(OSError), atomic_folder(path) as partial:
        write_text(partial / "b.txt", "x")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "other"):
        raise RuntimeError
    assert [item.name for item in tmp_path.iterdir()] == ["data"]


def test_an_empty_folder_stays_what_it_is(tmp_path):
    """It may be a mounted one, or lie where nothing else can be written."""
    path = tmp_path / "data"
    path.mkdir(mode=0o711)
    before = path.stat()
    with atomic_folder(path) as partial:
        (partial / "deep").mkdir()
        write_text(partial / "deep" / "a.txt", "x")
        assert list(tmp_path.iterdir()) == [path]
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
    assert [item.relative_to(path).as_posix() for item in path.rglob("*")] == ["deep", "deep/a.txt"]


def test_new_files_go_into_the_folders_that_are_there(tmp_path):
    path = tmp_path / "data"
    for deep, other in (("first", "b"), ("second", "c")):
        with atomic_folder(path, merge=True) as partial:
            (partial / "deep").mkdir()
            write_text(partial / "deep" / "a.txt", deep)
            write_text(partial / "deep" / other, "x")
    content = {item.relative_to(path).as_posix(): item.read_text() for item in path.rglob("*") if item.is_file()}
    assert content == {"deep/a.txt": "second", "deep/b": "x", "deep/c": "x"}


def test_places_where_nothing_can_be_written_are_noticed(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "new" / "folder", tmp_path, tmp_path / "file", Path("/dev/null")):
        check_place(place)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    with pytest.raises(NotADirectoryError, match=r"cannot be written here.*file/a.txt"):
        check_place(tmp_path / "file" / "a.txt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_place(tmp_path, folder=False)


def test_names_as_long_as_file_systems_take_them(tmp_path):
    names = ["ä" * 125 + ".json", "ä" * 124 + "b.json"]  # 255 bytes each
    with atomic_file(tmp_path / names[0]) as first, atomic_file(tmp_path / names[1]) as second:
        first.write_text("1")
        second.write_text("2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {names[0]: "1", names[1]: "2"}


def test_names_that_leave_room_for_more():
    assert short_stem("a/b.c.jpg") == "b.c"
    for character in "aäあ🙂\udcff":
        stem = short_stem(80 * character + ".jpg")
        assert stem == len(stem) * character
        assert 147 <= len(os.fsencode(stem)) <= 150 or len(stem) == 80


def test_what_utf8_cannot_hold_is_escaped(tmp_path):
    assert write_text(tmp_path / "a.txt", "ä \udce9 🙂").read_text(encoding="utf-8") == "ä \\udce9 🙂"
    content = {"g\udce9": ["ä\udcff", "\\udce9"]}
    assert json.loads(write_json(tmp_path / "a.json", content).read_text(encoding="utf-8")) == content
