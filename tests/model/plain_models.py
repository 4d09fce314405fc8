"""DINO's and H-DETR's query selection, denoising and decoder once more, as the papers' own code arranges them.

All queries stand in one sequence, denoising queries first, and a mask says who sees whom; the attention is written out. Only
backbone, neck, flattening, encoder and the deformable attention are those of the model, which other tests cover.
"""

import math

import torch
from torch import nn


def logit(x, eps):
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def plain_sine(x, features, temperature=10000):
    """One coordinate `[...]` in [0, 1] → `[..., features]`."""
    columns = [x * 2 * math.pi / temperature ** (2 * (i // 2) / features) for i in range(features)]
    return torch.stack([column.sin() if i % 2 == 0 else column.cos() for i, column in enumerate(columns)], dim=-1)


def plain_attention(layer: nn.MultiheadAttention, place, content, hidden_from):
    """Multi-head attention by its definition; `hidden_from[i, j]`: i may not see j."""
    batch, length, width = place.shape
    heads, size = layer.num_heads, width // layer.num_heads
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    query, key, value = (
        (x @ weight.T + bias).view(batch, length, heads, size).transpose(1, 2)
        for x, weight, bias in zip((place, place, content), weights, biases, strict=True)
    )
    scores = (query @ key.transpose(2, 3) / math.sqrt(size)).masked_fill(hidden_from, -math.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
    return layer.out_proj(mixed)


def plain_denoising(targets, noise, groups, num_classes, box_noise, eps):
    """Loops over images, groups and objects: labels (-1 in the padding) and box logits of all denoising queries."""
    most, total = max(len(t) for t in targets), sum(len(t) for t in targets)
    labels = torch.full((len(targets), 2 * groups * most), -1)
    boxes = torch.zeros(len(targets), 2 * groups * most, 4)
    changed = [row for row in range(2 * groups * total) if noise.label_p[row] < 0.25]
    start = 0
    for image, target in enumerate(targets):
        for copy in range(2 * groups):
            for index in range(len(target)):
                row = copy * total + start + index
                label = target.labels[index].item()
                if row in changed:
                    label = noise.label_new[changed.index(row)].item()
                cx, cy, w, h = target.boxes[index].tolist()
                corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                for side in range(4):
                    part = noise.box_part[row, side].item() + copy % 2
                    moved = corners[side] + noise.box_sign[row, side].item() * part * (w, h)[side % 2] / 2 * box_noise
                    corners[side] = min(1.0, max(0.0, moved))
                left, top, right, bottom = corners
                box = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
                labels[image, copy * most + index] = label
                boxes[image, copy * most + index] = logit(box, eps)
        start += len(target)
    return labels, boxes


def plain_forward(model, batch, targets=None, noise=None, groups=0):
    """All predictions by their names, from the model's weights."""
    config = model.metadata.model
    pyramid = model.canvas(lambda images: model.neck(model.backbone(images)), batch)
    flat = model.flatten(pyramid)
    memory = model.encoder(flat)
    source, decoder, dim, eps = model.query_source, model.decoder, config.hidden_dim, config.logit_eps
    found = {}

    # proposals
    proposal_logits, can_propose = flat.proposals
    features = source.memory_norm(source.memory_proj(torch.where(can_propose, memory, torch.zeros(()))))
    class_logits = source.class_head(features)
    box_logits = torch.where(can_propose, source.box_head(features) + proposal_logits, torch.tensor(20.0))
    scores = class_logits.max(-1).values if config.proposal_classes else class_logits[..., 0]
    if flat.padding_mask is not None:
        scores = torch.where(flat.padding_mask, torch.tensor(-math.inf), scores)
    first, further = config.num_queries, config.one_to_many_queries if model.training else 0
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, : first + further]
    rows = torch.arange(len(memory))[:, None]
    start = box_logits[rows, order].detach()
    first = min(first, order.shape[1])
    trained = order[:, :first] if config.proposal_loss == "selected" else torch.arange(memory.shape[1])[None]
    found["encoder_logits"], found["encoder_boxes"] = class_logits[rows, trained], box_logits[rows, trained].sigmoid()
    content = source.content_embed.weight[: order.shape[1]].expand(len(memory), -1, -1)

    # denoising queries stand first
    size = 0
    if noise is not None:
        labels, noisy = plain_denoising(targets, noise, groups, config.num_classes, config.box_noise, eps)
        embedded = model.denoising.label_embed.weight[labels.clamp(min=0)] * (labels >= 0)[..., None]
        content, start = torch.cat((embedded, content), 1), torch.cat((noisy, start), 1)
        size = labels.shape[1]
    total = content.shape[1]
    hidden_from = torch.zeros(total, total, dtype=torch.bool)
    for i in range(total):
        for j in range(total):
            if i < size and j < size:
                hidden_from[i, j] = i // (size // groups) != j // (size // groups)
            elif i >= size:
                hidden_from[i, j] = j < size or (i < size + first) != (j < size + first)

    # decoder with look forward twice
    query, reference = content, start.sigmoid()
    attached, outputs = reference, []
    first_layer = config.denoising_first_layer
    denoising = (torch.arange(total) < size)[:, None]
    position = None
    if config.query_position == "proposal":
        encoded = torch.cat([plain_sine(reference[..., axis], dim // 2) for axis in range(4)], -1)
        position = source.query_norm(source.query_proj(encoded))[..., :dim]
    for index, layer in enumerate(decoder.layers):
        before = query, attached, reference
        if config.query_position == "reference":
            scaled = reference * flat.valid_ratios[:, 0].repeat(1, 2)[:, None]
            encoded = torch.cat([plain_sine(scaled[..., axis], dim // 2) for axis in (1, 0, 2, 3)], -1)
            linear1, linear2 = decoder.position_mlp.layers
            position = linear2(linear1(encoded).relu())
        assert position is not None
        query = layer.self_attn_norm(query + plain_attention(layer.self_attn, query + position, query, hidden_from))
        places = reference[:, :, None] * flat.valid_ratios.repeat(1, 1, 2)[:, None]
        looked = layer.cross_attn(query + position, places, memory, flat.spatial_shapes, flat.padding_mask)
        query = layer.cross_attn_norm(query + looked)
        query = layer.ffn_norm(query + layer.ffn.linear2(layer.ffn.linear1(query).relu()))
        read = decoder.norm(query) if config.decoder_norm else query
        head = 0 if config.shared_heads else index
        boxes = (decoder.box_heads[head](read) + logit(attached, eps)).sigmoid()
        outputs.append((model.class_heads[head](read), boxes))
        attached = (decoder.box_heads[head](query) + logit(reference, eps)).sigmoid()
        reference = attached.detach()
        attached = attached if config.look_forward_twice else reference
        if index < first_layer:
            now = query, attached, reference
            query, attached, reference = (torch.where(denoising, *pair) for pair in zip(before, now, strict=True))
    all_logits, all_boxes = (torch.stack(x) for x in zip(*outputs, strict=True))
    parts = {"denoising_": slice(0, size), "": slice(size, size + first), "one_to_many_": slice(size + first, total)}
    for prefix, part in parts.items():
        if part.start != part.stop:
            layers = slice(first_layer if prefix == "denoising_" else 0, None)
            found[f"{prefix}logits"], found[f"{prefix}boxes"] = all_logits[layers, :, part], all_boxes[layers, :, part]
    return found
