"""Settings → network: the only file of the model that reads a `ModelConfig`."""

from functools import partial
from typing import Any

import torch
from torch import nn

from deformable_detr.config import Metadata, ModelConfig
from deformable_detr.model.backbone import Backbone
from deformable_detr.model.decoder import (
    DecoderLayer,
    DeformableDecoder,
    given_position,
    keep_reference,
    look_forward_twice,
    no_bias,
    refine_boxes,
)
from deformable_detr.model.deformable_attention import MultiScaleDeformableAttention
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.denoising import ContrastiveDenoising, NoDenoising
from deformable_detr.model.encoder import DeformableEncoder, EncoderLayer, FeedForward
from deformable_detr.model.flatten import FlattenLevels
from deformable_detr.model.heads import BoxHead, ClassHeads, class_head
from deformable_detr.model.neck import ChannelMapper
from deformable_detr.model.normed_backbone import NormedBackbone
from deformable_detr.model.plain_backbone import PlainBackbone, SimpleFeaturePyramid, is_plain
from deformable_detr.model.position_encoding import SinePositionEncoding
from deformable_detr.model.position_mlp import PositionMLP
from deformable_detr.model.pyramid import PaddedCanvas, SeparateImages
from deformable_detr.model.queries import (
    AnchoredProposals,
    EncoderProposals,
    LearnedQueries,
    MixedProposals,
    Proposals,
    all_positions,
    best_class,
    objectness,
    take,
)
from deformable_detr.model.relation import PositionRelation
from deformable_detr.model.suppressor import NoSuppressor, Suppressor
from deformable_detr.presets import model_preset


@torch.inference_mode(False)  # its weights can be trained wherever it is built
def build_model(preset: str | ModelConfig = "r50", **overrides: Any) -> DeformableDETR:
    """Build a Deformable DETR with fresh weights (and a pretrained backbone, unless that is switched off).

    Args:
        preset: a name from `deformable_detr.presets`, or settings of one's own.
        overrides: single settings of `ModelConfig`, such as `num_classes=3` or `pretrained_backbone=False`.

    Raises:
        ValueError: an unknown preset or setting, or settings that do not go together.
        ConnectionError: the backbone's weights cannot be downloaded; the message says how to go on.
    """
    config = model_preset(preset, **overrides) if isinstance(preset, str) else preset.replace(**overrides)
    backbone = _backbone(config)
    return DeformableDETR(
        backbone=backbone,
        neck=_neck(config, backbone),
        canvas=PaddedCanvas() if config.original_padding else SeparateImages(),
        flatten=_flatten(config),
        encoder=DeformableEncoder([_encoder_layer(config) for _ in range(config.num_encoder_layers)]),
        query_source=_query_source(config),
        decoder=_decoder(config),
        class_heads=ClassHeads([class_head(config.hidden_dim, config.num_classes) for _ in range(_num_heads(config))]),
        suppressor=_suppressor(config),
        denoising=_denoising(config),
        metadata=Metadata(model=config),
    )


def _backbone(config: ModelConfig) -> Backbone:
    kind = PlainBackbone if is_plain(config.backbone) else NormedBackbone if config.backbone_norm else Backbone
    return kind(
        config.backbone,
        num_levels=min(config.num_feature_levels, config.backbone_levels),
        pretrained=config.pretrained_backbone,
        frozen_stages=config.frozen_backbone_stages,
        freeze_batch_norm=config.freeze_batch_norm,
        dilation=config.dilation,
        options=config.backbone_options,
    )


def _neck(config: ModelConfig, backbone: Backbone) -> ChannelMapper:
    if not isinstance(backbone, PlainBackbone):
        return ChannelMapper(backbone.channels, config.hidden_dim, config.num_feature_levels)
    pyramid = SimpleFeaturePyramid(backbone.channels[0], min(config.num_feature_levels, config.backbone_levels))
    return ChannelMapper(pyramid.channels, config.hidden_dim, config.num_feature_levels, pyramid)


def _num_heads(config: ModelConfig) -> int:
    """Without refinement one class head and one box head serve all layers."""
    return config.num_decoder_layers if config.box_refinement and not config.shared_heads else 1


def _flatten(config: ModelConfig) -> FlattenLevels:
    position = SinePositionEncoding(config.hidden_dim, temperature=config.position_temperature, offset=config.position_offset)
    return FlattenLevels(config.hidden_dim, config.num_feature_levels, position_encoding=position, proposals=config.two_stage)


def _attention(config: ModelConfig, num_points: int) -> MultiScaleDeformableAttention:
    return MultiScaleDeformableAttention(config.hidden_dim, config.num_heads, config.num_feature_levels, num_points)


def _encoder_layer(config: ModelConfig) -> EncoderLayer:
    ffn = FeedForward(config.hidden_dim, config.ffn_dim, config.dropout)
    return EncoderLayer(_attention(config, config.num_encoder_points), ffn, config.hidden_dim, config.dropout)


def _decoder_layer(config: ModelConfig) -> DecoderLayer:
    ffn = FeedForward(config.hidden_dim, config.ffn_dim, config.dropout)
    attention = _attention(config, config.num_decoder_points)
    return DecoderLayer(attention, ffn, config.hidden_dim, config.num_heads, config.dropout)


def _decoder(config: ModelConfig) -> DeformableDecoder:
    first_size_bias = 0.0 if config.two_stage else -2.0  # two-stage references are boxes already
    box_heads = [BoxHead(config.hidden_dim, 0.0 if index else first_size_bias) for index in range(_num_heads(config))]
    layers = [_decoder_layer(config) for _ in range(config.num_decoder_layers)]
    update_boxes = keep_reference
    if config.box_refinement:
        update_boxes = look_forward_twice if config.look_forward_twice else refine_boxes
    output_eps = config.logit_eps if config.output_eps is None else config.output_eps
    return DeformableDecoder(
        layers,
        box_heads,
        update_boxes=partial(update_boxes, eps=config.logit_eps, output_eps=output_eps),
        norm=nn.LayerNorm(config.hidden_dim) if config.decoder_norm else None,
        position_mlp=PositionMLP(config.hidden_dim) if config.query_position == "reference" else given_position,
        relation=PositionRelation(config.num_heads) if config.relation_bias else no_bias,
    )


def _query_source(config: ModelConfig) -> nn.Module:
    if not config.two_stage:
        return LearnedQueries(config.num_queries, config.hidden_dim)
    kinds: dict[tuple[str, str], type[Proposals]] = {
        ("proposal", "proposal"): EncoderProposals,
        ("learned", "proposal"): MixedProposals,
        ("learned", "reference"): AnchoredProposals,
    }
    return kinds[config.query_content, config.query_position](
        config.num_queries,
        config.hidden_dim,
        class_head(config.hidden_dim, config.num_classes),
        BoxHead(config.hidden_dim),
        score=best_class if config.proposal_classes else objectness,
        trained=take if config.proposal_loss == "selected" else all_positions,
        padding_last=not config.original_padding,
        one_to_many_queries=config.one_to_many_queries,
    )


def _suppressor(config: ModelConfig) -> nn.Module:
    if not config.suppressor:
        return NoSuppressor()
    ffn = FeedForward(config.hidden_dim, config.ffn_dim, config.dropout)
    return Suppressor(ffn, config.hidden_dim)


def _denoising(config: ModelConfig) -> nn.Module:
    if not config.denoising_queries:
        return NoDenoising()
    return ContrastiveDenoising(
        config.num_classes,
        config.hidden_dim,
        num_queries=config.denoising_queries,
        label_noise=config.label_noise,
        box_noise=config.box_noise,
        eps=config.logit_eps,
        first_layer=config.denoising_first_layer,
    )
