"""The layout of detrex, in only: detectron2's names for the backbone, lists of attentions in the transformer."""

from deformable_detr.checkpoints.keymap import KeyMap
from deformable_detr.checkpoints.mmdet import attention_list_rules, count_stages, finish, neck_rules
from deformable_detr.checkpoints.official import COPIES, has_copies
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.swin import count_norms
from deformable_detr.checkpoints.swin import rules as swin_rules
from deformable_detr.checkpoints.tensor_files import TensorFile
from deformable_detr.checkpoints.weights import Weights, translate

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

_RULES = [
    ("backbone.body.bn1.{rest}", "backbone.stem.conv1.norm.{rest}"),
    ("backbone.body.conv1.weight", "backbone.stem.conv1.weight"),
    *_STAGE_RULES,
    ("query_source.query_embed.weight", "query_embedding.weight"),
    ("class_heads.{p}.{rest}", "class_embed.{p}.{rest}"),
    ("decoder.box_heads.{p}.{rest}", "bbox_embed.{p}.{rest}"),
    ("denoising.label_embed.weight", "label_enc.weight"),
    *attention_list_rules("transformer."),
]
_ALIASES = [("query_source.memory_norm.{rest}", "transformer.enc_outpout_norm.{rest}")]
"""A name misspelt in some versions."""


def read(file: TensorFile) -> Weights:
    """Weights under our names."""
    swin = swin_rules("backbone.", count_norms(file.tensors, "backbone."))
    keys = KeyMap([*swin, *_RULES, *neck_rules(count_stages(file.tensors), "norm")], COPIES, _ALIASES)
    return finish(translate(file.tensors, keys, Report("detrex")), has_copies(file))
