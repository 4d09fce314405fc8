"""Every setting of the detector and of a run, with the official values as defaults (frozen dataclasses).

The string below an attribute is its documentation: it becomes the help of the command line. `presets.py` holds the named
variants. Only `build` functions, the loader, checkpoints, training, export and the command line read these classes.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from deformable_detr.categories import Categories
from deformable_detr.schema import check_number, check_range, convert, entries

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_THRESHOLD = 0.5
"""Smallest score of a detection where the weights come without thresholds of their own."""
MAX_DETECTIONS = 100
"""Detections per image in COCO's evaluation, and where a model says nothing else."""


_NEEDED = {
    **dict.fromkeys(("query_content", "query_position", "proposal_classes", "proposal_loss"), "two_stage"),
    **dict.fromkeys(("one_to_many_queries", "denoising_queries"), "two_stage"),
    **dict.fromkeys(("look_forward_twice", "relation_bias"), "box_refinement"),
}
"""Settings of `ModelConfig` that mean something only together with another one."""


@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults are Deformable DETR, ResNet-50, of the paper's table 1 (preset `r50`)."""

    num_classes: int = 91
    """K. 91 is the official COCO layout (raw category ids); training on a dataset sets it to that set's classes."""

    backbone: str = "resnet50.tv_in1k"
    """Any timm model with feature maps at strides 8, 16 and 32, or a plain Vision Transformer (ViT, DINOv2, DINOv3), from whose one
    map a pyramid makes the levels."""

    backbone_options: dict[str, Any] = field(default_factory=dict)
    """Further keywords for timm's create_model, such as layers or channels of a ResNet."""

    pretrained_backbone: bool | str = True
    """True: timm's weights (downloaded once). A path: a local file. False: random, for training from scratch."""

    frozen_backbone_stages: int = 2
    """How many of a ResNet's first parts stay fixed: 0 none, 1 the stem, 2 stem and layer1 (official), … 5 all of any backbone."""

    freeze_batch_norm: bool = True
    """Use batch norm as a fixed affine map (official). False trains it: only sensible from scratch with larger batches."""

    dilation: bool = False
    """DC5: dilate the last stage, so that it keeps stride 16."""

    num_feature_levels: int = 4
    """L. 1: only C5; 2 and 3: the last two or three stages; 4 and more: C3, C4, C5 and further 3x3 stride-2 levels."""

    hidden_dim: int = 256
    """C, the width of the transformer."""

    num_heads: int = 8
    """M, attention heads."""

    num_encoder_points: int = 4
    """P, sampling points per head and level in the encoder."""

    num_decoder_points: int = 4
    """P, sampling points per head and level in the decoder."""

    num_encoder_layers: int = 6
    """Encoder layers."""

    num_decoder_layers: int = 6
    """N, decoder layers."""

    ffn_dim: int = 1024
    """Hidden width of the feed-forward networks."""

    dropout: float = 0.1
    """Dropout after attention, inside multi-head attention, and inside and after the feed-forward networks."""

    num_queries: int = 300
    """Q, the largest number of objects found in one image."""

    max_detections: int = MAX_DETECTIONS
    """How many detections an image has, the best ones, unless another number is asked for. DINO: 300."""

    box_refinement: bool = False
    """Iterative bounding box refinement (paper, app. A.4): each layer corrects the boxes of the one before it."""

    two_stage: bool = False
    """Queries from the encoder's best proposals (paper, app. A.4). Needs box_refinement."""

    original_padding: bool = False
    """Treat padding exactly as the original does: the padded canvas runs as one in evaluation, too, and padded positions compete
    among the proposals. By default an image's boxes do not depend on its neighbours in the batch."""

    backbone_levels: int = 3
    """How many of the backbone's last stages become levels of their own; 4 adds stride 4 (DINO with 5 scales)."""

    backbone_norm: bool = False
    """A layer norm on each output of the backbone, as Swin and ConvNeXt are used in published detectors. Swin needs it."""

    position_temperature: float = 10_000.0
    """Temperature of the sine encoding of positions on the feature maps. DINO: 20."""

    position_offset: float = 0.5
    """What is taken off the pixel's number (from 1) before its sine encoding. DINO: 0."""

    logit_eps: float = 1e-5
    """Boxes are kept this far from 0 and 1 before their logit is taken in the decoder. DINO: 1e-3."""

    output_eps: float | None = None
    """The same for the boxes that the model gives. null: as logit_eps. mmdetection's DINO: 1e-5."""

    query_content: Literal["proposal", "learned"] = "proposal"
    """Two-stage: the content of a query comes from its proposal, or is learned for each rank (mixed selection, DINO)."""

    query_position: Literal["proposal", "reference"] = "proposal"
    """Two-stage: the position of a query comes from its proposal, the same in all layers, or in each layer from the box that the
    layer looks around, through a small MLP (DINO)."""

    proposal_classes: bool = False
    """Two-stage: proposals are ranked by their best class and learn the classes (DINO). Otherwise class channel 0 is taught
    whether there is any object, and ranks them."""

    proposal_loss: Literal["all", "selected"] = "all"
    """Two-stage: the proposals of all positions are trained, or only those that become queries (DINO)."""

    look_forward_twice: bool = False
    """The gradient of a layer's boxes reaches the layer before it as well (DINO). Needs box_refinement."""

    decoder_norm: bool = False
    """A layer norm before the prediction heads of the decoder (DINO)."""

    shared_heads: bool = False
    """One class head and one box head for all decoder layers also with box_refinement (DINO); proposals keep their own."""

    relation_bias: bool = False
    """Self-attention from the second decoder layer on is biased by the relative position of the boxes (Relation-DETR)."""

    denoising_queries: int = 0
    """Training: about this many queries start from ground-truth boxes with noise, and as many from worse ones (DINO: 100). As in
    DINO's code, below 50 it is twice this number of groups, each with every object."""

    label_noise: float = 0.5
    """Denoising: half of this share of the queries gets a random label."""

    box_noise: float = 1.0
    """Denoising: how far the corners move, as a share of half the box's size; negatives move by one to two times this."""

    denoising_first_layer: int = 0
    """Denoising: the decoder layer, counted from 0, that the queries enter at. Above 0 a step costs less; DINO: 0."""

    one_to_many_queries: int = 0
    """Training: this many further proposals make a second set of queries, matched one-to-many (H-DETR: 1500)."""

    suppressor: bool = False
    """The decoder learns one-to-many, and a last layer which of the queries of an object is to keep its score (after MDS-DETR)."""

    def __post_init__(self) -> None:
        if self.two_stage and not self.box_refinement:
            raise ValueError("two_stage needs box_refinement=True: the proposals are the boxes that the first layer refines")
        for name, needed in _NEEDED.items():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default and not getattr(self, needed):
                raise ValueError(f"{name}={getattr(self, name)!r} needs {needed}=True")
        check_range(self, "hidden_dim num_heads", 1)
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        if self.hidden_dim % 32:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of 32, the number of the neck's GroupNorm groups")
        if self.query_position == "reference" and self.query_content == "proposal":
            raise ValueError("query_position='reference' needs query_content='learned': nothing else is known of a proposal then")
        if self.suppressor and self.one_to_many_queries:
            raise ValueError("suppressor and one_to_many_queries both make the one-to-many branch: choose one of them")
        check_range(self, "num_encoder_layers denoising_queries one_to_many_queries box_noise")
        check_range(self, "num_classes num_feature_levels num_queries num_decoder_layers max_detections ffn_dim", 1)
        check_range(self, "num_encoder_points num_decoder_points backbone_levels", 1)
        check_range(self, "dropout label_noise", 0, 1)
        check_range(self, "frozen_backbone_stages", 0, 5)
        check_range(self, "denoising_first_layer", 0, self.num_decoder_layers - 1)
        check_range(self, "logit_eps output_eps", 0, 0.5)
        check_range(self, "position_temperature", beyond=True)

    def replace(self, **overrides: Any) -> Self:
        """The same settings with single values replaced; unknown names are an error that lists the known ones."""
        return self.from_dict(self.to_dict() | overrides)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; unknown keys and values of another type are an error that names them."""
        known = entries(cls)
        unknown = sorted(set(record) - set(known))
        if unknown:
            raise ValueError(f"unknown model setting {unknown}; known are {list(known)}")
        return cls(**{name: convert(value, known[name].hint, name) for name, value in record.items()})


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How images become the network's input: settings of a run that go with the weights."""

    eval_short_side: int = 800
    """Evaluation and prediction: the short side is resized to this (pixels)."""

    max_long_side: int = 1333
    """The long side never exceeds this (pixels)."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the RGB channels (in [0, 1]) that is subtracted."""

    std: tuple[float, float, float] = IMAGENET_STD
    """Deviation of the RGB channels (in [0, 1]) that is divided by."""

    bit_depth: int = 16
    """How many bits of the values of 16-bit images are used, from 8 on: with 12, as many cameras have, 4095 becomes 255.
    `deformable-detr doctor` says what the images hold."""

    single_class: bool = False
    """All categories of the dataset are one class, `object`: for finding things of any kind. Evaluations of these weights read
    datasets in the same way."""

    def __post_init__(self) -> None:
        mean, std = self.mean, self.std
        sound = all(isinstance(number, (int, float)) and math.isfinite(number) for number in (*mean, *std))
        if not sound or len(mean) != 3 or len(std) != 3 or min(std) <= 0:  # some layers swallow the NaN that others make
            raise ValueError(f"mean {mean} and std {std} must be three finite numbers each, those of std greater than 0")
        if max(*mean, *std) > 1.001:
            raise ValueError(f"mean {mean} and std {std} are those of channels from 0 to 1: divide what holds for 0 to 255 by 255")
        check_range(self, "eval_short_side max_long_side", 1)
        check_range(self, "bit_depth", 8, 16)

    def input_settings(self) -> dict[str, Any]:
        """These by name, without those that a derived class adds."""
        return {name: getattr(self, name) for name in entries(InputConfig)}


@dataclass(frozen=True)
class Metadata(InputConfig):
    """What a model needs beside its weights to be used; it is written to the header of every weights file."""

    model: ModelConfig
    """The network."""

    categories: Categories | None = None
    """The classes; None when only their number is known."""

    thresholds: tuple[float, ...] | None = None
    """For each label the smallest score of a detection that counts, in [0, 1]; found by an evaluation, where F1 is largest.
    None: not known; `DEFAULT_THRESHOLD` holds for all."""

    nms_iou: float | None = None
    """Detections that overlap a better one of their class by more than this IoU are dropped; see `TrainConfig.nms_iou`."""

    training: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: dataset, recipe, epoch, metrics. For people; nothing depends on it."""

    def __post_init__(self) -> None:
        if self.thresholds is not None and len(self.thresholds) != self.model.num_classes:
            raise ValueError(f"{len(self.thresholds)} thresholds for {self.model.num_classes} classes: there must be one per class")
        if self.thresholds is not None and not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds must lie in [0, 1], not {self.thresholds}")
        if self.categories is not None and len(self.categories) != self.model.num_classes:
            raise ValueError(f"{len(self.categories)} classes are named, but the network has {self.model.num_classes}")
        super().__post_init__()
        check_range(self, "nms_iou", 0, 1, beyond=True)

    @property
    def named_categories(self) -> Categories:
        """The classes; called `class 0`, `class 1` … where only their number is known."""
        return self.categories or Categories.unnamed(self.model.num_classes)

    def evaluation_data(self) -> "DataConfig":
        """How the model wants the images and annotations of an evaluation."""
        return DataConfig(**self.input_settings())

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON."""
        return asdict(self) | {"categories": self.categories.to_dict() if self.categories else None}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; keys of a newer version are ignored."""
        built: dict[str, Any] = {"model": ModelConfig.from_dict(record["model"]), "categories": None}
        if named := record.get("categories"):
            hints = {name: entry.hint for name, entry in entries(Categories).items()}
            built["categories"] = Categories(**{name: convert(named[name], hint, name) for name, hint in hints.items()})
        plain = {name: entry.hint for name, entry in entries(cls).items() if name in record and name not in built}
        return cls(**built, **{name: convert(record[name], hint, name) for name, hint in plain.items()})


@dataclass(frozen=True)
class LossConfig:
    """Matching and losses (paper, section 4; the values of the official recipe)."""

    class_loss: Literal["focal", "ia-bce", "varifocal", "mal"] | None = None
    """The loss of the classes; all but `focal` teach a matched query the IoU of its box as its score. null: `focal` (official),
    `ia-bce` for models with a suppressor."""

    class_weight: float | None = None
    """Weight of the class loss. null: 2 with the focal loss (official) and for models with a suppressor, 1 with the other losses
    and for models of DINO's kind."""

    bbox_weight: float = 5.0
    """Weight of the L1 loss of the boxes."""

    giou_weight: float = 2.0
    """Weight of the generalised IoU loss."""

    class_cost: float = 2.0
    """Weight of the classification cost in matching."""

    bbox_cost: float = 5.0
    """Weight of the L1 cost in matching."""

    giou_cost: float = 2.0
    """Weight of the generalised IoU cost in matching."""

    focal_alpha: float = 0.25
    """Focal loss: weight of the positive term."""

    focal_gamma: float = 2.0
    """Focal loss: how strongly easy examples are played down."""

    mal_gamma: float = 1.5
    """Class loss `mal`: exponent of the IoU that is learned, and of the weight of what is not matched."""

    giou_eps: float | None = None
    """Added to the denominators of the generalised IoU. null: 0 (official), 1e-6 for models of DINO's kind."""

    copies: int = 1
    """With how many queries each object is matched in every decoder layer. 1: one-to-one (official). More learns faster, but gives
    several boxes per object: for use with train.nms_iou."""

    encoder_copies: int = 1
    """With how many of the encoder's proposals each object is matched."""

    one_to_many_copies: int = 6
    """With how many queries of the one-to-many branch each object is matched (at most, where matching goes by quality)."""

    one_to_many_weight: float = 1.0
    """What the losses of the one-to-many branch are multiplied by."""

    weight_per_class: dict[str, float] = field(default_factory=dict)
    """Class names and what the loss of the class's score is multiplied by, such as `{person: 2.0, bicycle: 0.5}`; others have 1."""

    branch_weights: dict[str, float] = field(default_factory=dict)
    """Weights of a kind of loss that differ in one branch, such as `{loss_class_dn: 1.0, loss_class_enc: 2.0}`."""

    def __post_init__(self) -> None:
        check_range(self, "class_weight bbox_weight giou_weight class_cost bbox_cost giou_cost one_to_many_weight")
        check_range(self, "focal_gamma mal_gamma giou_eps")
        check_range(self, "focal_alpha", 0, 1)
        for branch, weight in self.branch_weights.items():
            check_number(f"branch_weights: {branch}", weight)

    def class_loss_of(self, model: ModelConfig) -> str:
        """The loss of the classes for a model."""
        return self.class_loss if self.class_loss is not None else "ia-bce" if model.suppressor else "focal"

    def class_weight_of(self, model: ModelConfig) -> float:
        """The weight of the class loss for a model."""
        if self.class_weight is not None:
            return self.class_weight
        official = self.class_loss_of(model) == "focal" and model.proposal_loss == "all"
        return 2.0 if official or model.suppressor else 1.0

    def giou_eps_of(self, model: ModelConfig) -> float:
        """What is added to the denominators of the generalised IoU for a model."""
        return self.giou_eps if self.giou_eps is not None else 0.0 if model.proposal_loss == "all" else 1e-6


@dataclass(frozen=True)
class DataConfig(InputConfig):
    """Reading and augmenting images."""

    train_split: str = "train"
    """Name of the split that is trained on."""

    val_split: str = "val"
    """Name of the split that is evaluated."""

    train_short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Training: the short side is resized to one of these, drawn at random (pixels)."""

    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    """Training, every second image: resize to one of these, then crop. Empty: never crop."""

    crop_range: tuple[int, int] = (384, 600)
    """Training: smallest and largest side of the random crop (pixels)."""

    pad_size_divisor: int = 1
    """Training: the padded canvas becomes a multiple of this. With 64 each level's grid on a padded image is exactly that on
    that image alone, which matters for images of few hundred pixels; the official recipe rounds instead (1)."""

    horizontal_flip: float = 0.5
    """Training: probability of a left-right flip."""

    vertical_flip: float | Literal["auto"] = 0.0
    """Training: probability of an upside-down flip. For images without an up, such as microscopy. `auto`: as soon as an evaluation
    shows that the model detects about as well in the validation images upside down, half of the training images are, too; see
    docs/recipes.md."""

    transpose: float | Literal["auto"] = 0.0
    """Training: probability of exchanging x and y, of all images of a step together. For images without an up. `auto`: found out
    in the same way, where images may be turned upside down."""

    color_jitter: float | tuple[float, float, float, float] = 0.0
    """Training: strength of random brightness, contrast, saturation (factors within 1 ± s) and hue (turned by up to s of the
    colour circle). One number s means (s, s, s, s/8). `deformable-detr preview` shows this and what follows."""

    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Training: resize to a multiple of the usual size drawn from this range, then cut or pad to the usual size."""

    mosaic: float = 0.0
    """Training: probability of putting four images together into one."""

    copy_paste: float = 0.0
    """Training: probability of pasting objects (the content of their boxes) of another image."""

    mixup: float = 0.0
    """Training: probability of blending the image with another one."""

    mixing_until: float = 0.85
    """Mosaic, copy-paste and mixup end after this share of the training, so that it closes with images as they are."""

    num_workers: int = 2
    """Processes that read images, per training process. 0 reads in the training process itself."""

    on_bad_image: Literal["stop", "skip"] = "stop"
    """What an image does in training that cannot be read: end the run, or be replaced by the next one with a warning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "pad_size_divisor", 1)
        check_range(self, "num_workers")
        check_range(self, "horizontal_flip vertical_flip transpose mosaic copy_paste mixup mixing_until", 0, 1)

    @property
    def undecided_turns(self) -> tuple[str, ...]:
        """Those of `vertical_flip` and `transpose` that a run finds out about. Without flips nothing is transposed either."""
        return tuple(name for name in ("vertical_flip", "transpose") if self.vertical_flip and getattr(self, name) == "auto")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with the official parameter groups, clipping and schedule."""

    lr: float = 2e-4
    """Learning rate."""

    backbone_lr_scale: float = 0.1
    """The backbone's learning rate as a share of lr."""

    sampling_lr_scale: float = 0.1
    """The share of lr for the layers that say where to look: sampling offsets and reference points."""

    backbone_layer_decay: float = 1.0
    """Plain ViT backbones: each layer has this share of the learning rate of the layer after it. 1: all have the same."""

    freeze: tuple[Literal["backbone", "neck", "encoder", "queries", "decoder", "class_heads"], ...] = ()
    """Parts whose weights stay as they are, such as `[backbone, encoder]`: for weights that are good already, and few images."""

    lora: int = 0
    """Rank of low-rank adapters (peft) on the attention and feed-forward maps of encoder and decoder: only they and the heads are
    trained, beside the fixed `weights`. 0: none."""

    weight_decay: float = 1e-4
    """Weight decay, on all parameters (official)."""

    clip_grad_norm: float = 0.1
    """Largest norm of the whole gradient. 0: do not clip."""

    schedule: Literal["step", "cosine", "flat-cosine"] = "step"
    """`step`: multiply by drop_factor once (official). `cosine`: fall to zero at the end. `flat-cosine`: stay for the first half,
    then fall to zero."""

    drop_at: float = 0.8
    """Schedule `step`: when to drop, as a share of the training (official: epoch 40 of 50). 1: never."""

    drop_factor: float = 0.1
    """Schedule `step`: what the learning rate is multiplied by."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from nearly zero."""

    def __post_init__(self) -> None:
        check_range(self, "clip_grad_norm")


@dataclass(frozen=True)
class TrainConfig:
    """The course of a training run."""

    epochs: int = 50
    """Passes over the training images. Ignored when steps is given."""

    steps: int | None = None
    """Optimiser steps in total, instead of epochs."""

    budget: str | None = None
    """How long the run may take, evaluations included, such as `30m`, `1h30m` or `90s`: a few real steps are timed first, then
    steps, evaluations and, with a recipe, the image size are fitted to it. Instead of steps and epochs."""

    seconds: float | None = None
    """The time to which the run is held: where steps turn out slower or faster than was thought, their number changes on the way,
    and the learning rate follows. Comes from a budget; null: steps or epochs say how long the run is."""

    batch_size: int | Literal["auto"] = 2
    """Images per process and forward pass. The official runs use 32 in total (16 processes x 2). `auto`: as many as fit into
    memory, up to target_batch_size, which accumulate is then set for."""

    accumulate: int = 1
    """Forward passes per optimiser step: batch_size x accumulate x processes images make one step."""

    target_batch_size: int = 16
    """With batch_size `auto`: images per optimiser step, all processes together."""

    gradient_checkpointing: bool = False
    """Keep less for the backward pass and compute it again: less memory, a slower step, the same gradients."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights stay fp32."""

    ema_decay: float = 0.0
    """Keep an exponential moving average of the weights with this decay, and evaluate and save it. 0: none (official)."""

    nms_iou: float | None = None
    """Drop detections that overlap a better one of their class by more than this IoU, when evaluating, and later when the weights
    are used. null (official): keep all. After few steps, 0.7 removes duplicate detections."""

    evaluate_every: int = 1
    """Epochs between evaluations. 0: only at the end."""

    log_every: int = 50
    """Steps between log lines."""

    logger: tuple[Literal["tensorboard", "wandb", "mlflow", "aim", "clearml", "comet_ml", "dvclive", "swanlab", "trackio"], ...] = (
        "tensorboard",
    )
    """Experiment loggers that get curves, sample images and the best metrics, several at once; `log.jsonl` is written in any case.
    docs/integrations.md says how each is set up."""

    checkpoint_every: int = 0
    """Steps between saved states within an epoch. 0: only at the end of every epoch."""

    patience: int = 0
    """Stop early after this many evaluations in a row without a better AP. 0: never."""

    on_non_finite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinity in a loss, a gradient or a box does: `stop` ends the run, `skip` leaves this step out and goes on.
    Either way the weights stay as they were, the layer and the images are named, and the batch is saved for `replay`."""

    seed: int = 42
    """Seed of the weights, the order of the images and the augmentation."""

    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda` or `mps`."""


@dataclass(frozen=True)
class RunConfig:
    """A whole training run: what `deformable-detr train --config run.yaml` reads."""

    dataset: str
    """The dataset: a folder in COCO, YOLO or Pascal VOC format, a YOLO data.yaml, or one COCO .json (docs/data.md)."""

    preset: str = "r50"
    """Named variant whose values the settings under `model` start from; see `deformable_detr.presets`."""

    recipe: Literal["finetune", "small-data", "none"] | None = None
    """Settings for your own images, chosen by their number and sizes: `finetune` from the weights of a detector, `small-data`
    from an ImageNet backbone. Settings in a file or an option have precedence; see docs/recipes.md. null: `small-data` for a
    small dataset where nothing else says how to train. `none`: never."""

    output_dir: str = "runs/train"
    """Folder of this run: config, logs, curves, checkpoints, sample images."""

    weights: str | None = None
    """Weights to start from: a file or a run folder. Its class heads are kept only where the classes are the same."""

    resume: bool = False
    """Go on with the interrupted run in output_dir, exactly where it stopped."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""

    loss: LossConfig = field(default_factory=LossConfig)
    """Matching and losses."""

    data: DataConfig = field(default_factory=DataConfig)
    """Images and augmentation."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser and schedule."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch size, precision, logging."""
