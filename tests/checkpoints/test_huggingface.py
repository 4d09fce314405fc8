"""transformers' models with random weights, in and out: the same outputs, and no warnings."""

import json
import logging
import sys
from typing import Any, cast

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection, DeformableDetrConfig, DeformableDetrForObjectDetection

from deformable_detr.checkpoints import huggingface, load_checkpoint, load_pretrained, save_weights
from deformable_detr.checkpoints.convert import convert
from deformable_detr.checkpoints.huggingface_config import read_folder
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.model import build_model
from deformable_detr.model.pyramid import PaddedCanvas

FLAGS = {
    "one-stage": {},
    "refine": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
    "single-scale-dc5": {"num_feature_levels": 1, "dilation": True},
}
NAMES = {0: "cell", 1: "vessel", 2: "nucleus", 3: "dust"}


@pytest.fixture
def model(variant, make_model):
    return make_model(variant, thin=False)


def their_model(variant, randomise, **options):
    backbone: dict[str, Any] = {"backbone": "test_resnet", "use_timm_backbone": True, "use_pretrained_backbone": False}
    config = DeformableDetrConfig(
        id2label=NAMES,
        label2id={name: label for label, name in NAMES.items()},
        num_queries=12,
        two_stage_num_proposals=12,
        d_model=64,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_layers=2,
        decoder_layers=2,
        **backbone,
        **FLAGS[variant],
        **options,
    )
    model = DeformableDetrForObjectDetection(config).eval()
    randomise(model)
    for name in ("bbox_embed", "class_embed"):  # copies that an untied model keeps equal by its training alone
        copy = getattr(model.model.decoder, name)
        if copy is not None:
            copy.load_state_dict(getattr(model, name).state_dict())
    return model


def assert_same_outputs(ours, theirs, batch):
    ours = ours.eval()
    ours.canvas = PaddedCanvas()  # as transformers does
    with torch.no_grad():
        expected = theirs(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
        found = ours(batch)
    torch.testing.assert_close(found.logits[-1], expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, rtol=0, atol=1e-5)
    assert found.boxes[-1].std() > 0.01  # the comparison is of something


@pytest.mark.parametrize("tied", [True, False])
def test_in(variant, tied, randomise, batch, tmp_path):
    tied = tied or variant in ("one-stage", "single-scale-dc5")  # those share their heads by definition
    theirs = their_model(variant, randomise, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    theirs = DeformableDetrForObjectDetection.from_pretrained(tmp_path).eval()  # what its own code makes of the folder
    ours = load_pretrained(tmp_path)
    assert_same_outputs(ours, theirs, batch)
    assert ours.metadata.categories is not None
    assert ours.metadata.categories.names == tuple(NAMES.values())
    assert ours.metadata.model.num_queries == 12


def test_out(model, batch, tmp_path, caplog, recwarn):
    save_weights(tmp_path / "a.safetensors", model)
    report = convert(tmp_path / "a.safetensors", tmp_path / "folder", "huggingface")
    assert report.lossy == [] and report.missing == []
    with caplog.at_level(logging.WARNING):
        loaded = DeformableDetrForObjectDetection.from_pretrained(tmp_path / "folder", output_loading_info=True)
    theirs, info = cast("tuple[DeformableDetrForObjectDetection, dict]", loaded)
    assert not [record.message for record in caplog.records] and not list(recwarn)
    assert not any(info.values())
    assert theirs.config.id2label == dict(enumerate(model.metadata.categories.names))
    assert_same_outputs(model, theirs.eval(), batch)


def test_out_and_in_is_bit_equal(model, tmp_path, assert_same_weights):
    save_weights(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "huggingface")
    back = load_checkpoint(tmp_path / "folder")
    assert_same_weights(model, back.model)
    assert back.model.metadata == model.metadata
    assert back.report.source_format == "huggingface"


def test_what_was_changed_in_a_written_folder_counts(model, tmp_path):
    """As people do: names of classes, another size. The header of the weights says what was written."""
    save_weights(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "huggingface")
    for name, change in {
        "config": {"id2label": {str(label): f"class-{label}" for label in range(model.metadata.model.num_classes)}},
        "preprocessor_config": {"size": {"shortest_edge": 320, "longest_edge": 500}},
    }.items():
        file = tmp_path / "folder" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    found = load_checkpoint(tmp_path / "folder")
    assert found.model.metadata.categories is not None
    assert found.model.metadata.categories.names[:2] == ("class-0", "class-1")
    assert (found.model.metadata.eval_short_side, found.model.metadata.max_long_side) == (320, 500)
    assert "changed after writing: categories, eval_short_side, max_long_side" in str(found.report)


def test_written_preprocessing(make_model, tmp_path):
    save_weights(tmp_path / "a.safetensors", make_model("one-stage", thin=False))
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "huggingface")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert type(processor).__name__.startswith("DeformableDetrImageProcessor")
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (800, 1333)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


def test_preprocessing_is_read(randomise, tmp_path):
    their_model("one-stage", randomise).save_pretrained(tmp_path)
    processor = {"size": {"shortest_edge": 480, "longest_edge": 640}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    metadata = load_pretrained(tmp_path).metadata
    assert (metadata.eval_short_side, metadata.max_long_side) == (480, 640)
    assert (metadata.mean, metadata.std) == ((0.5,) * 3, (0.25,) * 3)


def test_copies_in_the_decoder_may_be_the_only_ones(make_model, tmp_path, assert_same_weights):
    from safetensors.torch import load_file, save_file

    model = make_model("two-stage", thin=False)
    save_weights(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "huggingface")
    tensors = load_file(tmp_path / "folder" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("class_embed.", "bbox_embed."))}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "folder" / "model.safetensors", {"format": "pt"})
    assert_same_weights(model, load_pretrained(tmp_path / "folder"))


def test_names_of_a_running_model(make_model, randomise, batch, tmp_path):
    theirs = their_model("refine", randomise, tie_word_embeddings=False)
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_outputs(load_pretrained(tmp_path), theirs, batch)


def test_what_transformers_cannot_express(make_model, tmp_path):
    save_weights(tmp_path / "a.safetensors", make_model("one-stage"))
    with pytest.raises(ValueError, match="cannot express this network: the backbone options"):
        convert(tmp_path / "a.safetensors", tmp_path / "folder", "huggingface")
    assert not (tmp_path / "folder").exists()


TIMM = {"model_type": "timm_backbone", "backbone": "test_resnet"}
SAID = {
    "another model": ({"model_type": "detr"}, "holds a detr model"),
    "positions": ({"position_embedding_type": "learned"}, "position_embedding_type is 'learned': only 'sine' is known"),
    "backbone of transformers": ({"backbone_config": {"model_type": "resnet"}}, "only timm backbones"),
    "activation": ({"activation_function": "gelu"}, "activation_function is 'gelu': only 'relu' is known"),
    "heads": ({"decoder_attention_heads": 4}, "decoder_attention_heads is 4, but the network has num_heads 8"),
    "points": ({"encoder_n_points": 2}, "encoder_n_points is 2, but the network has num_encoder_points 4"),
    "levels": ({"num_feature_levels": 3}, "num_feature_levels is 3, but the network has num_feature_levels 4"),
    "width": ({"d_model": 128}, "d_model is 128, but the network has hidden_dim 64"),
    "feed-forward width": ({"encoder_ffn_dim": 64}, "encoder_ffn_dim is 64, but the network has ffn_dim 48"),
    "layers": ({"decoder_layers": 6}, "decoder_layers is 6"),
    "queries": ({"num_queries": 300}, "num_queries is 300, but the network has num_queries 12"),
    "two-stage": ({"two_stage": True, "with_box_refine": True}, "two_stage is True, but the network has two_stage False"),
    "holes in the classes": ({"id2label": {"0": "a", "1": "b", "3": "c", "4": "d"}}, "id2label numbers 4 classes"),
    "too few classes": ({"id2label": {"0": "a", "1": "b"}}, "id2label numbers 2 classes"),
    "own code": ({"auto_map": {"AutoModel": "modeling.Mine"}}, "auto_map is set"),
    "quantised": ({"quantization_config": {"bits": 8}}, "quantization_config is set"),
    "channels": ({"num_channels": 4}, "num_channels is 4"),
    "unknown": ({"look_forward_twice": True}, r"look_forward_twice \(True\) means nothing here"),
    "strides": (
        {"backbone_config": TIMM | {"output_stride": 8}},
        "output_stride is 8",
    ),
    "stages": (
        {"backbone_config": TIMM | {"out_indices": [1, 2, 3]}},
        r"out_indices are \[1, 2, 3\]: only the last stages",
    ),
    "activations in norms": (
        {"backbone_config": TIMM | {"backbone": "mobilenetv3_small_050"}},
        "activations in its batch norms",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_this_network_has_not_is_refused_by_name(case, randomise, tmp_path):
    change, message = SAID[case]
    their_model("one-stage", randomise).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_not_strict_reads_all_the_same(randomise, tmp_path, caplog):
    their_model("one-stage", randomise).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "gelu"}))
    assert load_pretrained(tmp_path, strict=False).metadata.model.num_queries == 12
    assert "activation_function" in caplog.text


@pytest.mark.parametrize("form", ["flat", "backbone_config", "backbone_kwargs"])
def test_forms_of_the_backbone(form, randomise, batch, tmp_path):
    """As transformers 4 and 5 have stored a dilated backbone."""
    theirs = their_model("single-scale-dc5", randomise)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    record = {"flat": {"backbone_config": None, "dilation": True, "backbone": "test_resnet", "use_timm_backbone": True}}
    record["backbone_kwargs"] = record["flat"] | {"dilation": False, "backbone_kwargs": {"output_stride": 16, "out_indices": [4]}}
    record["backbone_config"] = {}
    (tmp_path / "config.json").write_text(json.dumps(config | record[form]))
    ours = load_pretrained(tmp_path)
    assert ours.metadata.model.dilation
    assert_same_outputs(ours, theirs, batch)


NO_LIMIT = 100_000
PROCESSORS = {
    "numbers": ({"size": 480, "max_size": 640}, (480, 640), ""),
    "number": ({"size": 480}, (480, 1333), ""),
    "shortest alone": ({"size": {"shortest_edge": 480}}, (480, NO_LIMIT), ""),
    "longest alone": ({"size": {"longest_edge": 640}}, (640, 640), ""),
    "fitted": ({"size": {"max_height": 640, "max_width": 640}}, (640, 640), ""),
    "fitted, not square": ({"size": {"max_height": 480, "max_width": 640}}, (480, 640), "fitted into"),
    "stretched": ({"size": {"height": 480, "width": 640}}, (480, 640), "stretched to 480 × 640"),
    "pair": ({"size": [480, 640]}, (480, 640), "stretched to 480 × 640"),
    "not resized": ({"do_resize": False}, (800, 1333), "do_resize"),
    "another filter": ({"resample": 3}, (800, 1333), "PIL's filter 3"),
    "cropped": ({"do_center_crop": True}, (800, 1333), "do_center_crop"),
    "fixed canvas": ({"pad_size": {"height": 900, "width": 900}}, (800, 1333), "pad_size"),
    "unknown": ({"sharpen": 2}, (800, 1333), "without a meaning here: sharpen"),
    "old names": ({"feature_extractor_type": "DetrFeatureExtractor", "format": "coco_detection", "size": 800}, (800, 1333), ""),
    "nothing": ({"size": None, "image_mean": None}, (800, 1333), ""),
}


@pytest.mark.parametrize(
    ("file", "entries", "said"),
    [
        ("config.json", {"id2label": ["cat", "dog"]}, "id2label must be an object, not \\['cat', 'dog'\\]"),
        ("config.json", {"backbone_config": "resnet50"}, "backbone_config must be an object"),
        ("config.json", {"two_stage": "false"}, "two_stage must be true or false, not 'false'"),
        ("preprocessor_config.json", {"size": "800"}, "size must be made of numbers, not '800'"),
        ("preprocessor_config.json", {"size": []}, "size must be made of numbers"),
        ("preprocessor_config.json", {"size": {"shortest_edge": "800"}}, "size must be made of numbers"),
        ("preprocessor_config.json", {"image_mean": "0.5"}, "image_mean must be made of numbers"),
        ("preprocessor_config.json", {"image_std": [0.5]}, "image_std must have 3 numbers"),
        ("preprocessor_config.json", {"do_rescale": "False"}, "do_rescale must be true or false"),
        ("processor_config.json", {"image_processor": {"rescale_factor": "1/255"}}, "rescale_factor must be made of numbers"),
        ("processor_config.json", {"image_processor": [1]}, "image_processor must be an object"),
        ("preprocessor_config.json", {"rescale_factor": [0.004]}, "rescale_factor must have 1 numbers"),
        ("preprocessor_config.json", {"rescale_factor": 0}, "rescale_factor must be above 0"),
        ("preprocessor_config.json", {"size": {"shortest_edge": -5}}, "size must be above 0"),
        ("preprocessor_config.json", {"size": [3, 512, 640]}, "size must have 1 or 2 numbers"),
    ],
)
def test_entries_of_a_wrong_type_are_named(file, entries, said, tmp_path):
    (tmp_path / file).write_text(json.dumps({"model_type": "deformable_detr", **entries} if file == "config.json" else entries))
    with pytest.raises(ValueError, match=f"{file}: {said}"):
        read_folder(Weights({}, Report("huggingface")), tmp_path)


@pytest.mark.parametrize("case", PROCESSORS)
@pytest.mark.parametrize("nested", [False, True])
def test_every_form_of_the_image_size(case, nested, randomise, tmp_path):
    said, sides, loss = PROCESSORS[case]
    their_model("one-stage", randomise).save_pretrained(tmp_path)
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": said} if nested else said))
    loaded = load_checkpoint(tmp_path)
    assert (loaded.model.metadata.eval_short_side, loaded.model.metadata.max_long_side) == sides
    assert any(loss in text for text in loaded.report.lossy) if loss else loaded.report.lossy == []


@pytest.mark.parametrize(
    "said",
    [
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    ],
)
def test_every_normalisation_gives_the_same_pixels(said, randomise, tmp_path):
    their_model("one-stage", randomise).save_pretrained(tmp_path)
    said = {"image_processor_type": "DeformableDetrImageProcessor", "do_resize": False} | said
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    metadata = load_pretrained(tmp_path).metadata
    pixels = torch.randint(0, 256, (3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = AutoImageProcessor.from_pretrained(tmp_path)(pixels, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (metadata.mean, metadata.std))
    torch.testing.assert_close((pixels / 255 - mean) / std, expected.float(), rtol=1e-5, atol=1e-4)


def test_weights_in_several_files(randomise, batch, tmp_path):
    theirs = their_model("one-stage", randomise)
    theirs.save_pretrained(tmp_path, max_shard_size="2MB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1 and not (tmp_path / "model.safetensors").exists()
    for source in (tmp_path, tmp_path / "model.safetensors.index.json", shards[0]):
        assert_same_outputs(load_pretrained(source), theirs, batch)
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"no {shards[1].name} beside"):
        load_pretrained(tmp_path)


BACKBONES = ["resnet18.tv_in1k", "resnet18d.ra2_in1k", "convnext_atto.d2_in1k"]
LOSING = ["mobilenetv3_small_050.lamb_in1k", "tf_efficientnet_lite0.in1k", "regnetx_002.pycls_in1k"]


def with_backbone(name, tmp_path):
    torch.manual_seed(0)
    settings = {"num_classes": 3, "hidden_dim": 64, "ffn_dim": 64, "num_encoder_layers": 1, "num_decoder_layers": 2}
    settings |= {"num_queries": 12, "freeze_batch_norm": False, "frozen_backbone_stages": 0, "pretrained_backbone": False}
    model = build_model("r18", backbone=name, **settings).eval()
    return model, save_weights(tmp_path / "a.safetensors", model)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_that_transformers_runs_as_timm_does(name, batch, tmp_path):
    model, path = with_backbone(name, tmp_path)
    report = convert(path, tmp_path / "folder", "huggingface")
    assert any("compared with transformers" in note for note in report.notes)
    assert_same_outputs(model, AutoModelForObjectDetection.from_pretrained(tmp_path / "folder").eval(), batch)
    assert load_pretrained(tmp_path / "folder").metadata.model.backbone == name


@pytest.mark.parametrize("name", LOSING)
@pytest.mark.parametrize("known", [True, False], ids=["by its parts", "by running it"])
def test_backbones_that_transformers_computes_otherwise(name, known, tmp_path, monkeypatch):
    _, path = with_backbone(name, tmp_path)
    if not known:
        monkeypatch.setattr(huggingface, "backbone_problems", lambda name: [])
    with pytest.raises(ValueError, match="in its batch norms" if known else "computes something else"):
        convert(path, tmp_path / "folder", "huggingface")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors"]


def test_without_transformers_the_report_says_that_nothing_was_compared(make_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    path = save_weights(tmp_path / "a.safetensors", make_model("one-stage", thin=False))
    report = convert(path, tmp_path / "folder", "huggingface")
    assert "not compared with transformers' own outputs: transformers is not installed" in report.notes
    assert load_pretrained(tmp_path / "folder").metadata.model.num_queries == 12


def test_other_files_in_an_existing_folder_stay(make_model, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", make_model("one-stage", thin=False))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    convert(path, tmp_path / "folder", "huggingface")
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
