"""Saved detectors, model cards, and the hub: with its cache and a stand-in for its server, never the network."""

from dataclasses import replace

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

from deformable_detr.checkpoints import hub, load_pretrained, save_weights
from deformable_detr.checkpoints.convert import convert
from deformable_detr.detector import Detector

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRAINING = {
    "dataset": "bccd",
    "metrics": {"AP": 0.6251, "AP50": 0.912, "per_class": {"cell": 0.5}},
    "recipe": {"lr": 2e-4, "epochs": 50},
    "epoch": 50,
    "weights": None,
}


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """The hub's cache, with the network off."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def put_in_cache(cache, write, repo="models--someone--cells", commit=COMMIT):
    folder = cache / repo / "snapshots" / commit
    folder.mkdir(parents=True)
    write(folder)
    (cache / repo / "refs").mkdir(exist_ok=True)
    (cache / repo / "refs" / "main").write_text(commit)


@pytest.mark.parametrize("name", ["hf://someone/cells", "someone/cells", f"hf://someone/cells@{COMMIT}"])
def test_cached_model_of_ours(name, make_model, offline_cache, assert_same_weights):
    model = make_model("two-stage")
    put_in_cache(offline_cache, lambda folder: hub.save_pretrained(model, folder))
    assert_same_weights(model, load_pretrained(name))
    assert_same_weights(model, load_pretrained("someone/cells", revision=COMMIT))


def test_cached_model_of_transformers(make_model, offline_cache, tmp_path, assert_same_weights):
    model = make_model("refine", thin=False)
    path = save_weights(tmp_path / "a.safetensors", model)
    put_in_cache(offline_cache, lambda folder: convert(path, folder, "huggingface"))
    loaded = load_pretrained("hf://someone/cells")
    assert_same_weights(model, loaded)
    assert loaded.metadata.categories is not None
    assert loaded.metadata.categories.names == model.metadata.categories.names


def test_one_file_of_a_model(make_model, offline_cache):
    put_in_cache(offline_cache, lambda folder: save_weights(folder / "best.safetensors", make_model("one-stage")))
    assert load_pretrained("hf://someone/cells/best.safetensors").metadata.model.num_classes == 5


def test_not_in_the_cache_and_no_network(offline_cache):
    with pytest.raises(ConnectionError, match="hf://someone/other is neither in the hub's cache nor can it be fetched"):
        load_pretrained("hf://someone/other")
    with pytest.raises(FileNotFoundError, match="there is no file or folder someone/other"):
        load_pretrained("someone/other")


def test_a_misspelt_run_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights at runs/other"):
        load_pretrained("runs/other")


@pytest.mark.parametrize("name", ["hf://", "hf://name", "hf://a/b/c.pth"])
def test_impossible_names(name):
    with pytest.raises(ValueError, match="not a name on the hub"):
        load_pretrained(name)


@pytest.mark.parametrize(
    "name", ["runs/best.safetensors", "runs/r50.pth", "runs/a/b", "./runs/first", "/no/where", "runs/first", "models/r50.onnx"]
)
def test_paths_are_not_hub_names(name):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_pretrained(name)


def test_an_existing_folder_goes_before_the_hub(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.save_pretrained(make_model("one-stage"), "someone/cells")
    assert load_pretrained("someone/cells").metadata.model.num_classes == 5


def test_saved_detector_with_card(make_model, tmp_path, assert_same_weights):
    model = make_model("two-stage")
    model.metadata = replace(model.metadata, training=TRAINING)
    folder = hub.save_pretrained(model, tmp_path / "cells", license="apache-2.0")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    back = load_pretrained(folder)
    assert_same_weights(model, back)
    assert back.metadata == model.metadata
    card = (folder / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "deformable-detr",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "deformable-detr"],
        "license": "apache-2.0",
    }
    for part in (
        "# cells",
        "| AP | 0.6251 |",
        "| AP50 | 0.912 |",
        "data: bccd",
        "epoch: 50",
        '"lr": 0.0002',
        "cell, vessel, nucleus",
    ):
        assert part in text
    assert "weights: None" not in text


def test_card_without_anything_known(make_model, tmp_path):
    card = (hub.save_pretrained(make_model("one-stage", None, num_classes=3), tmp_path / "x") / "README.md").read_text()
    assert "license" not in card and "## How good" not in card and "## Classes" not in card and "3 classes" in card


def test_push(make_model, monkeypatch):
    calls = {}

    class Api:
        def __init__(self, token):
            calls["token"] = token

        def create_repo(self, repo_id, **options):
            calls["create"] = (repo_id, options)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            from pathlib import Path

            calls["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            calls["card"] = (Path(folder_path) / "README.md").read_text()
            calls["upload"] = (repo_id, commit_message)
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = make_model("one-stage")
    assert hub.push_to_hub(model, "someone/cells", license="mit", private=True, token="t", commit_message="first") == "address"
    assert calls["token"] == "t" and calls["create"] == ("someone/cells", {"private": True, "exist_ok": True})
    assert calls["files"] == ["README.md", "config.json", "model.safetensors"] and calls["upload"] == ("someone/cells", "first")
    assert "license: mit" in calls["card"] and "# cells" in calls["card"]
    with pytest.raises(ValueError, match="owner/name"):
        hub.push_to_hub(model, "cells")


def test_detector_saves_and_loads(make_model, tmp_path, monkeypatch, assert_same_weights):
    model = make_model("two-stage")
    detector = Detector(model, device="cpu")
    folder = detector.save_pretrained(tmp_path / "cells", license="mit")
    back = Detector.from_pretrained(folder, device="cpu")
    assert_same_weights(model, back.model)
    assert back.categories == model.metadata.categories and "license: mit" in (folder / "README.md").read_text()
    calls = []
    monkeypatch.setattr(hub, "push_to_hub", lambda *arguments, **options: calls.append((arguments, options)))
    detector.push_to_hub("someone/cells", license="mit", private=True)
    assert calls == [((detector.model, "someone/cells"), {"license": "mit", "private": True})]
