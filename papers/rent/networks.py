"""Networks of several members: one forward pass gives the logits of all, each with weights of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from papers.rent.transition_estimation import LEARNED, LearnedTransition
from shared.vision.models import Classifier, build_classifier
from shared.vision.options import ClassifierOptions

# Members' parameters are multiples of this many numbers, so that a vectorised optimizer treats those of every member
# alike: with leftovers, the last few numbers of a tensor are computed by other instructions, and rounded otherwise.
_ALIGNMENT = 16


class MLPMembers(nn.Module):
    """M multilayer perceptrons side by side, which start as copies of one.

    On one core the 27 methods of the digits' testbed train twice as fast in this way as one after another, where the
    many small operations of the losses cost as much as the network; `torch.func.vmap` over the network's function would
    be slower than one after another. Whatever the number of members, each learns the same numbers.
    """

    def __init__(self, classifier: Classifier, members: int):
        super().__init__()
        linear = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        self.num_classes = linear[-1].out_features
        weights = [layer.weight.detach().T for layer in linear]
        biases = [layer.bias.detach()[None] for layer in linear]
        padding = -self.num_classes % _ALIGNMENT
        weights[-1], biases[-1] = (nn.functional.pad(each, (0, padding)) for each in (weights[-1], biases[-1]))
        self.weights, self.biases = (
            nn.ParameterList(each.expand(members, -1, -1).clone() for each in values) for values in (weights, biases)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (M, B, C) of images (B, ...)."""
        hidden = images.flatten(1).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index < last:
                hidden = hidden.relu()
        return hidden[..., : self.num_classes]


class OneMember(nn.Module):
    """Any classifier, as a single member."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits (1, B, C) of images (B, ...)."""
        return self.classifier(images)[None]


class Learner(nn.Module):
    """What a training changes: the members' networks, and the transition matrices of those that learn theirs."""

    def __init__(
        self, options: ClassifierOptions, estimators: list[str | None], image_shape: torch.Size, classes: int, seed: int
    ):
        """Members that start with the same weights.

        Args:
            options: architecture.
            estimators: of each member; only an MLP can have more than one member.
            image_shape: (channels, H, W), square.
            classes: C.
            seed: of the weights.
        """
        super().__init__()
        channels, size, _ = image_shape
        classifier = build_classifier(options, channels=channels, size=size, num_classes=classes, seed=seed)
        is_mlp = options.architecture == "mlp"
        self.network = MLPMembers(classifier, len(estimators)) if is_mlp else OneMember(classifier)
        self.learned = nn.ModuleDict(
            {
                str(member): LearnedTransition(estimator, classes)
                for member, estimator in enumerate(estimators)
                if estimator in LEARNED
            }
        )

    def forward(self, images: Tensor) -> tuple[Tensor, dict[int, list[Tensor]]]:
        """Logits (M, B, C), and the learned matrices of each member that has some."""
        return self.network(images), {int(member): learned() for member, learned in self.learned.items()}
