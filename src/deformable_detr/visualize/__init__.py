"""Images with boxes, and everything that happens inside the network on the way to them.

`look_inside` gives the data of one forward pass; each `view_…` function gives data with a figure (`.figure`, `.save(path)`).
"""

from deformable_detr.visualize.assignment import view_assignment
from deformable_detr.visualize.explanation import Explanation, explain
from deformable_detr.visualize.inside import Detection, Inside, LayerSampling, Proposals, look_inside
from deformable_detr.visualize.journey import view_journey
from deformable_detr.visualize.level_attention import view_level_attention
from deformable_detr.visualize.matching import Assignments, record_matching, recording, view_matching
from deformable_detr.visualize.proposals import view_proposals
from deformable_detr.visualize.query_usage import view_query_usage
from deformable_detr.visualize.refinement import view_refinement
from deformable_detr.visualize.sampling import view_sampling
from deformable_detr.visualize.weight_changes import view_weight_changes

__all__ = [
    "Assignments",
    "Detection",
    "Explanation",
    "Inside",
    "LayerSampling",
    "Proposals",
    "explain",
    "look_inside",
    "record_matching",
    "recording",
    "view_assignment",
    "view_journey",
    "view_level_attention",
    "view_matching",
    "view_proposals",
    "view_query_usage",
    "view_refinement",
    "view_sampling",
    "view_weight_changes",
]
