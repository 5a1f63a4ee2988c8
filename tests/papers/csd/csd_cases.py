"""Logits and losses that the tests of this folder share."""

from itertools import combinations_with_replacement, product

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from papers.csd.distillation_objectives import (
    CENTERINGS,
    DEFAULT_SKEW,
    WEIGHTINGS,
    concrete_score_loss,
    direct_logit_loss,
    pairwise_concrete_score_loss,
    token_divergence,
)

PAIRS = tuple(product(WEIGHTINGS, WEIGHTINGS))
UNORDERED = tuple(combinations_with_replacement(WEIGHTINGS, 2))

LOSSES = {
    **{f"concrete_{a}_{b}": lambda f, t, p=(a, b): concrete_score_loss(f, t, weighting=p) for a, b in UNORDERED},
    **{f"direct_{w}": lambda f, t, w=w: direct_logit_loss(f, t, weighting=w) for w in WEIGHTINGS},
    **{f"direct_{c}": lambda f, t, c=c: direct_logit_loss(f, t, centering=c) for c in CENTERINGS},
    **{kind: lambda f, t, kind=kind: token_divergence(f, t, kind) for kind in DEFAULT_SKEW},
}
PAIRWISE = {
    "pairwise": lambda f, t: pairwise_concrete_score_loss(f, t, torch.ones(f.shape[-1], f.shape[-1]) / f.shape[-1] ** 2)
}


def random_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits in float64."""
    generator = torch.Generator().manual_seed(seed)
    f, t = (scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)).unbind()
    return f, t


@st.composite
def drawn_logits(draw) -> tuple[Tensor, Tensor]:
    """One to three tokens of up to six words, ties and zeros among them."""
    shape = (2, draw(st.integers(1, 3)), draw(st.integers(1, 6)))
    f, t = draw(hnp.arrays(np.float64, shape, elements=st.floats(-20, 20)))
    return torch.tensor(f), torch.tensor(t)


def gradient_of(loss, f: Tensor) -> Tensor:
    """Gradient of the sum of ``loss(f)``."""
    f = f.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(f).sum(), f)
    return gradient
