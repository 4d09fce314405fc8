import pytest

from deformable_detr.cli.compare import COMMAND, CompareOptions, dataset_of, names_of


def test_options():
    options = COMMAND.parse(["runs/a", "runs/b", "my_data", "--split", "test"])
    assert options == CompareOptions(weights="runs/a", second="runs/b", dataset="my_data", split="test")
    assert COMMAND.parse(["runs/a", "runs/b"]).dataset is None


def test_the_dataset_is_that_of_the_run(tmp_path):
    (tmp_path / "config.yaml").write_text("dataset: somewhere/data\n")
    assert dataset_of(str(tmp_path)) == "somewhere/data"
    with pytest.raises(ValueError, match="give a dataset as the third argument"):
        dataset_of("weights.safetensors")


def test_names_tell_the_detectors_apart():
    assert names_of("runs/a", "runs/b") == ("a", "b")
    assert names_of("x/run", "y/run") == ("x/run", "y/run")
