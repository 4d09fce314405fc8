"""Nothing that is shown may cost finished work: encodings, markup in names, closed pipes, files that cannot be written."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from deformable_detr.cli.screen import Finish, prepare_streams, progress, show
from deformable_detr.evaluation.metrics import ClassMetrics, Metrics
from deformable_detr.files import write_json

NAMES = ["pill [/red]", "[bold]pill", "[/]", ":dog:", "猫", "a → b"]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", NAMES),
        ("cp1252", [*NAMES[:4], "\\u732b", "a -> b"]),
        ("ascii", [*NAMES[:4], "\\u732b", "a -> b"]),
    ],
)
def test_any_name_on_any_stream(encoding: str, shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    prepare_streams()
    table = Table("class")
    for name in NAMES:
        table.add_row(name)
    show(*NAMES, table)
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    for name in shown:
        assert text.count(name) == 2, name


def test_a_bar_asks_for_nothing_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """There rich would say that another package is needed for it, which is an error here."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with progress("reading") as bar:
        bar.advance(bar.add_task("", total=2))


def test_a_file_name_in_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"stra\xdfe.jpg")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    prepare_streams()
    show(name)
    sys.stdout.flush()
    assert raw.getvalue() == b"stra\xdfe.jpg\n"
    assert json.loads(write_json(tmp_path / "x.json", {"file_name": name}).read_text()) == {"file_name": name}


def test_a_program_without_a_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    prepare_streams()
    with sys.stdout:
        show("nobody sees this")


def test_the_table_of_metrics_in_anybodys_console() -> None:
    classes = tuple(ClassMetrics(name, 0.5, 0.5, 1) for name in NAMES)
    metrics = Metrics(*[0.5] * 12, per_class=classes, num_images=1)
    console = Console(file=io.StringIO(), width=100)
    console.print(metrics.table())
    assert all(name in console.file.getvalue() for name in NAMES)  # type: ignore[attr-defined]


def test_what_cannot_be_written_keeps_nothing_else_from_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=str(tmp_path / "file")), Finish() as finish:
        finish.show("AP 0.5")
        finish.write(tmp_path / "file" / "a.json", lambda path: write_json(path, 1))
        finish.write(tmp_path / "b.json", lambda path: write_json(path, 2), "the second")
        finish.write(None, lambda path: write_json(path, 3))
    assert (tmp_path / "b.json").read_text() == "2\n"
    assert capsys.readouterr().out == f"AP 0.5\nwritten: {tmp_path / 'b.json'} (the second)\n"


def test_the_first_things_are_written_before_anything_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk behind `> report.txt`."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left"), Finish() as finish:
        finish.show("AP 0.5")
        finish.write(tmp_path / "a.json", lambda path: write_json(path, 1))
    assert (tmp_path / "a.json").is_file()


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """`command | head -1`: the command does all its work and ends well."""
    code = (
        "import sys\nfrom deformable_detr.cli.screen import show\n"
        "for _ in range(3000): show('line ' * 20)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()\nsys.stdout.flush()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0, process.stderr
    assert (tmp_path / "done").exists()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
