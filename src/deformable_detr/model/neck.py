"""C3, C4, C5 → L levels of one width; the levels beyond C5 come from 3×3 convolutions of stride 2 (paper, app. A.2)."""

from collections.abc import Sequence

from torch import Tensor, nn

NORM_GROUPS = 32


class ChannelMapper(nn.Module):
    """One 1×1 convolution and GroupNorm per backbone level, and 3×3 stride-2 ones for further levels.

    The first further level reads the raw C5, not its projection; each next one reads the level before it.

    Args:
        in_channels: channels of the backbone's levels, finest first.
        hidden_dim: C.
        num_levels: L, at least `len(in_channels)`.
        pyramid: what the backbone gives → maps of these channels; None: they are what it gives.
    """

    def __init__(self, in_channels: Sequence[int], hidden_dim: int, num_levels: int, pyramid: nn.Module | None = None) -> None:
        super().__init__()
        extra = num_levels - len(in_channels)
        if extra < 0:
            raise ValueError(f"num_levels is {num_levels}, but the backbone gives {len(in_channels)} levels")
        self.pyramid = pyramid or nn.Identity()
        self.num_backbone_levels = len(in_channels)
        self.projections = nn.ModuleList([_projection(channels, hidden_dim, kernel_size=1) for channels in in_channels])
        for index in range(extra):
            self.projections.append(_projection(hidden_dim if index else in_channels[-1], hidden_dim, kernel_size=3))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps `[B, channels, h, w]` → L maps `[B, C, h, w]`, finest first."""
        levels = self.pyramid(levels)
        outputs = [project(level) for project, level in zip(self.projections, levels, strict=False)]
        source = levels[-1]
        for project in list(self.projections)[self.num_backbone_levels :]:
            source = project(source)
            outputs.append(source)
        return outputs


def _projection(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    stride, padding = (2, 1) if kernel_size == 3 else (1, 0)
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.GroupNorm(NORM_GROUPS, out_channels))
