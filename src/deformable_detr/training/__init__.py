"""Training: optimizer, schedule, weight averaging, the training step and the whole run."""

from deformable_detr.training.batches import DeadWorkerError
from deformable_detr.training.callbacks import Callback, EarlyStopping, Run, Samples, Step
from deformable_detr.training.ema import ExponentialMovingAverage
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.training.memory import OutOfMemoryError
from deformable_detr.training.optimizer import build_optimizer, build_schedule
from deformable_detr.training.result import TrainResult
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.seeds import SeedsResult, train_seeds
from deformable_detr.training.train_step import NonFiniteLossError, train_step
from deformable_detr.training.trainer import train

__all__ = [
    "Callback",
    "DeadWorkerError",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "NonFiniteLossError",
    "OutOfMemoryError",
    "Run",
    "RunFolder",
    "Samples",
    "SeedsResult",
    "Step",
    "TrainResult",
    "TrainingInterrupted",
    "build_optimizer",
    "build_schedule",
    "train",
    "train_seeds",
    "train_step",
]
