"""The keywords of the detector's methods, with their types, so that editors complete and check them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from deformable_detr.categories import Categories
from deformable_detr.class_names import MatchBy
from deformable_detr.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig


class EvaluationOptions(TypedDict, total=False):
    """How a split of a dataset is evaluated."""

    batch_size: int
    """Images per forward pass (1); the numbers do not depend on it."""

    num_workers: int
    """Processes that read images (2)."""

    top_k: int | None
    """Detections per image that count. None: as the model has it (`max_detections`)."""

    match_by: MatchBy
    """What makes a class of the detector and one of the dataset the same: its `name` (as it is by itself), or its `id`."""

    results_file: str | Path | None
    """Write the detections there, in COCO's result format."""

    progress: Callable[[int, int], None] | None
    """Called after each batch with the number of images that this process has done, and has in all."""


class PredictionOptions(TypedDict, total=False):
    """How images are predicted on."""

    batch_size: int
    """How many images go through the model at once (1)."""

    top_k: int | None
    """At most this many detections per image, the best ones. None: as the model has it (`max_detections`)."""

    classes: str | Sequence[str] | None
    """Only objects of these classes (names). None: all."""

    nms_iou: float | None
    """Drop detections that overlap a better one of their class by more than this IoU, in (0, 1]; 1 drops none. None: the
    detector's own `nms_iou`, as stored with the weights."""

    on_error: Literal["raise", "skip"]
    """With many images, what an unreadable one does: `raise` (as it is by itself) ends with an error that names it, `skip` leaves
    it out of the list and logs a warning."""

    num_threads: int
    """Threads that read and resize the next images meanwhile (2)."""

    tiles: int | None
    """For images far larger than the model's input: divide them into squares of this many pixels, and merge the detections
    (docs/video.md). `batch_size` then counts tiles. None: do not."""

    tile_overlap: float | None
    """Share of a tile's side that neighbours have in common; None: 0.2. For `tiles` alone."""

    bit_depth: int | None
    """How many bits of 16-bit values are used, 8 … 16. With 12, as many cameras have, 4095 becomes 255. None: as in training."""


class LoadOptions(TypedDict, total=False):
    """How weights are read."""

    num_classes: int | None
    """How many classes are wanted; None: as many as the file has."""

    classes: Sequence[str] | Categories | None
    """Their names. Rows of the class heads are kept for classes of the same name, the others start afresh."""

    strict: bool
    """Every tensor must fit (True). Otherwise what does not fit keeps its initial value, with a warning."""

    ema: bool | None
    """Where a file holds EMA weights beside those without averaging: True takes the first, False the others. None: what the file
    itself calls its model."""

    revision: str | None
    """Version (branch, tag or commit) of a model on the hub."""

    dilation: bool
    """The weights are those of a DC5 model: their tensors do not show it."""

    num_heads: int
    """Attention heads, where they are not 8: tensors do not show them."""

    num_queries: int
    """Queries of a two-stage model, where they are not 300: its tensors do not show them."""

    dropout: float
    """Dropout, for training on."""


class TrainSettings(TypedDict, total=False):
    """All settings of a training by their own names, and the groups that they belong to; explained and with their defaults in
    :mod:`deformable_detr.config`."""

    preset: str
    recipe: Literal["finetune", "small-data", "none"] | None
    output_dir: str | Path
    weights: str | Path | None
    resume: bool

    num_classes: int
    backbone: str
    backbone_options: Mapping[str, Any]
    pretrained_backbone: bool | str | Path
    frozen_backbone_stages: int
    freeze_batch_norm: bool
    backbone_norm: bool
    dilation: bool
    num_feature_levels: int
    hidden_dim: int
    num_heads: int
    num_encoder_points: int
    num_decoder_points: int
    num_encoder_layers: int
    num_decoder_layers: int
    ffn_dim: int
    dropout: float
    num_queries: int
    max_detections: int
    box_refinement: bool
    two_stage: bool
    original_padding: bool
    backbone_levels: int
    position_temperature: float
    position_offset: float
    logit_eps: float
    output_eps: float | None
    query_content: Literal["proposal", "learned"]
    query_position: Literal["proposal", "reference"]
    proposal_classes: bool
    proposal_loss: Literal["all", "selected"]
    look_forward_twice: bool
    decoder_norm: bool
    shared_heads: bool
    relation_bias: bool
    denoising_queries: int
    label_noise: float
    box_noise: float
    denoising_first_layer: int
    one_to_many_queries: int
    suppressor: bool

    class_loss: Literal["focal", "ia-bce", "varifocal", "mal"] | None
    class_weight: float | None
    bbox_weight: float
    giou_weight: float
    class_cost: float
    bbox_cost: float
    giou_cost: float
    focal_alpha: float
    focal_gamma: float
    mal_gamma: float
    giou_eps: float | None
    copies: int
    encoder_copies: int
    one_to_many_copies: int
    one_to_many_weight: float
    weight_per_class: Mapping[str, Any]
    branch_weights: Mapping[str, Any]

    train_split: str
    val_split: str
    single_class: bool
    train_short_sides: Sequence[int]
    crop_short_sides: Sequence[int]
    crop_range: Sequence[int]
    eval_short_side: int
    max_long_side: int
    pad_size_divisor: int
    horizontal_flip: float
    vertical_flip: float | Literal["auto"]
    transpose: float | Literal["auto"]
    color_jitter: float | Sequence[float]
    scale_jitter: Sequence[float]
    mosaic: float
    copy_paste: float
    mixup: float
    mixing_until: float
    mean: Sequence[float]
    std: Sequence[float]
    num_workers: int
    on_bad_image: Literal["stop", "skip"]
    bit_depth: int

    lr: float
    backbone_lr_scale: float
    sampling_lr_scale: float
    backbone_layer_decay: float
    freeze: Sequence[Literal["backbone", "neck", "encoder", "queries", "decoder", "class_heads"]]
    lora: int
    weight_decay: float
    clip_grad_norm: float
    schedule: Literal["step", "cosine", "flat-cosine"]
    drop_at: float
    drop_factor: float
    warmup_steps: int

    epochs: int
    steps: int | None
    budget: str | None
    seconds: float | None
    batch_size: int | Literal["auto"]
    accumulate: int
    target_batch_size: int
    gradient_checkpointing: bool
    precision: Literal["fp32", "bf16", "fp16"]
    ema_decay: float
    nms_iou: float | None
    evaluate_every: int
    log_every: int
    logger: Sequence[Literal["tensorboard", "wandb", "mlflow", "aim", "clearml", "comet_ml", "dvclive", "swanlab", "trackio"]]
    checkpoint_every: int
    patience: int
    on_non_finite: Literal["stop", "skip"]
    seed: int
    device: str

    model: ModelConfig | Mapping[str, Any]
    loss: LossConfig | Mapping[str, Any]
    data: DataConfig | Mapping[str, Any]
    optimizer: OptimizerConfig | Mapping[str, Any]
    train: TrainConfig | Mapping[str, Any]
