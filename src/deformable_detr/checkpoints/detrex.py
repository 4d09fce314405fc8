"""The layout of detrex, in only: detectron2's names for the backbone, lists of attentions in the transformer."""

from deformable_detr.checkpoints.keymap import KeyMap
from deformable_detr.checkpoints.mmdet import add_neck_biases, attention_list_rules
from deformable_detr.checkpoints.prediction_heads import fold_heads
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.tensor_files import TensorFile
from deformable_detr.checkpoints.weights import Weights, translate

NAME = "detrex"

_STAGE_RULES = [
    rule
    for stage in range(1, 5)
    for rule in (
        (f"backbone.body.layer{stage}.{{b}}.bn{{n}}.{{rest}}", f"backbone.res{stage + 1}.{{b}}.conv{{n}}.norm.{{rest}}"),
        (f"backbone.body.layer{stage}.{{b}}.conv{{n}}.weight", f"backbone.res{stage + 1}.{{b}}.conv{{n}}.weight"),
        (f"backbone.body.layer{stage}.{{b}}.downsample.1.{{rest}}", f"backbone.res{stage + 1}.{{b}}.shortcut.norm.{{rest}}"),
        (f"backbone.body.layer{stage}.{{b}}.downsample.0.weight", f"backbone.res{stage + 1}.{{b}}.shortcut.weight"),
    )
]

KEYS = KeyMap(
    [
        ("backbone.body.bn1.{rest}", "backbone.stem.conv1.norm.{rest}"),
        ("backbone.body.conv1.weight", "backbone.stem.conv1.weight"),
        *_STAGE_RULES,
        *((f"neck.projections.{level}.0.{{rest}}", f"neck.convs.{level}.conv.{{rest}}") for level in range(3)),
        *((f"neck.projections.{level}.1.{{rest}}", f"neck.convs.{level}.norm.{{rest}}") for level in range(3)),
        *((f"neck.projections.{level}.0.{{rest}}", f"neck.extra_convs.{level - 3}.conv.{{rest}}") for level in range(3, 8)),
        *((f"neck.projections.{level}.1.{{rest}}", f"neck.extra_convs.{level - 3}.norm.{{rest}}") for level in range(3, 8)),
        ("query_source.query_embed.weight", "query_embedding.weight"),
        ("class_heads.{p}.{rest}", "class_embed.{p}.{rest}"),
        ("decoder.box_heads.{p}.{rest}", "bbox_embed.{p}.{rest}"),
        *attention_list_rules("transformer."),
    ],
    copies=[
        ("decoder.box_heads.{p}.{rest}", "transformer.decoder.bbox_embed.{p}.{rest}"),
        ("class_heads.{p}.{rest}", "transformer.decoder.class_embed.{p}.{rest}"),
    ],
    aliases=[("query_source.memory_norm.{rest}", "transformer.enc_outpout_norm.{rest}")],  # misspelt so in some versions
)


def read(file: TensorFile) -> Weights:
    """Weights under our names."""
    weights = translate(file.tensors, KEYS, Report(NAME))
    copied = any(name.startswith("transformer.decoder.bbox_embed.") for name in file.tensors)
    fold_heads(weights, box_refinement=True if copied else None)
    add_neck_biases(weights)
    return weights
