"""Names and shapes of the published files of DINO and H-DETR, written apart from the package's own tables, with random weights."""

import torch

WIDTH, FFN, CLASSES, QUERIES, LAYERS, POINTS = 64, 48, 7, 12, 2, 4
CHANNELS = (16, 32, 64, 128)
"""Of the stages: a ResNet-18 with a quarter of its width, or a Swin Transformer with a sixth of Swin-T's."""
DEPTHS, HEADS, WINDOW = (1, 2, 1, 1), (1, 2, 2, 4), 3
"""Of the Swin Transformer."""


class Names:
    """Collects the names and shapes of a layout."""

    def __init__(self):
        self.shapes = {}

    def linear(self, name, out_features, in_features):
        self.shapes |= {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}

    def norm(self, name, channels, *more):
        self.shapes |= {f"{name}.{part}": (channels,) for part in ("weight", "bias", *more)}

    def conv(self, name, *shape):
        self.shapes[f"{name}.weight"] = shape

    def attention(self, name, levels):
        self.linear(f"{name}.sampling_offsets", 8 * levels * POINTS * 2, WIDTH)
        self.linear(f"{name}.attention_weights", 8 * levels * POINTS, WIDTH)
        self.linear(f"{name}.value_proj", WIDTH, WIDTH)
        self.linear(f"{name}.output_proj", WIDTH, WIDTH)

    def self_attention(self, name):
        self.shapes |= {f"{name}.in_proj_weight": (3 * WIDTH, WIDTH), f"{name}.in_proj_bias": (3 * WIDTH,)}
        self.linear(f"{name}.out_proj", WIDTH, WIDTH)

    def box_head(self, *names):
        for name, out_features in zip(names, (WIDTH, WIDTH, 4), strict=True):
            self.linear(name, out_features, WIDTH)

    def resnet(self, prefix, stem=("conv1", "bn1"), stage="layer{}", norm="bn{}", shortcut=("downsample.0", "downsample.1"), add=0):
        parts = ("running_mean", "running_var")
        self.conv(f"{prefix}{stem[0]}", 64, 3, 7, 7)
        self.norm(f"{prefix}{stem[1]}", 64, *parts)
        for index, channels in enumerate(CHANNELS, start=1):
            before = 64 if index == 1 else channels // 2
            for block in range(2):
                name = f"{prefix}{stage.format(index + add)}.{block}"
                for number, inputs in ((1, channels if block else before), (2, channels)):
                    self.conv(f"{name}.conv{number}", channels, inputs, 3, 3)
                    self.norm(f"{name}.{norm.format(number)}", channels, *parts)
                if block == 0 and before != channels:
                    self.conv(f"{name}.{shortcut[0]}", channels, before, 1, 1)
                    self.norm(f"{name}.{shortcut[1]}", channels, *parts)

    def swin(self, prefix, outputs, mmdet=False):
        """The original's names, or mmdetection's; `outputs` of the last stages have norms."""
        self.conv(f"{prefix}patch_embed.{'projection' if mmdet else 'proj'}", CHANNELS[0], 3, 4, 4)
        self.shapes[f"{prefix}patch_embed.{'projection' if mmdet else 'proj'}.bias"] = (CHANNELS[0],)
        self.norm(f"{prefix}patch_embed.norm", CHANNELS[0])
        for stage, channels in enumerate(CHANNELS):
            at = f"{prefix}{'stages' if mmdet else 'layers'}.{stage}"
            for block in range(DEPTHS[stage]):
                name = f"{at}.blocks.{block}"
                attention = f"{name}.attn.w_msa" if mmdet else f"{name}.attn"
                self.norm(f"{name}.norm1", channels)
                self.norm(f"{name}.norm2", channels)
                self.linear(f"{attention}.qkv", 3 * channels, channels)
                self.linear(f"{attention}.proj", channels, channels)
                self.shapes[f"{attention}.relative_position_bias_table"] = ((2 * WINDOW - 1) ** 2, HEADS[stage])
                self.shapes[f"{attention}.relative_position_index"] = (WINDOW**2, WINDOW**2)
                self.linear(f"{name}.{'ffn.layers.0.0' if mmdet else 'mlp.fc1'}", 4 * channels, channels)
                self.linear(f"{name}.{'ffn.layers.1' if mmdet else 'mlp.fc2'}", channels, 4 * channels)
            if stage < 3:
                self.shapes[f"{at}.downsample.reduction.weight"] = (2 * channels, 4 * channels)
                self.norm(f"{at}.downsample.norm", 4 * channels)
            if stage >= 4 - outputs:
                self.norm(f"{prefix}norm{stage}", channels)

    def random(self):
        generator = torch.Generator().manual_seed(3)
        return {name: _tensor(name, shape, generator) for name, shape in self.shapes.items()}


def position_index():
    """Row of the table for each pair of places of a window, by its definition."""
    places = [(y, x) for y in range(WINDOW) for x in range(WINDOW)]
    return torch.tensor(
        [[(y - v + WINDOW - 1) * (2 * WINDOW - 1) + x - u + WINDOW - 1 for v, u in places] for y, x in places], dtype=torch.int64
    )


def _tensor(name, shape, generator):
    if name.endswith("relative_position_index"):
        return position_index()
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return torch.rand(shape, generator=generator) * 0.6 + 0.7
    scale = (
        2.0
        if name.endswith("sampling_offsets.bias")
        else 0.2
        if len(shape) == 1
        else (shape[-1] * (shape[2] if len(shape) > 2 else 1)) ** -0.5
    )
    return torch.randn(shape, generator=generator) * scale


def _inputs(levels):
    """Channels and kernel of each level of the neck, and how many come from the backbone."""
    stages = CHANNELS[1:] if levels == 4 else CHANNELS
    return [*((channels, 1) for channels in stages), (CHANNELS[-1], 3)], len(stages)


def _official_neck(names, levels):
    for level, (channels, kernel) in enumerate(_inputs(levels)[0]):
        names.conv(f"input_proj.{level}.0", WIDTH, channels, kernel, kernel)
        names.shapes[f"input_proj.{level}.0.bias"] = (WIDTH,)
        names.norm(f"input_proj.{level}.1", WIDTH)


def official_dino(levels=4, *, swin=False):
    names = Names()
    if swin:
        names.swin("backbone.0.", levels - 1)
    else:
        names.resnet("backbone.0.body.")
    _official_neck(names, levels)
    names.shapes |= {"transformer.level_embed": (levels, WIDTH), "label_enc.weight": (CLASSES + 1, WIDTH)}
    names.shapes["transformer.tgt_embed.weight"] = (QUERIES, WIDTH)
    _layers(names, levels, **OFFICIAL)
    names.linear("transformer.enc_output", WIDTH, WIDTH)
    names.norm("transformer.enc_output_norm", WIDTH)
    names.norm("transformer.decoder.norm", WIDTH)
    names.linear("transformer.decoder.ref_point_head.layers.0", WIDTH, 2 * WIDTH)
    names.linear("transformer.decoder.ref_point_head.layers.1", WIDTH, WIDTH)
    names.linear("transformer.enc_out_class_embed", CLASSES, WIDTH)
    names.box_head(*(f"transformer.enc_out_bbox_embed.layers.{k}" for k in range(3)))
    names.linear("class_embed.0", CLASSES, WIDTH)
    names.box_head(*(f"bbox_embed.0.layers.{k}" for k in range(3)))
    tensors = names.random()
    for name in [name for name in tensors if name.startswith(("class_embed.0.", "bbox_embed.0."))]:
        kind, _, rest = name.split(".", 2)
        for layer in range(LAYERS):
            tensors[f"{kind}.{layer}.{rest}"] = tensors[f"transformer.decoder.{kind}.{layer}.{rest}"] = tensors[name]
    return tensors


OFFICIAL = {
    "prefix": "transformer.",
    "attention": {"encoder": "self_attn", "decoder": "cross_attn"},
    "own": "self_attn",
    "ffn": ("linear1", "linear2"),
    "norms": "norm{}",
    "first": 1,
}
MMDET = {
    **OFFICIAL,
    "prefix": "",
    "own": "self_attn.attn",
    "ffn": ("ffn.layers.0.0", "ffn.layers.1"),
    "norms": "norms.{}",
    "first": 0,
}
DETREX = {
    **MMDET,
    "prefix": "transformer.",
    "attention": {"encoder": "attentions.0", "decoder": "attentions.1"},
    "own": "attentions.0.attn",
    "ffn": ("ffns.0.layers.0.0", "ffns.0.layers.1"),
}


def _layers(names, levels, *, prefix, attention, own, ffn, norms, first):
    """The layers of both stacks: deformable attention, the decoder's own, both linear maps, norms numbered from `first`."""
    for kind, count in (("encoder", 2), ("decoder", 3)):
        for layer in range(LAYERS):
            name = f"{prefix}{kind}.layers.{layer}"
            names.attention(f"{name}.{attention[kind]}", levels)
            if kind == "decoder":
                names.self_attention(f"{name}.{own}")
            names.linear(f"{name}.{ffn[0]}", FFN, WIDTH)
            names.linear(f"{name}.{ffn[1]}", WIDTH, FFN)
            for number in range(first, first + count):
                names.norm(f"{name}.{norms.format(number)}", WIDTH)


def official_hdetr(rows=QUERIES + 20, *, swin=False):
    names = Names()
    if swin:
        names.swin("backbone.0.body.", 3)
    else:
        names.resnet("backbone.0.body.")
    _official_neck(names, 4)
    names.shapes["transformer.level_embed"] = (4, WIDTH)
    if rows:
        names.shapes["query_embed.weight"] = (rows, WIDTH)
    _layers(names, 4, **OFFICIAL)
    names.linear("transformer.enc_output", WIDTH, WIDTH)
    names.norm("transformer.enc_output_norm", WIDTH)
    names.linear("transformer.pos_trans", 2 * WIDTH, 2 * WIDTH)
    names.norm("transformer.pos_trans_norm", 2 * WIDTH)
    for head in range(LAYERS + 1):
        names.linear(f"class_embed.{head}", CLASSES, WIDTH)
        names.box_head(*(f"bbox_embed.{head}.layers.{k}" for k in range(3)))
    tensors = names.random()
    return tensors | {f"transformer.decoder.{n}": t for n, t in tensors.items() if n.startswith(("class_embed.", "bbox_embed."))}


def mmdet_dino(levels=4, *, swin=False):
    names = Names()
    if swin:
        names.swin("backbone.", levels - 1, mmdet=True)
    else:
        names.resnet("backbone.")
    inputs, stages = _inputs(levels)
    for level, (channels, kernel) in enumerate(inputs):
        name = f"neck.convs.{level}" if level < stages else f"neck.extra_convs.{level - stages}"
        names.conv(f"{name}.conv", WIDTH, channels, kernel, kernel)
        names.norm(f"{name}.gn", WIDTH)
    names.shapes |= {"level_embed": (levels, WIDTH), "dn_query_generator.label_embedding.weight": (CLASSES, WIDTH)}
    names.shapes["query_embedding.weight"] = (QUERIES, WIDTH)
    _layers(names, levels, **MMDET)
    names.linear("memory_trans_fc", WIDTH, WIDTH)
    names.norm("memory_trans_norm", WIDTH)
    names.norm("decoder.norm", WIDTH)
    names.linear("decoder.ref_point_head.layers.0", WIDTH, 2 * WIDTH)
    names.linear("decoder.ref_point_head.layers.1", WIDTH, WIDTH)
    for head in range(LAYERS + 1):
        names.linear(f"bbox_head.cls_branches.{head}", CLASSES, WIDTH)
        names.box_head(*(f"bbox_head.reg_branches.{head}.{k}" for k in (0, 2, 4)))
    return names.random()


def detrex_file(dino, levels=4, *, swin=False, rows=1500 + QUERIES):
    names = Names()
    if swin:
        names.swin("backbone.", levels - 1)
    else:
        names.resnet("backbone.", ("stem.conv1", "stem.conv1.norm"), "res{}", "conv{}.norm", ("shortcut", "shortcut.norm"), add=1)
    inputs, stages = _inputs(levels)
    for level, (channels, kernel) in enumerate(inputs):
        name = f"neck.convs.{level}" if level < stages else f"neck.extra_convs.{level - stages}"
        names.conv(f"{name}.conv", WIDTH, channels, kernel, kernel)
        names.shapes[f"{name}.conv.bias"] = (WIDTH,)
        names.norm(f"{name}.norm", WIDTH)
    names.shapes["transformer.level_embeds"] = (levels, WIDTH)
    _layers(names, levels, **DETREX)
    names.linear("transformer.enc_output", WIDTH, WIDTH)
    names.norm("transformer.enc_output_norm", WIDTH)
    if dino:
        names.shapes |= {"label_enc.weight": (CLASSES, WIDTH), "transformer.tgt_embed.weight": (QUERIES, WIDTH)}
        names.norm("transformer.decoder.norm", WIDTH)
        names.linear("transformer.decoder.ref_point_head.layers.0", WIDTH, 2 * WIDTH)
        names.linear("transformer.decoder.ref_point_head.layers.1", WIDTH, WIDTH)
    else:
        names.shapes["query_embedding.weight"] = (rows, WIDTH)
        names.linear("transformer.pos_trans", 2 * WIDTH, 2 * WIDTH)
        names.norm("transformer.pos_trans_norm", 2 * WIDTH)
    for head in range(LAYERS + 1):
        names.linear(f"class_embed.{head}", CLASSES, WIDTH)
        names.box_head(*(f"bbox_embed.{head}.layers.{k}" for k in range(3)))
    tensors = names.random()
    return tensors | {f"transformer.decoder.{n}": t for n, t in tensors.items() if n.startswith(("class_embed.", "bbox_embed."))}
