"""What is captured, against the operator's real arguments and against a recomputation by hand in float64."""

import importlib
import threading
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.data.transforms import eval_transform
from deformable_detr.inference.predictor import Predictor
from deformable_detr.ops import use_backend
from deformable_detr.structures import Predictions
from deformable_detr.visualize import look_inside
from deformable_detr.visualize.inside.capture import capture_calls, evaluating
from deformable_detr.visualize.inside.look import parts_of

OPERATOR = importlib.import_module("deformable_detr.ops.plain")


@pytest.mark.parametrize("kind", ["one_stage", "two_stage"])
def test_places_and_weights_are_those_that_the_operator_gets(kind, photo, request, monkeypatch):
    model, received = request.getfixturevalue(kind), []
    definition = OPERATOR.multi_scale_deformable_attn_pytorch

    def listen(value, shapes, locations, weights):
        received.append((locations, weights))
        return definition(value, shapes, locations, weights)

    monkeypatch.setitem(OPERATOR.PLAIN, "reference", listen)
    with use_backend("reference"):
        inside = look_inside(model, photo)
    captured = [*inside.encoder, *inside.decoder]
    assert len(received) == len(captured) == len(model.encoder.layers) + len(model.decoder.layers)
    for (locations, weights), sampling in zip(received, captured, strict=True):
        torch.testing.assert_close(sampling.sampling_locations, locations, rtol=0, atol=1e-6)
        torch.testing.assert_close(sampling.attention_weights, weights, rtol=0, atol=1e-6)


def test_calls_of_other_threads_are_not_captured(one_stage, photo):
    """A prediction, or a second look, of another image at the same time."""
    modules = parts_of(one_stage)
    with capture_calls(modules) as calls:
        thread = threading.Thread(target=look_inside, args=(one_stage, photo))
        thread.start()
        thread.join()
        assert not calls
        look_inside(one_stage, photo)
    assert calls.keys() == set(modules)


def test_a_network_without_layers_is_named(photo):
    message = "no layers to look into and no weights in a Identity: take the detector that it was made from"
    with pytest.raises(TypeError, match=message):
        look_inside(torch.nn.Identity(), photo)  # type: ignore[arg-type]


def test_the_same_with_the_fused_operator(two_stage, photo):
    with use_backend("reference"):
        expected = look_inside(two_stage, photo)
    inside = look_inside(two_stage, photo)
    for one, other in zip([*inside.encoder, *inside.decoder], [*expected.encoder, *expected.decoder], strict=True):
        torch.testing.assert_close(one.sampling_locations, other.sampling_locations, rtol=0, atol=2e-4)
        torch.testing.assert_close(one.attention_weights, other.attention_weights, rtol=0, atol=2e-4)


def test_first_layers_by_hand_in_float64(one_stage, photo):
    """Equation 3 of the paper with numpy, from the weights alone."""
    inside = look_inside(one_stage, photo)
    attention = one_stage.decoder.layers[0].cross_attn
    layer = deepcopy(one_stage.decoder.layers[0]).double()
    position, content = (part.double() for part in one_stage.query_source.query_embed.weight.detach().chunk(2, dim=1))
    with torch.no_grad():
        talk = layer.self_attn((content + position)[None], (content + position)[None], content[None])[0][0]
        query = (layer.self_attn_norm(content + talk) + position).numpy()
    linear = one_stage.query_source.reference_points
    points = 1 / (
        1 + np.exp(-(position.numpy() @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()))
    )
    offsets = (
        query @ attention.sampling_offsets.weight.detach().double().numpy().T + attention.sampling_offsets.bias.detach().numpy()
    )
    logits = (
        query @ attention.attention_weights.weight.detach().double().numpy().T + attention.attention_weights.bias.detach().numpy()
    )
    heads, levels, count = attention.num_heads, attention.num_levels, attention.num_points
    offsets = offsets.reshape(-1, heads, levels, count, 2)
    sizes = np.array([(w, h) for h, w in inside.spatial_shapes], dtype=float)[:, None]  # [L, 1, 2]
    places = points[:, None, None, None] + offsets / sizes
    weights = np.exp(logits.reshape(-1, heads, levels * count))
    weights = (weights / weights.sum(-1, keepdims=True)).reshape(-1, heads, levels, count)
    np.testing.assert_allclose(inside.decoder[0].sampling_locations[0].numpy(), places, atol=1e-4)
    np.testing.assert_allclose(inside.decoder[0].attention_weights[0].numpy(), weights, atol=1e-4)
    shown = inside.points_in_image(inside.decoder[0], 3).numpy()
    np.testing.assert_allclose(shown, places[3] * [160, 120], atol=2e-2)
    np.testing.assert_allclose(inside.reference_in_image(inside.decoder[0], 3).numpy(), points[3] * [160, 120], atol=1e-2)


@pytest.mark.parametrize("kind", ["one_stage", "two_stage"])
def test_weights_sum_to_one(kind, photo, request):
    inside = look_inside(request.getfixturevalue(kind), photo)
    for sampling in [*inside.encoder, *inside.decoder]:
        sums = sampling.attention_weights.sum((-2, -1))
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
        assert (sampling.attention_weights >= 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_model_stay_as_they_are(two_stage, photo, training):
    model = deepcopy(two_stage).train(training)
    model.backbone.eval()  # modules may differ in their mode
    modes = [module.training for module in model.modules()]
    inside = look_inside(model, photo)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    metadata = model.metadata
    same = eval_transform(metadata.eval_short_side, metadata.max_long_side, metadata.mean, metadata.std)(photo, None)[0]
    with torch.no_grad():
        exact = two_stage([same])
    for name in ("logits", "boxes", "encoder_logits", "encoder_boxes"):
        assert torch.equal(getattr(inside.predictions, name), getattr(exact, name)), name


def test_two_that_overlap_leave_the_mode_as_it_was(two_stage):
    """As in two threads: the second one begins when the first one has switched, and ends after it."""
    model = deepcopy(two_stage).train()
    model.backbone.eval()
    before = [module.training for module in model.modules()]
    first, second = evaluating(model), evaluating(model)
    for step in (first.__enter__, second.__enter__):
        step()
        assert not any(module.training for module in model.modules())
    for end in (first, second):
        end.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == before


def test_hooks_go_when_the_network_fails(two_stage, photo, monkeypatch):
    def fail(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr(two_stage.decoder.layers[1], "forward", fail)
    with pytest.raises(RuntimeError, match="broken"):
        look_inside(two_stage, photo)
    assert not any(module._forward_hooks for module in two_stage.modules())


def test_detections_are_those_of_the_predictor(two_stage, photo):
    predictor = Predictor(two_stage, device="cpu")
    expected = predictor.predict(photo, threshold=0.0, top_k=7)
    found = look_inside(predictor, photo).detections(top_k=7)
    assert [one.name for one in found] == expected.data["class_name"].tolist()
    np.testing.assert_allclose([one.score for one in found], expected.confidence, atol=1e-6)
    boxes = np.array([one.box for one in found])
    np.testing.assert_allclose(np.clip(boxes, 0, [160, 120, 160, 120]), expected.xyxy, atol=1e-3)
    inside = look_inside(two_stage, photo)
    for one in found:
        np.testing.assert_allclose(inside.boxes_per_layer(one.query)[-1].tolist(), one.box, atol=1e-3)
        assert inside.scores_per_layer(one.query)[-1, one.label] == pytest.approx(one.score, abs=1e-6)


def test_taken_proposals_are_the_references(two_stage, photo):
    inside = look_inside(two_stage, photo)
    found = inside.proposals
    assert inside.query_source == "proposals"
    boxes = inside.predictions.encoder_boxes
    assert found is not None and boxes is not None
    taken = boxes[0, found.taken]
    torch.testing.assert_close(taken, inside.queries.reference_points[0])
    boxes = torch.stack([inside.boxes_per_layer(query)[0] for query in range(inside.num_queries)])
    torch.testing.assert_close(boxes, found.boxes[found.taken])
    assert (found.objectness[found.taken].diff() <= 0).all()


def test_learned_references_have_no_size(one_stage, photo):
    inside = look_inside(one_stage, photo, encoder=False)
    assert inside.query_source == "learned"
    assert inside.proposals is None
    assert inside.encoder == ()
    first = inside.boxes_per_layer(2)[0]
    assert torch.equal(first[:2], first[2:])


def test_positions_and_cells_go_both_ways(two_stage, photo):
    """The reference of a position on its own level is the centre of its cell."""
    inside = look_inside(two_stage, photo)
    assert inside.spatial_shapes == ((12, 16), (6, 8), (3, 4), (2, 2))
    assert inside.level_start_index == (0, 192, 240, 252)
    for x, y, level, expected in ((0, 0, 0, 0), (159, 119, 0, 191), (160, 120, 0, 191), (85, 5, 1, 192 + 4), (10, 100, 3, 252 + 2)):
        position = inside.position_at(x, y, level)
        assert position == expected
        assert inside.level_and_cell(position)[0] == level
        rows, columns = inside.spatial_shapes[level]
        _, row, column = inside.level_and_cell(position)
        centre = [(column + 0.5) * 160 / columns, (row + 0.5) * 120 / rows]
        np.testing.assert_allclose(inside.reference_in_image(inside.encoder[0], position), centre, atol=1e-3)
    with pytest.raises(ValueError, match="no level 4"):
        inside.position_at(1, 1, 4)
    with pytest.raises(ValueError, match="outside the image"):
        inside.position_at(161, 1)


def test_queries_are_found_by_box_and_point(one_stage, photo):
    """A large sure box, a small sure one inside it, a small unsure one inside both, and one far away."""
    boxes = torch.tensor([[0.5, 0.5, 0.8, 0.8], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.05, 0.05], [0.05, 0.05, 0.02, 0.02]])
    logits = torch.tensor([[2.0, -9, -9], [-9, 1, -9], [-9, -9, -3], [-9, -9, 0]])
    inside = replace(look_inside(one_stage, photo, encoder=False), predictions=Predictions(logits[None, None], boxes[None, None]))
    assert inside.query_at(80, 60) == 1  # the smallest of the sure ones
    assert inside.query_at(80, 60, threshold=0.0) == 2
    assert inside.query_at(30, 60) == 0
    assert inside.query_at(80, 60, threshold=0.99) == 0  # none is that sure: the surest
    assert inside.query_at(12, 1) == 3  # in no box: the nearest centre
    for point in ((-1, 5), (9, 1e6), (float("nan"), 5)):
        with pytest.raises(ValueError, match="lies outside the image of 160 x 120 pixels"):
            inside.query_at(*point)
    assert inside.query_of_box((60, 44, 100, 76)) == 1
    assert inside.query_of_box((0, 0, 9, 9)) == 3
    assert [(one.query, one.name) for one in inside.detections(0.3)] == [(0, "a"), (1, "b"), (3, "c")]
    assert inside.detection_of(1).box == pytest.approx((64, 48, 96, 72))
    with pytest.raises(ValueError, match="left < right"):
        inside.query_of_box((10, 10, 5, 20))
    with pytest.raises(ValueError, match="no query's box overlaps"):
        inside.query_of_box((158, 118, 160, 120))
    with pytest.raises(ValueError, match="no query 99"):
        inside.detection_of(99)


def test_every_kind_of_image(two_stage, photo, tmp_path):
    array = photo.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = look_inside(two_stage, photo).predictions.boxes
    for image in (tmp_path / "a.png", array, Image.fromarray(array)):
        assert torch.equal(look_inside(two_stage, image).predictions.boxes, expected)
