"""Random numbers of the augmentations, from PyTorch's generator of the process, whatever its default dtype and device are."""

import torch


def uniform(low: float = 0.0, high: float = 1.0) -> float:
    """A number in [low, high)."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float32, device="cpu"))


def integer(low: int, high: int) -> int:
    """A whole number in [low, high)."""
    return int(torch.randint(low, high, (), dtype=torch.int64, device="cpu"))


def happens(probability: float) -> bool:
    """Whether something of this probability happens; a probability of 0 draws nothing."""
    return probability > 0 and uniform() < probability
