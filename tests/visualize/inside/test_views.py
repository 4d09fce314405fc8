"""The figures: their data against numbers known beforehand, and drawn points against the pixels where they must be."""

import importlib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from PIL import Image

from deformable_detr.checkpoints import save_weights
from deformable_detr.criterion import SetCriterion
from deformable_detr.inference import Predictor
from deformable_detr.model import build_model
from deformable_detr.structures import Predictions, Target
from deformable_detr.visualize import (
    Assignments,
    look_inside,
    record_matching,
    recording,
    view_assignment,
    view_journey,
    view_level_attention,
    view_matching,
    view_proposals,
    view_query_usage,
    view_refinement,
    view_sampling,
    view_weight_changes,
)
from deformable_detr.visualize.colors import level_color
from deformable_detr.visualize.inside.journey import principal_colors
from deformable_detr.visualize.inside.matching import compare_assignments

GREY = torch.full((3, 120, 160), 128, dtype=torch.uint8)


@pytest.fixture(scope="module")
def aimed(one_stage):
    """Every point of every decoder layer lies at a quarter of the width and three quarters of the height: pixel (40, 90).

    Head 0 looks on level 1 alone, the others on level 2.
    """
    model = deepcopy(one_stage)
    with torch.no_grad():
        for parameter in model.query_source.reference_points.parameters():
            parameter.zero_()  # sigmoid(0): the middle
        for layer in model.decoder.layers:
            attention = layer.cross_attn
            sizes = torch.tensor([[16.0, 12], [8, 6], [4, 3], [2, 2]])  # (w, h) of the levels of an image of 96 x 128
            offsets = (torch.tensor([-0.25, 0.25]) * sizes)[None, :, None].expand(attention.num_heads, -1, attention.num_points, -1)
            attention.sampling_offsets.weight.zero_()
            attention.sampling_offsets.bias.copy_(offsets.flatten())
            logits = torch.full((attention.num_heads, 4, attention.num_points), -30.0)
            logits[0, 1, 2] = logits[1:, 2, 0] = 0.0
            attention.attention_weights.weight.zero_()
            attention.attention_weights.bias.copy_(logits.flatten())
    return model


def rendered(view):
    """The pixels `[H, W, 3]` of a figure, its first row at the bottom as matplotlib counts."""
    view.figure.canvas.draw()
    return np.asarray(view.figure.canvas.buffer_rgba())[::-1, :, :3].astype(float) / 255


def has_color(pixels, color, tolerance=0.12):
    return np.abs(pixels - np.array(to_rgb(color))).max(-1) < tolerance


@pytest.mark.parametrize("split", ["layer", "head", "level"])
def test_points_are_drawn_where_they_are(aimed, split):
    view = view_sampling(look_inside(aimed, GREY), 3, split=split, zoom=False)
    np.testing.assert_allclose(view.points.numpy(), np.broadcast_to([40.0, 90.0], view.points.shape), atol=1e-3)
    np.testing.assert_allclose(view.references.numpy(), np.broadcast_to([80.0, 60.0], view.references.shape), atol=1e-3)
    assert view.weights[:, 0, 1, 2].tolist() == pytest.approx([1.0] * len(view.layers))
    pixels = rendered(view)
    panels = view.figure.axes
    expected = {"layer": [{1, 2}] * 2, "head": [{1}, {2}], "level": [set(), {1}, {2}, set()]}[split]
    assert len(panels) == len(expected)
    for axes, levels in zip(panels, expected, strict=True):
        box = axes.get_window_extent()
        inside = np.zeros(pixels.shape[:2], dtype=bool)
        inside[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
        column, row = axes.transData.transform((40, 90))
        for level in (1, 2):
            rows, columns = np.nonzero(has_color(pixels, level_color(level)) & inside)
            strong = len(rows) > 12  # a weight of nothing is still a dot, some pixels small
            assert strong == (level in levels) or (split == "layer" and level == 1), (split, level, len(rows))
            if strong:
                assert abs(np.median(rows) - row) < 3
                assert abs(np.median(columns) - column) < 3
        column, row = axes.transData.transform((80, 60))
        assert has_color(pixels, "#7dff6a")[int(row) - 2 : int(row) + 3, int(column) - 2 : int(column) + 3].any()


def test_sampling_of_an_encoder_position(two_stage, photo):
    inside = look_inside(two_stage, photo)
    position = inside.position_at(75, 65, 1)
    view = view_sampling(inside, position=position, layers=[-1], levels=[0, 1])
    assert view.layers == (0,)
    centre = torch.tensor([(3 + 0.5) * 160 / 8, (3 + 0.5) * 120 / 6])  # its cell on level 1
    torch.testing.assert_close(view.references[0], centre, rtol=0, atol=1e-3)
    places = inside.encoder[0].sampling_locations[0, position]
    torch.testing.assert_close(view.points[0], places * torch.tensor([160.0, 120.0]))


def test_sampling_says_what_is_wrong(two_stage, photo):
    inside = look_inside(two_stage, photo, encoder=False)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "either a query"),
        ({"query": 1, "position": 1}, "either a query"),
        ({"query": 10}, "no query 10"),
        ({"position": 1}, "encoder was not captured"),
        ({"query": 1, "layers": [2]}, "no layer 2"),
        ({"query": 1, "heads": []}, "no head is left"),
        ({"query": 1, "split": "point"}, "split must be"),
    )
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            view_sampling(inside, **arguments)


def test_refinement(two_stage, photo):
    inside = look_inside(two_stage, photo)
    boxes = torch.tensor([[[[0.5, 0.5, 0.5, 0.5]]], [[[0.5, 0.5, 0.25, 0.5]]]])  # the last one is half of the first
    made = replace(inside, predictions=Predictions(torch.zeros(2, 1, 1, 3), boxes))
    view = view_refinement(made, 0)
    torch.testing.assert_close(view.boxes[1:], torch.tensor([[40.0, 30, 120, 90], [60, 30, 100, 90]]))
    assert view.overlaps[1:].tolist() == pytest.approx([0.5, 1.0])
    assert view.scores.tolist() == [[0.5] * 3] * 2


def test_proposals(two_stage, one_stage, photo):
    inside = look_inside(two_stage, photo)
    view = view_proposals(inside)
    starts = torch.tensor(inside.level_start_index)
    assert view.levels.tolist() == [int((starts <= position).sum()) - 1 for position in view.proposals.taken.tolist()]
    assert len(view.figure.axes) >= 5
    with pytest.raises(ValueError, match="learned queries"):
        view_proposals(look_inside(one_stage, photo, encoder=False))


def test_attention_per_level(aimed):
    """Head 0 looks on level 1, head 1 on level 2: half of the mass each, whatever the size."""
    view = view_level_attention(aimed, [GREY, GREY], threshold=0.0, groups=3)
    expected = torch.zeros(view.mass.shape)
    expected[:, :, 1] = expected[:, :, 2] = 0.5
    torch.testing.assert_close(view.mass, expected, rtol=0, atol=1e-5)
    assert view.grouped.sum(-1).tolist() == pytest.approx([1.0] * len(view.grouped))
    inside = look_inside(aimed, GREY)
    widest = max((box[2] - box[0]) * (box[3] - box[1]) for box in (one.box for one in inside.detections()))
    assert float(view.sizes.max()) == pytest.approx(widest**0.5 * 0.8, rel=1e-4)  # 160 pixels were resized to 128
    with pytest.raises(ValueError, match="no detection"):
        view_level_attention(aimed, [GREY], threshold=1.0)


def test_groups_of_nearly_equal_sizes_have_bars_of_their_own(two_stage, photo):
    """Their limits may be the same once they are rounded."""
    view = view_level_attention(two_stage, [photo], threshold=0.0, groups=12)
    left = view.figure.axes[0]
    bars = cast(Iterable[Rectangle], left.patches)
    centres = sorted({round(bar.get_x() + bar.get_width() / 2) for bar in bars})
    assert centres == list(range(len(view.grouped)))
    names = [label.get_text() for label in left.get_xticklabels()]
    assert len(names) == len(view.grouped) > len(set(names))


def test_query_usage(two_stage, photo):
    images = [photo, GREY]
    view = view_query_usage(two_stage, images, threshold=0.01, num_queries=4)
    expected = [look_inside(two_stage, image).predictions for image in images]
    torch.testing.assert_close(view.boxes, torch.stack([item.boxes[-1, 0] for item in expected]))
    scores = torch.stack([item.logits[-1, 0].sigmoid().amax(-1) for item in expected])
    assert view.usage.tolist() == ((scores >= 0.01).float().mean(0)).tolist()
    bars = cast(Iterable[Rectangle], view.figure.axes[-1].patches)
    assert [bar.get_height() for bar in bars] == pytest.approx(view.usage.tolist())
    assert view.usage.shape == (10,)


def assignments(**queries):
    return Assignments({name: torch.tensor(chosen) for name, chosen in queries.items()})


def test_stability_by_hand():
    before = assignments(a=[4, 7, 1], b=[2, -1], only_here=[5])
    after = assignments(a=[4, 1, 7], b=[2, 3])
    # Of 5 targets two stayed. Queries with another target: in a 7 and 1, in b 3 (before: none).
    assert compare_assignments(before, after) == (2 / 5, 3 / 2)
    view = view_matching({"1": before, "2": after, "3": after})
    assert view.stability == (2 / 5, 1.0)
    assert view.instability == (3 / 2, 0.0)
    assert view.figure.axes[2].get_title() == "queries whose target changed, per image"
    table = view.figure.axes[0]
    bold = [text.get_text() for text in table.texts if text.get_fontweight() == "bold"]
    assert bold == ["1", "7", "3"]  # the second and third target of a, the second one of b
    with pytest.raises(ValueError, match="no image with a target"):
        compare_assignments(before, assignments(z=[1]))
    with pytest.raises(ValueError, match="2 targets in one and 1"):
        compare_assignments(before, assignments(b=[1]))
    with pytest.raises(ValueError, match="at least two"):
        view_matching({"1": before})
    with pytest.raises(ValueError, match="of the query of each target, the other of the position"):
        compare_assignments(before, Assignments(before.queries, kind="position"))
    with pytest.raises(ValueError, match="the recordings have no image with a target in common"):
        view_matching({"1": assignments(a=[1], b=[2]), "2": assignments(b=[2], c=[3]), "3": assignments(c=[3])})


def test_matching_is_recorded(one_stage, two_stage):
    """Targets that are the predicted boxes go back to the queries that predicted them."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, 64, 96, generator=generator), torch.randn(3, 96, 64, generator=generator)]
    for model in (one_stage, two_stage):
        samples = []
        for index, image in enumerate(images):
            with torch.no_grad():
                boxes = model([image]).boxes[-1, 0]
            chosen = [3, 0]
            samples.append((image, Target(boxes[chosen].clone(), torch.tensor([0, 1]), f"image {index}", (64, 96))))
        matcher = SetCriterion(3).matcher
        matcher.class_cost = 0.0
        found = record_matching(model, samples, matcher)
        with torch.no_grad():
            proposals = [model([image]).encoder_logits for image in images]
        for index, logits in enumerate(proposals):
            queries = torch.tensor([3, 0])
            if logits is not None:  # there, the position stands for the query
                queries = logits[0, :, 0].argsort(descending=True)[:10][queries]
            assert found.queries[f"image {index}"].tolist() == queries.tolist()


def test_matching_is_recorded_while_a_criterion_works(two_stage):
    image = torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        predictions = two_stage([image])
    target = Target(predictions.boxes[-1, 0, [5]], torch.tensor([0]), "a", (64, 96))
    criterion = SetCriterion(3)
    with recording(criterion, Assignments()) as found:
        criterion(predictions, [target])
    expected = criterion.match(predictions, [target]).decoder.of_image(0)[0]
    assert found.queries["a"].tolist() == expected.tolist()
    assert not criterion.matcher._forward_hooks
    with pytest.raises(ValueError, match="no image_id"), recording(criterion, Assignments()):
        criterion(predictions, [replace(target, image_id=None)])


def test_weight_changes(two_stage):
    changed = deepcopy(two_stage)
    with torch.no_grad():
        changed.decoder.layers[1].cross_attn.sampling_offsets.weight.mul_(1.5)
        changed.decoder.layers[1].cross_attn.sampling_offsets.bias.mul_(1.5)
        changed.neck.projections[0][0].weight.mul_(3.0)
    parts = {part.part: part for part in view_weight_changes(two_stage, changed).parts}
    assert parts["decoder 2: sampling offsets"].change == pytest.approx(0.5)
    assert parts["neck"].most_changed == "neck.projections.0.0.weight"
    weights = [value.detach().double() for value in two_stage.neck.parameters()]
    one, all_together = weights[0].square().sum() * 4, sum(value.square().sum() for value in weights)
    assert parts["neck"].change == pytest.approx(float((one / all_together).sqrt()))
    assert {part for part, item in parts.items() if item.change > 0} == {"decoder 2: sampling offsets", "neck"}
    assert sum(part.parameters for part in parts.values()) == sum(value.numel() for value in two_stage.parameters())
    assert "box heads" in parts
    with pytest.raises(ValueError, match="not of one architecture"):
        view_weight_changes(two_stage, {"a": torch.zeros(3)})


def test_weight_changes_of_files_and_from_nothing(two_stage, tmp_path):
    """A file does as well as a network; what was zero has no relative change; heads of other classes are left out."""
    changed = deepcopy(two_stage)
    zeroed = deepcopy(two_stage)
    with torch.no_grad():
        changed.decoder.box_heads[0].layers[0].weight.mul_(1.25)
        for attention in (layer.cross_attn for layer in zeroed.decoder.layers):
            attention.attention_weights.weight.zero_()
            attention.attention_weights.bias.zero_()
    path = save_weights(tmp_path / "changed.safetensors", changed)
    assert view_weight_changes(two_stage, path).total == view_weight_changes(two_stage, changed).total > 0
    view = view_weight_changes(zeroed, two_stage)
    parts = {part.part: part for part in view.parts}
    assert parts["decoder 1: attention weights"].change == float("inf")
    assert [text.get_text() for axes in view.figure.axes for text in axes.texts].count("was 0") == 2
    other_classes = build_model("tiny", num_classes=5).state_dict()
    assert "class heads" not in {part.part for part in view_weight_changes(two_stage, other_classes).parts}


def test_weight_changes_of_later_models():
    """Each part has its own name; what has a row for each class is left out where the classes are others."""
    small = {"hidden_dim": 32, "num_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 2, "ffn_dim": 32, "num_queries": 6}
    small |= {"backbone": "resnet18", "backbone_options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}}
    settings = {**small, "relation_bias": True, "pretrained_backbone": False}
    first, second = (build_model("r50-dino", num_classes=classes, **settings) for classes in (3, 5))
    with torch.no_grad():
        second.get_parameter("decoder.norm.weight").fill_(2.0)  # from 1; the bias is 0
    parts = {part.part: part for part in view_weight_changes(first, second).parts}
    assert (parts["decoder norm"].change, parts["decoder norm"].parameters) == (pytest.approx(1), 2 * 32)
    assert {"decoder position mlp", "decoder relation", "box heads"} <= parts.keys()
    assert all(part.most_changed.startswith("decoder.box_heads.") for name, part in parts.items() if name == "box heads")
    assert not {"class heads", "denoising"} & parts.keys()


@pytest.mark.parametrize("count", [0, -1])
def test_something_must_be_left_to_draw(two_stage, photo, count):
    inside = look_inside(two_stage, photo)
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([0]))
    matchings = {"1": assignments(a=[1]), "2": assignments(a=[1])}
    for name, view in {
        "groups": lambda: view_level_attention(two_stage, [photo], threshold=0.0, groups=count),
        "num_queries": lambda: view_query_usage(two_stage, [photo], num_queries=count),
        "num_boxes": lambda: view_proposals(inside, num_boxes=count),
        "num_targets": lambda: view_matching(matchings, num_targets=count),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not {count}"):
            view()
    with pytest.raises(TypeError, match="num_queries must be a whole number"):
        view_assignment(inside, target, num_queries=2.5)  # type: ignore[arg-type]


def test_colors_of_features():
    """Two groups that differ along one direction get two colours; a shift of all changes nothing."""
    features = torch.zeros(40, 8)
    features[20:, 3] = 5.0
    colors = principal_colors(features)
    assert colors.shape == (40, 3)
    assert (colors[:20, 0] != colors[20:, 0]).all()
    assert torch.equal(colors[:20], colors[:1].expand(20, -1))
    torch.testing.assert_close(principal_colors(features + 3), colors)


def test_journey_in_low_precision(two_stage, photo):
    """NumPy has no bfloat16."""
    view_journey(
        look_inside(Predictor(two_stage, device="cpu", precision="bf16"), photo), ["neck", "padding", "positions", "sequence"]
    )


@pytest.mark.slow
def test_journey(one_stage, photo, tmp_path):
    inside = look_inside(one_stage, photo)
    path = view_journey(inside).save(tmp_path / "new" / "journey.png", dpi=40)
    with Image.open(path) as drawn:
        assert drawn.size[1] > drawn.size[0] == 480
    assert [item.name for item in path.parent.iterdir()] == ["journey.png"]
    assert view_journey(inside, ["sampling"]).save(tmp_path / "one.svg").read_text(encoding="utf-8").startswith("<?xml")
    with pytest.raises(ValueError, match="unknown stage"):
        view_journey(inside, ["sampling", "nothing"])
    with pytest.raises(ValueError, match=r"a\.txt: a figure is written as"):
        view_journey(inside, ["neck"]).save(tmp_path / "a.txt")


def test_modules_leave_pyplot_alone():
    modules = [
        importlib.import_module(f"deformable_detr.visualize.{name}") for name in ("figures", "inside.canvas", "inside.journey")
    ]
    assert not any("pyplot" in vars(module) for module in modules)
