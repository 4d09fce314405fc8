"""What the configs of other projects say of a computation that this network does otherwise: refused by name, not passed over."""

from collections.abc import Mapping
from typing import Any

_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "position_embedding": ("sine", "v2"),
    "transformer_activation": ("relu",),
    "activation": ("relu",),
    "pre_norm": (False,),
    "num_patterns": (0,),
    "use_deformable_box_attn": (False,),
    "add_channel_attention": (False,),
    "decoder_sa_type": ("sa",),
    "decoder_module_seq": (["sa", "ca", "ffn"],),
    "two_stage_type": ("no", "standard"),
    "two_stage_add_query_num": (0,),
    "two_stage_learn_wh": (False,),
    "two_stage_default_hw": (0.05,),
    "nms_iou_threshold": (-1, 0),
}
"""Arguments of the original code and of DINO → the values that this network has."""

_ENTRIES: dict[tuple[str, str], tuple[Any, ...]] = {
    ("loss_cls", "use_sigmoid"): (True,),
    ("RESNETS", "STRIDE_IN_1X1"): (False,),
    ("RESNETS", "RES5_DILATION"): (1,),
    ("test_pipeline", "color_type"): ("color", "unchanged"),
}
"""(some outer key, key) of mmdetection and detectron2 → the same."""

_NORMS = ("BN", "BN2d", "SyncBN", "GN", "LN")


def refusals(path: tuple[str, ...], value: Any) -> list[str]:
    """Why an entry of a config cannot be followed; empty: it can, or says nothing of this.

    Args:
        path: keys from the outermost to the innermost.
        value: of the last.
    """
    name, key = ".".join(path), path[-1]
    known = _ARGUMENTS.get(key) if path[0] == "args" else None
    known = known or next((values for (outer, inner), values in _ENTRIES.items() if inner == key and outer in path), None)
    value = list(value) if isinstance(value, tuple) else value
    if known is not None and value is not None and value not in known:
        return [f"{name} is {value!r}: only {known[0]!r} is known"]
    if isinstance(value, Mapping):
        return [f"{name}: {reason}" for reason in _of_record(path, value)]
    return []


def _of_record(path: tuple[str, ...], record: Mapping[str, Any]) -> list[str]:
    """The same for entries that others beside them decide about."""
    key, backbone = path[-1], "backbone" in path
    reasons = []
    if key == "args" and record.get("pe_temperatureW", record.get("pe_temperatureH")) != record.get("pe_temperatureH"):
        reasons.append("pe_temperatureH and pe_temperatureW differ: one temperature is known")
    if key == "backbone" and record.get("style") == "caffe" and record.get("depth") not in (18, 34):
        reasons.append("style is 'caffe', with the stride in the first convolution of a block: only 'pytorch' is known")
    if key == "backbone" and record.get("dilations") and set(_listed(record["dilations"])) != {1}:
        reasons.append(f"dilations are {record['dilations']}, which dilate a stage's first block, too: only 1 is known")
    if key == "positional_encoding" and "num_feats" in record and record.get("normalize") is not True:
        reasons.append("positions are not normalised (normalize is False where it is not set): only normalize=True is known")
    if key == "positional_encoding" and record.get("type", "SinePositionalEncoding") != "SinePositionalEncoding":
        reasons.append(f"{record['type']} is not known: only SinePositionalEncoding is")
    if key == "neck" and record.get("type") == "ChannelMapper" and record.get("act_cfg", "ReLU") is not None:
        reasons.append("ChannelMapper has an activation (ReLU where act_cfg is not set): only act_cfg=None is known")
    if key == "act_cfg" and not backbone and "neck" not in path and record.get("type", "ReLU") != "ReLU":
        reasons.append(f"{record['type']} is no activation that is known here: only ReLU is")
    if record.get("type") in _NORMS and not (backbone and record["type"] in ("GN", "LN")):
        if record.get("eps", 1e-5) != 1e-5:
            reasons.append(f"eps is {record['eps']!r}: only 1e-5 is known")
        if "neck" in path and record.get("num_groups", 32) != 32:
            reasons.append(f"num_groups is {record['num_groups']!r}: only 32 is known")
    return reasons


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def resizing(path: tuple[str, ...], value: Any) -> str | None:
    """What images go through in mmdetection's test pipeline that is done otherwise here, in a sentence."""
    if not any("test" in part for part in path):
        return None
    match path[-1], value:
        case "keep_ratio", False:
            return "images are stretched to a fixed size there (keep_ratio=False); here they keep their form"
        case "type", "FixShapeResize":
            return "images are stretched to a fixed size there (FixShapeResize); here they keep their form"
        case "scale_factor", int() | float():
            return f"images are resized by the factor {value:g} there, here to one size"
        case (("scale" | "img_scale"), [[*_], *_] | [(_, _), *_]):
            return f"images are tested in several sizes there ({value}), here in one"
    return None


def is_bgr(path: tuple[str, ...], value: Any) -> bool:
    """Whether an entry says that the network takes the channels in the order blue, green, red."""
    if path[-1] in ("bgr_to_rgb", "to_rgb"):
        return value is False
    return (path[-1] == "rgb_to_bgr" and value is True) or (path[-1] in ("FORMAT", "input_format", "img_format") and value == "BGR")
