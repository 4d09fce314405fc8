"""Images with boxes, what happens inside the model, and the pages and figures that show it.

`drawing` draws boxes on images; `inside` looks into one forward pass (`look_inside` gives the data, each `view_…` function data
with a figure); `pages` writes web pages; `explorer` serves one.
"""

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
