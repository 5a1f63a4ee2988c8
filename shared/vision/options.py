"""Options of the image classifiers; without PyTorch, since workflows read them before anything is planned."""

from dataclasses import dataclass
from typing import Literal

DEFAULT_WIDTHS = {"mlp": (256, 256), "cnn": (8, 16, 16)}
RESNET_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class ClassifierOptions:
    """Architecture of an image classifier."""

    architecture: Literal["mlp", "cnn", "resnet18", "resnet34", "resnet50"] = "mlp"
    """The ResNets have the stem for small images: a 3x3 convolution and no pooling."""
    widths: tuple[int, ...] | None = None
    """Units of an MLP's hidden layers, channels of a CNN's convolutions, or channels of the four stages of a ResNet
    (before a bottleneck's fourfold expansion). Default: 256 256, 8 16 16, 64 128 256 512."""
    hidden: int = 64
    """Units of a CNN's linear layer before its head."""

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """The widths in force."""
        return self.widths or DEFAULT_WIDTHS.get(self.architecture, RESNET_WIDTHS)
