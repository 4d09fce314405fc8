import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
from torch._utils import ExceptionWrapper

from deformable_detr.cli import __main__ as cli
from deformable_detr.cli.command import Command
from deformable_detr.cli.evaluate import COMMAND as EVALUATE
from deformable_detr.data.images import ImageError
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.version import __version__


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_the_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for name, summary in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", text, flags=re.MULTILINE)


def test_without_a_command_the_help_is_shown_and_the_status_is_2(capsys: pytest.CaptureFixture) -> None:
    assert cli.main([]) == 2
    assert "usage: deformable-detr COMMAND" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"deformable-detr {__version__}\n"


@pytest.mark.parametrize(("word", "meant"), [("tran", "did you mean 'train'? known are"), ("xyz", "known are doctor, train, ")])
def test_an_unknown_command(word: str, meant: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main([word]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: unknown command {word!r}; {meant}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert not stopped.value.code
    text = capsys.readouterr().out
    assert text.startswith(f"usage: deformable-detr {name}")
    assert len(text.splitlines()) > 10


@dataclass(frozen=True)
class NoOptions:
    """None."""


def raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command `train` do nothing but raise this."""

    def run(options: NoOptions) -> None:
        raise error

    monkeypatch.setattr("deformable_detr.cli.train.COMMAND", Command("train", NoOptions, run, ""))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("not\nso"),
        FileNotFoundError("not so"),
        ConnectionError("not so"),
        ImportError("not so"),
        FloatingPointError("not so"),
    ],
)
def test_a_users_error_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    raises(error, monkeypatch)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "error: not so\n"


@pytest.mark.parametrize("error", [ImageError("a.png: damaged\nValueError: x"), FileNotFoundError("a.png: damaged ValueError: x")])
def test_errors_of_workers_without_their_traceback(error, monkeypatch, capsys) -> None:
    """As PyTorch's DataLoader raises them again in the main process."""
    try:
        raise error from KeyError("cause")
    except (ValueError, OSError):
        passed_on = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error), match="Traceback") as raised:
        passed_on.reraise()
    raises(raised.value, monkeypatch)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "error: a.png: damaged ValueError: x\n"


@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_traceback_is_shown_when_asked_for(by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    raises(ValueError("not so"), monkeypatch)
    if by == "environment":
        monkeypatch.setenv("DEFORMABLE_DETR_TRACEBACK", "1")
    assert cli.main(["train", "--traceback"] if by == "option" else ["train"]) == 2
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert text.endswith("error: not so\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["label", "weights", "images", "--output"],
        ["doctor", "data", "--fix"],
        ["doctor", "data", "--json"],
        ["predict", "weights", "images", "--output"],
        ["predict", "weights", "images", "--no-draw", "--json"],
        ["evaluate", "weights", "data", "--report"],
        ["evaluate", "weights", "data", "--results"],
        ["export", "weights"],
        ["convert", "weights"],
    ],
)
def test_an_output_that_cannot_be_made_is_noticed_before_the_inputs_are_looked_for(arguments, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    assert cli.main([*arguments, str(tmp_path / "file" / "out.onnx")]) == 2
    assert "cannot be written here: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "a.png", "--json", "a.png"], "--json a.png: this file is read"),
        (["explain", "a.png", "--weights", "w.safetensors", "--output", "./sub/../a.png"], "this file is read"),
        (["predict", "w.safetensors", "a.png", "b.png", "--json", "b.png"], "--json b.png: this file is read"),
        (["predict", "w.safetensors", "*.png", "--json", "b.png"], "--json b.png: there is a file that holds no JSON"),
        (["predict", "w.safetensors", "a.png", "--json", "link.json"], "link.json: this file holds annotations"),
        (["evaluate", "w.safetensors", "data", "--json", "w.safetensors"], "--json w.safetensors: this file is read"),
        (["evaluate", "w.safetensors", "data", "--json", "x.json", "--results", "./x.json"], "both write"),
        (["doctor", "truth.json", "--json", "truth.json"], "this file is read"),
    ],
)
def test_outputs_replace_no_inputs_and_not_each_other(arguments, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "w.safetensors"):
        (tmp_path / name).write_bytes(b"\x89 content")
    (tmp_path / "truth.json").write_text('{"images": [], "annotations": [], "categories": []}')
    (tmp_path / "link.json").symlink_to("truth.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "weights", "images", "--output"],
        ["compare", "first", "second", "data", "--output"],
        ["evaluate", "weights", "data", "--report"],
        ["preview", "data", "--recipe", "none", "--output"],
    ],
)
def test_a_file_where_a_folder_is_to_be_is_noticed_before_the_work(arguments, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    assert cli.main([*arguments, str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'}: is a file; name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["evaluate", "no/weights", "data", "--curves"], ["describe", "no.png", "--figure"]])
def test_a_figure_of_another_kind_is_noticed_before_the_work(arguments, tmp_path, capsys) -> None:
    assert cli.main([*arguments, str(tmp_path / "a.gif")]) == 2
    assert "a figure is written as .png, .svg, .pdf, .jpg, .webp, not .gif" in capsys.readouterr().err


def test_what_outputs_may_replace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes.json").write_text('{"images": [], "annotations": [{"score": 0.5}], "categories": []}')
    (tmp_path / "empty.json").touch()
    for name, others in (("boxes.json", []), ("empty.json", []), ("/dev/null", ["--results", "/dev/null"])):
        options = EVALUATE.parse(["w.safetensors", "data", "--json", name, *others])
        EVALUATE.check_places(options)


def test_the_users_folder(tmp_path, monkeypatch) -> None:
    """Bash leaves `--json=~/x` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    options = EVALUATE.parse(["~/run", "./~", "--json=~/x.json"])
    assert (options.weights, options.dataset, options.json) == (f"{tmp_path}/run", "./~", f"{tmp_path}/x.json")


@pytest.mark.parametrize("name", ["examples", "num_queries"])
def test_numbers_of_doctor(name, capsys) -> None:
    assert cli.main(["doctor", "nowhere", f"--{name}", "-1"]) == 2
    assert f"{name} must be at least" in capsys.readouterr().err


def test_a_defect_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    raises(KeyError("oops"), monkeypatch)
    with pytest.raises(KeyError):
        cli.main(["train"])


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    raises(TrainingInterrupted("the state is saved"), monkeypatch)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "stopped: the state is saved\n"


def imported_by(arguments: list[str]) -> set[str]:
    """Modules that take long to import, of those that a call brings in."""
    call = f"from deformable_detr.cli.__main__ import main; main({arguments})"
    if len(arguments) > 1:  # that one would end the process
        call = f"from deformable_detr.cli.commands import find_command; find_command({arguments[0]!r}).parser().format_help()"
    code = f"import sys; {call}; print(*({{'torch', 'numpy', 'rich', 'yaml'}} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_the_general_help_imports_nothing_slow() -> None:
    assert imported_by(["--help"]) == set()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_does_without_torch(name: str) -> None:
    assert imported_by([name, "--help"]) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "weights", "data", "--worst", "3"], "--worst has no effect without --report"),
        (["export", "weights", "detector.onnx", "--calibration-images", "3"], "--calibration-images has no effect without --int8"),
        (["export", "weights", "detector.onnx", "--onnxruntime-web", "file.tgz"], "--onnxruntime-web has no effect without --to"),
        (["describe", "image.jpg", "--weights", "weights", "--preset", "r50"], "--preset is for a model with random weights"),
    ],
)
def test_options_without_the_one_that_they_belong_to(arguments, message, capsys) -> None:
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
