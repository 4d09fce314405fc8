"""The losses of the class logits, element by element: focal, and three whose goal for a matched query is the quality of its box.

Every class is decided on its own. With p = sigmoid(logit), u the IoU of a matched query's box with its object (a constant
for the gradient) and BCE(p, t) = -t log p - (1 - t) log(1 - p), a matched class / any other class costs

- focal: alpha (1 - p)^gamma BCE(p, 1) / (1 - alpha) p^gamma BCE(p, 0)
- IA-BCE: BCE(p, t) with t = max(p^.25 u^.75, .01) held constant / p^2 BCE(p, 0)
- varifocal: u BCE(p, u) / .75 p^2 BCE(p, 0) with p^2 held constant
- MAL: BCE(p, u^gamma) / p^gamma BCE(p, 0) with p^gamma held constant
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

IA_BCE_SHARE = 0.25
"""Align-DETR's alpha: the exponent of the probability in the goal; the IoU has the rest."""

IA_BCE_LEAST = 0.01
"""No matched query has a goal below this."""

VARIFOCAL_ALPHA = 0.75
"""Weight of what is not matched."""


@dataclass(frozen=True)
class ClassLoss:
    """A loss as its two formulas; the few elements that are matched are computed apart from all others.

    As -log(1 - sigmoid(x)) = softplus(x), no probability is ever rounded to 0 or 1 inside a logarithm.
    """

    matched: Callable[[Tensor, Tensor], Tensor]
    """Logits `[P]` of matched classes and the quality of their boxes, `[P]` in [0, 1] → `[P]`."""

    others: Callable[[Tensor], Tensor]
    """Logits `[...]` of other classes → `[...]`."""

    def __call__(self, logits: Tensor, at: tuple[Tensor, ...], quality: Tensor) -> Tensor:
        """The loss of each element.

        Args:
            logits: `[...]`.
            at: the index of P elements, the classes of matched queries; none twice.
            quality: `[P]` in [0, 1], of their boxes.

        Returns:
            `[...]`, at least 0.
        """
        return self.others(logits).index_put(at, self.matched(logits[at], quality))


def focal_loss(alpha: float = 0.25, gamma: float = 2.0) -> ClassLoss:
    """Focal loss of independent binary classifications (Lin et al. 2017, equation 5).

    Args:
        alpha: weight of the positives; the negatives have 1 - alpha.
        gamma: how strongly easy examples are played down.
    """
    return ClassLoss(
        matched=lambda logits, quality: alpha * (-logits).sigmoid() ** gamma * F.softplus(-logits),
        others=lambda logits: (1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits),
    )


def ia_bce_loss() -> ClassLoss:
    """IoU-aware binary cross entropy (Cai et al. 2023, Align-DETR, section 3.2)."""

    def matched(logits: Tensor, quality: Tensor) -> Tensor:
        goal = logits.detach().sigmoid() ** IA_BCE_SHARE * quality ** (1 - IA_BCE_SHARE)
        return _cross_entropy(logits, goal.clamp(min=IA_BCE_LEAST))

    return ClassLoss(matched, others=lambda logits: logits.sigmoid() ** 2 * F.softplus(logits))


def varifocal_loss() -> ClassLoss:
    """Varifocal loss (Zhang et al. 2021, equation 2)."""
    return ClassLoss(
        matched=lambda logits, quality: quality * _cross_entropy(logits, quality),
        others=lambda logits: VARIFOCAL_ALPHA * logits.detach().sigmoid() ** 2 * F.softplus(logits),
    )


def matchability_aware_loss(gamma: float = 1.5) -> ClassLoss:
    """Matchability-aware loss (Huang et al. 2025, DEIM, section 3.2).

    Args:
        gamma: exponent of the goal and of the weight of what is not matched.
    """
    return ClassLoss(
        matched=lambda logits, quality: _cross_entropy(logits, quality**gamma),
        others=lambda logits: logits.detach().sigmoid() ** gamma * F.softplus(logits),
    )


def class_loss_function(kind: str, *, focal_alpha: float, focal_gamma: float, mal_gamma: float) -> ClassLoss:
    """The loss that a setting names.

    Args:
        kind: `focal`, `ia-bce`, `varifocal` or `mal`.
        focal_alpha: see :func:`focal_loss`.
        focal_gamma: see :func:`focal_loss`.
        mal_gamma: see :func:`matchability_aware_loss`.

    Raises:
        ValueError: another name.
    """
    functions: dict[str, Callable[[], ClassLoss]] = {
        "focal": lambda: focal_loss(focal_alpha, focal_gamma),
        "ia-bce": ia_bce_loss,
        "varifocal": varifocal_loss,
        "mal": lambda: matchability_aware_loss(mal_gamma),
    }
    if kind not in functions:
        raise ValueError(f"unknown class loss {kind!r}; known are {', '.join(functions)}")
    return functions[kind]()


def _cross_entropy(logits: Tensor, goal: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
