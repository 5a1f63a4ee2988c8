"""Relation modules: from the texts of a bag's paths to the logits of relations.

A batch has P paths in bags; both modules give path logits (P, R) and bag logits (bags, R), class 0 being n/a.

**End-to-end** (CodRED). e_p is the encoder's output at [CLS], path logits are W e_p + b. Relation attention takes the
paths of a bag together, for each class c by itself: alpha_{p,c} = softmax over p of W_c e_p, bag logit
W_c sum_p alpha_{p,c} e_p + b_c. Loss: cross-entropies of bags and of paths, n/a weighted.

**ECRIM-like**. Vectors of entities (first target mentions, bridges; maximum over their tokens) of all paths of a bag
make a pair matrix r_ij = relu(L relu(U e_i + V e_j)); a transformer runs over its cells; path logits come from the cell
(head of p, tail of p), bag logits are their maximum over paths. Loss: with thresholds, for a path with label y,
log(e^10 + sum_{c != y} e^{l_c}) + log(e^-8 + e^{-l_y}) - 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

UPPER, LOWER = 10.0, 8.0
"""Thresholds: other classes are pushed below the upper, the label above the lower one."""


@dataclass(frozen=True)
class BagBatch:
    """Texts of the paths of several bags."""

    input_ids: Tensor
    """(P, S) int64: [CLS] head's text [SEP] tail's text [SEP]."""
    attention_mask: Tensor
    """(P, S) int64, 1 on real tokens."""
    token_type_ids: Tensor
    """(P, S) int64, 1 behind the first [SEP]."""
    bag_of: Tensor
    """(P,) int64, the bag of each path, ascending from 0."""
    num_bags: int

    def to(self, device: torch.device) -> BagBatch:
        tensors = (self.input_ids, self.attention_mask, self.token_type_ids, self.bag_of)
        return BagBatch(*(each.to(device) for each in tensors), self.num_bags)


def by_bag(values: Tensor, bag_of: Tensor, num_bags: int) -> tuple[Tensor, Tensor]:
    """Rows of paths (P, ...) as (bags, most paths, ...), zero where a bag has fewer; and where it has (bags, most)."""
    counts = torch.bincount(bag_of, minlength=num_bags)
    place = torch.arange(len(bag_of), device=bag_of.device) - (counts.cumsum(0) - counts)[bag_of]
    padded = values.new_zeros(num_bags, int(counts.max()), *values.shape[1:])
    real = torch.arange(padded.shape[1], device=bag_of.device) < counts[:, None]
    return padded.index_put((bag_of, place), values), real


def aggregate_paths(
    scores: Tensor, bias: Tensor, bag_of: Tensor, num_bags: int, aggregator: str = "attention"
) -> Tensor:
    """Bag logits (bags, R).

    Relation attention needs the scores alone: W_c sum_p alpha_{p,c} e_p = sum_p alpha_{p,c} (W_c e_p).

    Args:
        scores: (P, R), W e_p without the bias.
        bias: (R,).
        bag_of: (P,) int64; every bag has a path.
        num_bags: number of bags.
        aggregator: "attention", "max" or "mean".

    Raises:
        ValueError: unknown aggregator.
    """
    padded, real = by_bag(scores, bag_of, num_bags)
    hidden = ~real[..., None]
    if aggregator == "attention":
        return (padded.masked_fill(hidden, -torch.inf).softmax(1) * padded).sum(1) + bias
    if aggregator == "max":
        return padded.masked_fill(hidden, -torch.inf).amax(1) + bias
    if aggregator == "mean":
        return padded.sum(1) / real.sum(1, keepdim=True) + bias
    raise ValueError(f"aggregator: unknown {aggregator!r}; there are: attention, max, mean")


def two_threshold_loss(logits: Tensor, labels: Tensor, *, upper: float = UPPER, lower: float = LOWER) -> Tensor:
    """log(e^u + sum_{c != y} e^{l_c}) + log(e^-v + e^{-l_y}) - (u - v), (P,): above 0, which is its infimum.

    Args:
        logits: (P, R).
        labels: (P,) int64.
        upper, lower: u and v.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    pushed_down = torch.cat([others, torch.full_like(own, upper)[:, None]], 1).logsumexp(1)
    # log(e^-v + e^-l) = softplus(v - l) - v
    return (pushed_down - upper) + softplus(lower - own)


class EndToEnd(nn.Module):
    """CodRED's end-to-end model."""

    reward = "margin"

    def __init__(self, encoder: nn.Module, num_classes: int, *, aggregator: str = "attention", na_weight: float = 0.1):
        """An encoder of transformers with a new predictor.

        Args:
            encoder: gives a ``last_hidden_state``.
            num_classes: R.
            aggregator: of `aggregate_paths`.
            na_weight: weight of n/a in the cross-entropies.
        """
        super().__init__()
        self.encoder, self.aggregator = encoder, aggregator
        self.predictor = nn.Linear(encoder.config.hidden_size, num_classes)
        weights = torch.ones(num_classes)
        weights[0] = na_weight
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Path logits (P, R) and bag logits (bags, R), float32."""
        vectors = encode(self.encoder, batch)[:, 0]
        with torch.autocast(vectors.device.type, enabled=False):
            scores = nn.functional.linear(vectors.float(), self.predictor.weight)
            bags = aggregate_paths(scores, self.predictor.bias, batch.bag_of, batch.num_bags, self.aggregator)
            return scores + self.predictor.bias, bags

    def loss(self, path_logits: Tensor, bag_logits: Tensor, path_labels: Tensor, bag_labels: Tensor) -> Tensor:
        """Cross-entropy of bags plus that of paths, each a weighted mean."""
        return cross_entropy(bag_logits, bag_labels, self.class_weights) + self.path_loss(path_logits, path_labels)

    def path_loss(self, path_logits: Tensor, path_labels: Tensor) -> Tensor:
        """Cross-entropy of paths alone."""
        return cross_entropy(path_logits, path_labels, self.class_weights)


class Ecrim(nn.Module):
    """A module like ECRIM's: entities of all paths of a bag in one pair matrix."""

    reward = "threshold"

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        *,
        target_markers: tuple[tuple[int, int], tuple[int, int]],
        bridge_markers: tuple[tuple[int, int], ...],
        layers: int = 4,
        heads: int = 8,
        feedforward: int = 1024,
        most_mentions: int = 8,
        threshold: float = UPPER,
    ):
        """An encoder with new layers over the pair matrix.

        Args:
            encoder: gives a ``last_hidden_state``.
            num_classes: R.
            target_markers: ids of the opening and closing marker of head and tail.
            bridge_markers: those of the bridges.
            layers, heads, feedforward: of the transformer over the pair matrix.
            most_mentions: bridges of a path that enter the matrix, the first ones in its text.
            threshold: the upper one of the loss; the lower one is 2 below.
        """
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder, self.most_mentions, self.threshold = encoder, most_mentions, threshold
        self.from_first, self.from_second = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(width, width)
        layer = nn.TransformerEncoderLayer(width, heads, feedforward, dropout=0.0, batch_first=True)
        self.pairs = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.predictor = nn.Linear(width, num_classes)
        self.register_buffer("targets", torch.tensor(target_markers), persistent=False)
        self.register_buffer("bridges", torch.tensor(bridge_markers), persistent=False)

    def forward(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Path logits (P, R) and bag logits (bags, R), float32."""
        hidden = encode(self.encoder, batch)
        with torch.autocast(hidden.device.type, enabled=False):
            entities, present = self.entity_vectors(hidden.float(), batch.input_ids)
            (padded, real), (there, _) = (by_bag(each, batch.bag_of, batch.num_bags) for each in (entities, present))
            bags, most, slots, width = padded.shape
            vectors = padded.reshape(bags, most * slots, width)
            known = (there & real[..., None]).reshape(bags, most * slots)
            # Head and tail of a path are slots 0 and 1 and always count, so that no row of attention is empty.
            cells = self.mix(torch.relu(self.from_first(vectors)[:, :, None] + self.from_second(vectors)[:, None]))
            outside = ~(known[:, :, None] & known[:, None]).flatten(1)
            matrix = self.pairs(torch.relu(cells).flatten(1, 2), src_key_padding_mask=outside)
            heads = torch.arange(most, device=hidden.device) * slots
            chosen = matrix[:, heads * most * slots + heads + 1]
            logits = self.predictor(chosen)[real]
            return logits, aggregate_paths(logits, logits.new_zeros(()), batch.bag_of, batch.num_bags, "max")

    def entity_vectors(self, hidden: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (P, 2 + bridges, width) of head, tail and bridges, and whether a text has them, (P, 2 + bridges).

        The bridges of a path are the first ones in its text, at most `most_mentions`. A target mention without tokens
        (cut away by the budget) has the vector at [CLS].
        """
        openings = self.bridges[:, 0]
        first_at = (input_ids[:, None] == openings[:, None]).long()
        seen = first_at.amax(2).bool()
        order = (
            first_at.argmax(2)
            .masked_fill(~seen, input_ids.shape[1])
            .argsort(dim=1, stable=True)[:, : self.most_mentions]
        )
        order = order[:, : max(1, int(seen.sum(1).clamp(max=self.most_mentions).max()))]
        markers = torch.cat([self.targets.expand(len(input_ids), -1, -1), self.bridges[order]], 1)
        vectors, present = [], []
        for slot in range(markers.shape[1]):
            opening, closing = markers[:, slot, :1], markers[:, slot, 1:]
            opened = (input_ids == opening).cumsum(1) - (input_ids == closing).cumsum(1)
            inside = (opened > 0) & (input_ids != opening)
            if slot < 2:
                inside = inside.clone()
                inside[:, 0] |= ~inside.any(1)
            vectors.append(hidden.masked_fill(~inside[..., None], -torch.inf).amax(1))
            present.append(inside.any(1))
        there = torch.stack(present, 1)
        return torch.stack(vectors, 1).masked_fill(~there[..., None], 0.0), there

    def loss(self, path_logits: Tensor, bag_logits: Tensor, path_labels: Tensor, bag_labels: Tensor) -> Tensor:
        """The two-threshold loss, mean over paths."""
        return self.path_loss(path_logits, path_labels)

    def path_loss(self, path_logits: Tensor, path_labels: Tensor) -> Tensor:
        """The same."""
        return two_threshold_loss(
            path_logits, path_labels, upper=self.threshold, lower=self.threshold - (UPPER - LOWER)
        ).mean()


def encode(encoder: nn.Module, batch: BagBatch) -> Tensor:
    """Hidden states (P, S, width); encoders with a single token type (RoBERTa) get no types."""
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if getattr(encoder.config, "type_vocab_size", 1) > 1:
        arguments["token_type_ids"] = batch.token_type_ids
    return encoder(**arguments).last_hidden_state
