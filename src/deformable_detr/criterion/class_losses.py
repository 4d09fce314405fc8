"""The losses of the class logits, element by element: focal, and three whose goal for a matched query is the quality of its box.

Every class is decided on its own. With p = sigmoid(logit), u the IoU of a matched query's box with its object (a constant
for the gradient) and BCE(p, t) = -t log p - (1 - t) log(1 - p), a matched class / any other class costs

- focal: alpha (1 - p)^gamma BCE(p, 1) / (1 - alpha) p^gamma BCE(p, 0)
- IA-BCE: BCE(p, t) with t = max(p^.25 u^.75, .01) held constant / p^2 BCE(p, 0)
- varifocal: u BCE(p, u) / .75 p^2 BCE(p, 0) with p^2 held constant
- MAL: BCE(p, u^gamma) / p^gamma BCE(p, 0) with p^gamma held constant
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ClassLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits `[...]`, positive `[...]` bool, quality `[...]` in [0, 1], read where positive) → the loss of each element, `[...]`."""

IA_BCE_SHARE = 0.25
"""Align-DETR's alpha: the exponent of the probability in the goal; the IoU has the rest."""

IA_BCE_LEAST = 0.01
"""No matched query has a goal below this."""

VARIFOCAL_ALPHA = 0.75
"""Weight of what is not matched."""


def sigmoid_focal_loss(logits: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent binary classifications (Lin et al. 2017, equation 5), element by element.

    As 1 - sigmoid(x) = sigmoid(-x), positives and negatives share one formula of the logit with its sign flipped at the
    positives, and no probability is ever rounded to 0 or 1 inside a logarithm.

    Args:
        logits: `[...]`.
        positive: `[...]` bool, True for the positive class.
        alpha: weight of the positives; the negatives have 1 - alpha.
        gamma: how strongly easy examples are played down.

    Returns:
        `[...]`, at least 0.
    """
    wrongness = torch.where(positive, -logits, logits)
    weight = (1 - alpha) + (2 * alpha - 1) * positive.to(logits.dtype)
    return weight * wrongness.sigmoid() ** gamma * -F.logsigmoid(-wrongness)


def ia_bce_loss(logits: Tensor, positive: Tensor, quality: Tensor) -> Tensor:
    """IoU-aware binary cross entropy (Cai et al. 2023, Align-DETR, section 3.2), element by element.

    Args:
        logits: `[...]`.
        positive: `[...]` bool, True at the class of a matched query.
        quality: `[...]` in [0, 1], the IoU of a matched query's box.

    Returns:
        `[...]`, at least 0.
    """
    probability = logits.sigmoid()
    wanted = probability.detach() ** IA_BCE_SHARE * quality ** (1 - IA_BCE_SHARE)
    target = torch.where(positive, wanted.clamp(min=IA_BCE_LEAST), 0.0)
    weight = torch.where(positive, 1.0, probability**2)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def varifocal_loss(logits: Tensor, positive: Tensor, quality: Tensor) -> Tensor:
    """Varifocal loss (Zhang et al. 2021, equation 2), element by element; arguments as of :func:`ia_bce_loss`."""
    target = torch.where(positive, quality, 0.0)
    weight = torch.where(positive, quality, VARIFOCAL_ALPHA * logits.detach().sigmoid() ** 2)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def matchability_aware_loss(logits: Tensor, positive: Tensor, quality: Tensor, gamma: float = 1.5) -> Tensor:
    """Matchability-aware loss (Huang et al. 2025, DEIM, section 3.2), element by element.

    Args:
        logits: `[...]`.
        positive: `[...]` bool, True at the class of a matched query.
        quality: `[...]` in [0, 1], the IoU of a matched query's box.
        gamma: exponent of the goal and of the weight of what is not matched.

    Returns:
        `[...]`, at least 0.
    """
    target = torch.where(positive, quality**gamma, 0.0)
    weight = torch.where(positive, 1.0, logits.detach().sigmoid() ** gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def class_loss_function(kind: str, *, focal_alpha: float, focal_gamma: float, mal_gamma: float) -> ClassLoss:
    """The loss that a setting names.

    Args:
        kind: `focal`, `ia-bce`, `varifocal` or `mal`.
        focal_alpha: see :func:`sigmoid_focal_loss`.
        focal_gamma: see :func:`sigmoid_focal_loss`.
        mal_gamma: see :func:`matchability_aware_loss`.

    Raises:
        ValueError: another name.
    """
    functions: dict[str, ClassLoss] = {
        "focal": lambda logits, positive, quality: sigmoid_focal_loss(logits, positive, focal_alpha, focal_gamma),
        "ia-bce": ia_bce_loss,
        "varifocal": varifocal_loss,
        "mal": lambda logits, positive, quality: matchability_aware_loss(logits, positive, quality, mal_gamma),
    }
    if kind not in functions:
        raise ValueError(f"unknown class loss {kind!r}; known are {', '.join(functions)}")
    return functions[kind]
