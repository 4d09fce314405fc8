import json
import math
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from openvino.op import Constant

from deformable_detr.checkpoints import load_pretrained, save_weights
from deformable_detr.detector import Detector
from deformable_detr.export import ParityError, export_model, files, load_exported
from deformable_detr.export.exported_program import trace
from deformable_detr.export.form import METADATA_KEY
from deformable_detr.export.runtime import ExportedNetwork
from deformable_detr.export.tensorrt import troubles
from deformable_detr.inference import Predictor

CANVAS = (80, 112)  # that of the first image


def assert_same_detections(path, model, images, runtime=None, top_k=8):
    """Float32 in another order of operations: 1e-4 of the canvas is a hundredth of a pixel here."""
    found = load_exported(path, runtime).predict(images, 0.0, batch_size=3, top_k=top_k)
    expected = Predictor(model, device="cpu").predict(images, 0.0, batch_size=3, top_k=top_k)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)
        np.testing.assert_allclose(one.xyxy, other.xyxy, atol=0.02)
        assert one.data["class_name"].tolist() == other.data["class_name"].tolist()
        assert one.data["category_id"].tolist() == other.data["category_id"].tolist()


def number_of_weights(model):
    """Of what the answer depends on, counted by hand: 64 channels, 3 classes, and a batch norm is two numbers per channel."""
    count = sum(parameter.numel() for parameter in model.parameters())
    head = 64 * 3 + 3
    count -= (len(model.class_heads) - 1) * head  # those of the other layers
    return count - (head - 65 if model.metadata.model.two_stage else 0)  # proposals are ranked by their first channel


def batch_norm_channels(model):
    return sum(module.num_features for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))


def changed_by_what_follows_from_the_queries(model, batch):
    """OpenVINO computes what depends on no image, and keeps the results instead of the weights; here with fixed sizes."""
    heads, levels, points, channels, queries = 2, 2, 4, 64, 10
    positions = 5 * 7 + 3 * 4  # of 80 x 112, in strides of 16 and 32
    layer, query_source = model.decoder.layers[0], model.query_source
    gone = [
        query_source,
        layer.self_attn,
        layer.self_attn_norm,
        layer.cross_attn.sampling_offsets,
        layer.cross_attn.attention_weights,
    ]
    results = 2 * queries * channels  # the queries' positions, and their content after the first self-attention
    results += queries * heads * levels * points * (2 + 1)  # offsets and weights of the first cross-attention
    results += positions * channels  # positions and level embedding
    results += (positions + queries) * levels * 2 + queries * 4  # reference points, and the part of the boxes that they are
    lost = sum(parameter.numel() for module in gone for parameter in module.parameters()) + model.flatten.level_embed.numel()
    return batch * results - lost


def assert_no_dead_weight(path, model):
    """Batch norms are inside the convolutions as one number per channel; and next to nothing is there beside the weights."""
    graph = onnx.load(path).graph
    used = {name for node in graph.node for name in node.input}
    assert [tensor.name for tensor in graph.initializer if tensor.name not in used] == []
    needed = {output.name for output in graph.output}
    for node in reversed(graph.node):
        assert needed & set(node.output), node.name
        needed |= set(node.input)
    shapes = Counter(tuple(sorted(tensor.dims)) for tensor in graph.initializer)
    two_stage = model.metadata.model.two_stage
    assert shapes[3, 64] == 1  # class heads
    assert shapes[1, 64] == two_stage  # proposals are ranked by the first channel of theirs
    assert shapes[4, 64] == len(model.decoder.box_heads) + two_stage
    floats = sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    assert floats == pytest.approx(number_of_weights(model) - batch_norm_channels(model), rel=2e-3)
    assert path.stat().st_size < 4 * floats + 250_000  # nodes, shapes and names


@pytest.mark.slow
def test_onnx_without_grid_sample_in_two_runtimes(small_model, tmp_path, images):
    """In the lowest opset. Checked in onnxruntime by the export, and read by OpenVINO."""
    model = small_model("two-stage", num_feature_levels=2, num_decoder_layers=2)
    path = tmp_path / "detector.onnx"
    difference = export_model(model, path, size=CANVAS, batch_size=1, grid_sample=False, opset=17)
    assert difference.box < 1e-4
    onnx.checker.check_model(str(path), full_check=True)
    assert [opset.version for opset in onnx.load(path).opset_import if opset.domain == ""] == [17]
    assert "GridSample" not in {node.op_type for node in onnx.load(path).graph.node}
    assert list(troubles(onnx.load(path))) == []
    assert sorted(item.name for item in tmp_path.iterdir()) == ["detector.onnx"]
    assert_no_dead_weight(path, model)
    assert_same_detections(path, model, images[:1], runtime="openvino")
    with pytest.raises(ValueError, match=r"112x80 pixels.*takes 80x112"):
        load_exported(path).predict(images[2])


@pytest.mark.slow
def test_any_batch_and_size_as_program_and_onnx(small_model, tmp_path, images, monkeypatch):
    """Both are written from one trace, which takes as long as all that is done with it; reading a program does, too: the file that
    the export has checked is not read again."""
    model = small_model("one-stage", num_feature_levels=2)  # several levels: pieces of one tensor, whose sizes are symbols
    traced: dict = {}
    loaded: list[torch.export.ExportedProgram] = []
    records: dict[str, str] = {}

    def trace_once(*given):
        return traced.get("program") or traced.setdefault("program", trace(*given))

    def load_once(file, extra_files, load=torch.export.load):
        if not loaded:
            loaded.append(load(file, extra_files=extra_files))
            records.update(extra_files)
        extra_files.update(records)
        return loaded[0]

    monkeypatch.setattr(files, "trace", trace_once)
    monkeypatch.setattr(torch.export, "load", load_once)
    for name in ("detector.pt2", "detector.onnx"):
        export_model(model, tmp_path / name)
        assert_same_detections(tmp_path / name, model, images)
    weights = loaded[0].state_dict
    assert sum(tensor.numel() for tensor in weights.values()) == number_of_weights(model) + 2 * batch_norm_channels(model)
    assert_no_dead_weight(tmp_path / "detector.onnx", model)
    graph = onnx.load(tmp_path / "detector.onnx")
    assert [opset.version for opset in graph.opset_import if opset.domain == ""] == [20]
    assert "GridSample" in {node.op_type for node in graph.graph.node}
    axes = {item.name: [size.dim_param for size in item.type.tensor_type.shape.dim] for item in graph.graph.input}
    assert axes == {"images": ["batch", "", "height", "width"], "padding_mask": ["batch", "height", "width"]}
    assert [item.type.tensor_type.shape.dim[0].dim_param for item in graph.graph.output] == ["batch", "batch"]
    assert b"site-packages" not in graph.SerializeToString()
    names = next(item.value for item in graph.metadata_props if item.key == "names")
    assert names == "{0: 'cat', 1: 'Hündin', 2: 'bird'}"
    record = json.loads(next(item.value for item in graph.metadata_props if item.key == "deformable_detr"))
    assert record["metadata"]["categories"]["ids"] == [7, 3, 90]


@pytest.mark.slow
def test_openvino_with_the_best_inside(small_model, tmp_path, images):
    """Learned references are constants, which two decoder layers use; without a mask."""
    model = small_model("one-stage", num_feature_levels=2, num_decoder_layers=2)
    export_model(model, tmp_path / "detector.xml", size=CANVAS, batch_size=2, top_k=8, padding_mask=False)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["detector.bin", "detector.xml"]
    assert_same_detections(tmp_path / "detector.xml", model, images[:1])
    together = load_exported(tmp_path / "detector.xml")  # in several threads each gets its own image's
    shades = [np.full((*CANVAS, 3), shade, np.uint8) for shade in (0, 90, 250)]
    alone = [together.predict(shade, 0.0).xyxy.tolist() for shade in shades]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda index: together.predict(shades[index % 3], 0.0).xyxy.tolist(), range(12)))
    assert found == alone * 4
    assert pickle.loads(pickle.dumps(together)).predict(shades[1], 0.0).xyxy.tolist() == alone[1]
    every = together.predict(images[0], 0.0, top_k=20)  # there are eight in it, of whatever is asked for
    of_class = [together.predict(images[0], 0.0, top_k=20, classes=name).data["class_name"] for name in together.classes]
    assert sorted(every.data["class_name"]) == sorted(np.concatenate(of_class)) and len(every) == 8
    constants = [op for op in openvino.Core().read_model(tmp_path / "detector.xml").get_ops() if isinstance(op, Constant)]
    floats = sum(math.prod(op.shape) for op in constants if op.get_element_type() == openvino.Type.f32)
    weights = number_of_weights(model) - batch_norm_channels(model) + changed_by_what_follows_from_the_queries(model, batch=2)
    assert floats == pytest.approx(weights, abs=100)  # some biases, scalars: less than the smallest matrix
    content = bytearray((tmp_path / "detector.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "detector.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"detector\.bin is not what detector\.xml was written with"):
        load_exported(tmp_path / "detector.xml")


def test_preparation_inside(prepared, images):
    model, path = prepared
    session = onnxruntime.InferenceSession(path)
    scores, _, boxes = (np.asarray(output) for output in session.run(None, {"images": images[1][None]}))
    expected = Predictor(model, device="cpu").predict(images[1], 0.0, top_k=20)
    np.testing.assert_allclose(scores[0], expected.confidence, atol=1e-3)  # a pixel may be one grey level off
    assert boxes.shape == (1, 20, 4)
    with pytest.raises(ValueError, match="prepares images by itself"):
        load_exported(path)


def test_weights_from_a_file(small_model, tmp_path, images, caplog):
    """Whatever the settings of the process are meanwhile."""
    model = small_model("single-scale-dc5")
    save_weights(tmp_path / "weights.safetensors", model)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
        Detector(load_pretrained(tmp_path / "weights.safetensors"), device="cpu").export(
            tmp_path / "detector.pt2",
            size=(np.int64(CANVAS[0]), np.int64(CANVAS[1])),
            batch_size=np.int64(1),  # its record is JSON
        )
    assert_same_detections(tmp_path / "detector.pt2", model, images[:1])
    assert not caplog.messages  # its record is its own


def test_numbers_of_another_kind(small_model, tmp_path):
    with pytest.raises(TypeError, match=r"side 0 of size must be a whole number, not 80\.0"):
        export_model(small_model("single-scale"), tmp_path / "detector.pt2", size=(80.0, 112))  # type: ignore[arg-type]


def test_a_file_that_computes_something_else_is_not_kept(small_model, tmp_path, monkeypatch):
    def write_changed(path, program, form):
        weights = program.state_dict
        name = next(name for name in weights if "class_head" in name and name.endswith("bias"))
        weights[name] = torch.nn.Parameter(weights[name] + 1.0, requires_grad=False)  # not in place: the network shares it
        files.save_program(path, program, form)

    monkeypatch.setitem(files.WRITERS, ".pt2", write_changed)
    with pytest.raises(ParityError, match=r"scores differ by at most \d\.\de-02, boxes by \d\.\de[-+]\d\d of"):
        export_model(small_model("single-scale"), tmp_path / "detector.pt2", size=CANVAS, batch_size=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("detector.tflite", {}, "detector.tflite has .tflite"),
        ("detector", {}, "has none"),
        ("detector.onnx", {"size": (16, 640)}, "at least 33 pixels"),
        ("detector.onnx", {"top_k": 0}, "top_k must be at least 1"),
    ],
)
def test_mistakes_are_named(name, options, message, small_model, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(small_model("single-scale"), tmp_path / name, **options)


def test_foreign_and_missing_files(tmp_path):
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["a"], ["b"])],
            "graph",
            [onnx.helper.make_tensor_value_info("a", 1, [1])],
            [onnx.helper.make_tensor_value_info("b", 1, [1])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    torch.save({}, tmp_path / "weights.pt2")
    with pytest.raises(ValueError, match="not written by deformable-detr export"):
        load_exported(tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.onnx"):
        load_exported(tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match=r"weights\.pt2 is not a \.pt2"):
        load_exported(tmp_path / "weights.pt2")
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx"):
        load_exported(tmp_path / "nothing.onnx")
    with pytest.raises(ValueError, match="known are pt2, onnx, openvino"):
        load_exported(tmp_path / "broken.onnx", "tensorrt")


def edited(source: Path, target: Path, change) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def edit_record(**changes):
    def change(model):
        (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
        record = json.loads(entry.value)
        record["metadata"] |= changes
        entry.value = json.dumps(record)

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": {"names": ["cat"], "ids": [7]}}, "1 classes are named, but the network has 3"),
        ({"categories": {"names": ["a", "b", "c"], "ids": ["7", "3", "x"]}}, "ids: expected a list of int"),
        ({"eval_short_side": "80"}, "eval_short_side: expected int, got '80'"),
        ({"eval_short_side": 0}, "eval_short_side must be at least 1"),
        ({"nms_iou": 7}, r"nms_iou must be in \(0, 1\]"),
    ],
)
def test_a_record_that_was_changed_is_refused(prepared, tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"e\.onnx: its record of the detector cannot be read .*{message}"):
        ExportedNetwork(edited(prepared[1], tmp_path / "e.onnx", edit_record(**changes)))


def test_a_record_of_another_network_is_said(prepared, small_model, tmp_path, caplog):
    """Of a file of the same form: with other weights, its classes and image sizes are those of another detector."""
    ExportedNetwork(prepared[1])
    assert not caplog.messages

    def change(model):
        bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [3])
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))

    path = edited(prepared[1], tmp_path / "e.onnx", change)
    for runtime in ("onnx", "openvino"):
        ExportedNetwork(path, runtime)
    assert ["e.onnx: its network is not the one that its record" in message for message in caplog.messages] == [True, True]


def test_outputs_in_another_order_and_of_another_type(prepared, images, tmp_path):
    """As other tools leave them: the names tell which is which; where they have others, their order does."""

    def change(model):
        ports = {port.name: port for port in model.graph.output}
        del model.graph.output[:]
        model.graph.output.extend([ports["boxes"], ports["labels"], ports["scores"]])

    image = torch.from_numpy(images[1])[None]
    paths = (prepared[1], edited(prepared[1], tmp_path / "e.onnx", change))
    expected, found = (ExportedNetwork(path)._run([image.numpy()]) for path in paths)
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))

    cut = edited(prepared[1], tmp_path / "cut.onnx", lambda model: model.graph.output.pop())
    with pytest.raises(ValueError, match="where its record says scores, labels, boxes: it was changed"):
        ExportedNetwork(cut)


def test_shapes_that_the_record_does_not_say(prepared, images):
    """A record of other classes, names that were swapped, a .pt2 with another number of outputs."""
    network, image = ExportedNetwork(prepared[1]), torch.from_numpy(images[1])
    with pytest.raises(ValueError, match=r"prepared\.onnx does not take what its record says"):
        network._run([image.numpy()])  # no batch
    outputs = network._run([image[None].numpy()])
    for wrong in (outputs[:2], outputs[::-1]):
        network._run = lambda arrays, wrong=wrong: wrong
        with pytest.raises(ValueError, match=r"prepared\.onnx gives .* where its record says scores, labels, boxes of 3 classes"):
            network._detect(image.permute(2, 0, 1)[None].float())
