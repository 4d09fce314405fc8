"""transformers' models with random weights, in and out: the same outputs, and no warnings."""

import json
import logging

import pytest
import torch
from transformers import AutoImageProcessor, DeformableDetrConfig, DeformableDetrForObjectDetection

from deformable_detr.checkpoints import load_checkpoint, load_pretrained, save_weights
from deformable_detr.checkpoints.convert import convert
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
    config = DeformableDetrConfig(
        backbone="resnet18",
        use_timm_backbone=True,
        use_pretrained_backbone=False,
        id2label=NAMES,
        label2id={name: label for label, name in NAMES.items()},
        num_queries=12,
        two_stage_num_proposals=12,
        d_model=64,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_layers=2,
        decoder_layers=2,
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
    assert ours.metadata.categories.names == tuple(NAMES.values())
    assert ours.metadata.model.num_queries == 12


def test_out(model, batch, tmp_path, caplog, recwarn):
    save_weights(tmp_path / "a.safetensors", model)
    report = convert(tmp_path / "a.safetensors", tmp_path / "folder", "huggingface")
    assert report.lossy == [] and report.missing == []
    with caplog.at_level(logging.WARNING):
        theirs, info = DeformableDetrForObjectDetection.from_pretrained(tmp_path / "folder", output_loading_info=True)
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
    with pytest.raises(ValueError, match="cannot express the backbone options"):
        convert(tmp_path / "a.safetensors", tmp_path / "folder", "huggingface")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "detr"}, "holds a detr model"),
        ({"position_embedding_type": "learned"}, "learned position embeddings"),
        ({"backbone_config": {"model_type": "resnet"}}, "only timm backbones"),
    ],
)
def test_what_this_network_has_not(change, message, randomise, tmp_path):
    their_model("one-stage", randomise).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)
