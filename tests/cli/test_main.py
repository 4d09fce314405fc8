import subprocess
import sys

import pytest

from deformable_detr.cli import __main__ as cli
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.version import __version__


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_the_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for name, function in cli.COMMANDS.items():
        assert f"  {name} " in text
        assert function.__doc__ in text


def test_without_a_command_the_help_is_shown_and_the_status_is_2(capsys: pytest.CaptureFixture) -> None:
    assert cli.main([]) == 2
    assert "usage: deformable-detr COMMAND" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"deformable-detr {__version__}\n"


@pytest.mark.parametrize(("word", "meant"), [("tran", "did you mean 'train'?"), ("xyz", "known are doctor, train, evaluate")])
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


def command(error: BaseException):
    def run(argv):
        raise error

    return run


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
def test_a_users_mistake_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", command(error))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "error: not so\n"


@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_traceback_is_shown_when_asked_for(by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", command(ValueError("not so")))
    if by == "environment":
        monkeypatch.setenv("DEFORMABLE_DETR_TRACEBACK", "1")
    assert cli.main(["train", "--traceback"] if by == "option" else ["train"]) == 2
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert text.endswith("error: not so\n")


def test_a_defect_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", command(KeyError("oops")))
    with pytest.raises(KeyError):
        cli.main(["train"])


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", command(TrainingInterrupted("the state is saved")))
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "stopped: the state is saved\n"


def test_the_general_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from deformable_detr.cli.__main__ import main; main(['--help']); "
        "sys.exit(','.join(name for name in ('torch', 'numpy', 'rich') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
