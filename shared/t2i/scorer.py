"""A small CLIP: how well an image fits a caption, differentiable in the image.

Three of them are trained on different scenes: the *conditioner*, whose text encoder conditions the diffusion model; the
*guidance* scorer, a reward that methods may follow; the *evaluator*, which judges and which no method sees. A fourth,
the *preference* scorer, is the guidance scorer trained further on pairs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from shared.t2i.captions import WordTokenizer
from shared.t2i.networks import conv_block

TEXT_WIDTH = 64
FEATURES = 64
HIDDEN_FEATURES = 128


def build_text_encoder() -> CLIPTextModel:
    """A `CLIPTextModel` of two layers and width 64 over the tokens of `WordTokenizer`, with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=WordTokenizer.vocabulary_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WordTokenizer.length,
            pad_token_id=WordTokenizer.pad_id,
            bos_token_id=WordTokenizer.bos_id,
            eos_token_id=WordTokenizer.eos_id,
        )
    )


class DualEncoderScorer(nn.Module):
    """Text and image encoders into one 64-dimensional unit sphere; `width` channels in the first image layer.

    Images are (B, 3, 12, 12) in [-1, 1].
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.width = width
        self.text_model = build_text_encoder()
        self.text_projection = nn.Linear(TEXT_WIDTH, FEATURES, bias=False)
        self.image_hidden = nn.Sequential(
            conv_block(3, width),
            conv_block(width, 2 * width, stride=2),
            conv_block(2 * width, 2 * width),
            conv_block(2 * width, 3 * width, stride=2),
            nn.Flatten(),
            nn.Linear(3 * width * 9, HIDDEN_FEATURES),
            nn.SiLU(),
        )
        self.image_projection = nn.Linear(HIDDEN_FEATURES, FEATURES)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def text_features(self, ids: Tensor) -> Tensor:
        """Unit vectors (B, 64) of token ids (B, 12)."""
        return F.normalize(self.text_projection(self.text_model(input_ids=ids).pooler_output), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit vectors (B, 64) of images."""
        return F.normalize(self.image_projection(self.image_hidden(images)), dim=-1)

    def perceptual_features(self, images: Tensor) -> Tensor:
        """The image encoder's last hidden layer (B, 128), on which distances between sets of images are measured."""
        return self.image_hidden(images)

    def forward(self, images: Tensor, text_features: Tensor) -> Tensor:
        """Cosine (B,) in [-1, 1] of images and the captions' features (B, 64)."""
        return (self.image_features(images) * text_features).sum(dim=-1)


def contrastive_loss(scorer: nn.Module, images: Tensor, ids: Tensor, degraded: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE between B images and their captions, a scalar.

    Other pairs with the very same caption are left out. Degraded copies are further wrong answers for every caption:
    log(2B) is then the loss of a guess in that direction.

    Args:
        scorer: a `DualEncoderScorer`.
        images: (B, 3, 12, 12).
        ids: (B, 12), their captions' tokens.
        degraded: (B', 3, 12, 12) or None.
    """
    texts = scorer.text_features(ids)
    logits = scorer.log_scale.exp() * texts @ scorer.image_features(images).T  # (captions, images)
    same = (ids[:, None] == ids[None]).all(dim=-1) & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    logits = logits.masked_fill(same, -torch.inf)
    own = torch.arange(len(ids), device=ids.device)
    loss_of_images = F.cross_entropy(logits.T, own)
    if degraded is not None:
        worse = scorer.log_scale.exp() * texts @ scorer.image_features(degraded).T
        logits = torch.cat([logits, worse], dim=1)
    return (F.cross_entropy(logits, own) + loss_of_images) / 2


def preference_loss(scorer: nn.Module, better: Tensor, worse: Tensor, ids: Tensor) -> Tensor:
    """Bradley-Terry loss -log sigmoid(s (r(better) - r(worse))) of pairs of images for one caption each, a scalar.

    r is the scorer's cosine and s its scale; better and worse (B, 3, 12, 12), ids (B, 12).
    """
    texts = scorer.text_features(ids)
    difference = ((scorer.image_features(better) - scorer.image_features(worse)) * texts).sum(dim=-1)
    return -F.logsigmoid(scorer.log_scale.exp() * difference).mean()
