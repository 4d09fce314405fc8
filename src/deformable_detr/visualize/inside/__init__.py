"""Inside the model: what one forward pass does with an image, and figures of it.

`look_inside` gives the data of one forward pass; each `view_…` function gives data with a figure (`.figure`, `.save(path)`).
"""

from deformable_detr.visualize.inside.assignment import view_assignment
from deformable_detr.visualize.inside.description import Description, describe
from deformable_detr.visualize.inside.inside import Detection, Inside, LayerSampling, Proposals
from deformable_detr.visualize.inside.journey import view_journey
from deformable_detr.visualize.inside.level_attention import view_level_attention
from deformable_detr.visualize.inside.look import look_inside
from deformable_detr.visualize.inside.matching import Assignments, record_matching, recording, view_matching
from deformable_detr.visualize.inside.proposals import view_proposals
from deformable_detr.visualize.inside.query_usage import view_query_usage
from deformable_detr.visualize.inside.refinement import view_refinement
from deformable_detr.visualize.inside.sampling import view_sampling
from deformable_detr.visualize.inside.weight_changes import view_weight_changes

__all__ = [
    "Assignments",
    "Description",
    "Detection",
    "Inside",
    "LayerSampling",
    "Proposals",
    "describe",
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
