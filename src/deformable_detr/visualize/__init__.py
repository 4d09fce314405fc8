"""Images with boxes, what happens inside the model, and the pages and figures that show it.

`drawing` draws boxes on images; `inside` looks into one forward pass (`look_inside` gives the data, each `view_…` function data
with a figure); `pages` writes web pages; `explorer` serves one. Each is imported when it is first used: who draws boxes does not
wait for figures.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deformable_detr.visualize.drawing import draw_detections, draw_grid, save_drawing, truth_detections
    from deformable_detr.visualize.inside import (
        Assignments,
        Description,
        Detection,
        Inside,
        LayerSampling,
        Proposals,
        describe,
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
    from deformable_detr.visualize.pages import Explanation, Report, explain, write_doctor_page

__all__ = [
    "Assignments",
    "Description",
    "Detection",
    "Explanation",
    "Inside",
    "LayerSampling",
    "Proposals",
    "Report",
    "describe",
    "draw_detections",
    "draw_grid",
    "explain",
    "look_inside",
    "record_matching",
    "recording",
    "save_drawing",
    "truth_detections",
    "view_assignment",
    "view_journey",
    "view_level_attention",
    "view_matching",
    "view_proposals",
    "view_query_usage",
    "view_refinement",
    "view_sampling",
    "view_weight_changes",
    "write_doctor_page",
]

_ROOMS = ("drawing", "inside", "pages")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        rooms = (import_module(f"{__name__}.{room}") for room in _ROOMS)
        return next(getattr(room, name) for room in rooms if hasattr(room, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
