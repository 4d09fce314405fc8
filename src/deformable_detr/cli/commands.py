"""The table of commands. Each has the file of its name in this folder, which is imported only when the command is called."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deformable_detr.schema import known

if TYPE_CHECKING:
    from deformable_detr.cli.command import Command

COMMANDS = {
    "doctor": "Examine a dataset before training: what is wrong, where, what to do; --fix repairs a copy.",
    "train": "Train on your images: COCO, YOLO or Pascal VOC.",
    "dashboard": "Watch a training in the browser: curves, newest predictions, advice, time left.",
    "evaluate": "Measure how good a trained detector is: AP and AR, and a report on its errors.",
    "compare": "Compare two detectors on the same images: AP with its certainty, classes, images that got better or worse.",
    "predict": "Detect objects in images and videos; draw them, write them as JSON.",
    "label": "Propose annotations for new images, to correct in any tool; the most helpful images first.",
    "preview": "Draw what the model sees in training: augmented images with their boxes.",
    "replay": "Explain a training step whose numbers went wrong (NaN, infinity).",
    "serve": "Answer images over HTTP with JSON or drawings.",
    "describe": "Show the way of one image through the network, stage by stage.",
    "explain": "Explain one detection: a page of the sampling points and boxes of its query, layer by layer.",
    "explore": "See in the browser where a detector looks: click a box, a point, a query.",
    "demo": "Generate images, train a small detector on them, evaluate, draw: all in a few minutes.",
    "benchmark": "Time the operator, the model, a training step or reading images on this machine, beside peers.",
    "convert": "Convert weights from and to other projects' formats.",
    "export": "Write a detector to a file that runs without this package: .pt2, ONNX, OpenVINO.",
}
"""What each command does, in a line."""


def find_command(name: str) -> "Command[Any]":
    """The command of this name.

    Raises:
        ValueError: there is none; the message says which one was probably meant.
    """
    return import_module(f"deformable_detr.cli.{known(name, 'command', COMMANDS)}").COMMAND
