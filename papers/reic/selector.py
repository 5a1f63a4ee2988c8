"""The sentence selector of REIC: which sentences of a long document a relation extraction model gets to read.

"Reward-based Input Construction for Cross-document Relation Extraction", Na et al., ACL 2024 (arXiv 2405.20649).

A document has a target sentence, which mentions the head or the tail entity, and M candidates. With frozen embeddings
z_tgt and z_1..z_M in R^D, x_0 = z_tgt and h_0 = c_0 = 0, step t = 1..K of the policy is

    (h_t, c_t) = LSTMCell(x_{t-1}, (h_{t-1}, c_{t-1}))
    a_{m,t}    = w_2' tanh(W_1 [z_m; h_t] + b_1) + b_2
    pi_t       = softmax of a_{.,t} over candidates that have not been picked
    m_t ~ pi_t (training) or argmax (inference);   x_t = z_{m_t}

so that a selection is an ordered draw without replacement, with log pi = sum_t log pi_t(m_t). Once a document is
exhausted nothing is picked: index -1, log-probability 0.

W_1 [z; h] = W_z z + W_h h: the first product is the same in every step and computed once, unless dropout gives every
step a mask of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear


class Selection(NamedTuple):
    """Picks of B documents in K steps."""

    indices: Tensor
    """(B, K) int64, candidates in the order of picking; -1 once the document is exhausted."""
    log_probs: Tensor
    """(B, K), log pi_t of each pick; 0 where ``indices`` is -1."""


class SentenceSelector(nn.Module):
    """The policy; its parameters are those of the official implementation, so that its checkpoints load."""

    def __init__(
        self,
        embedding_dim: int = 768,
        hidden_dim: int = 512,
        mlp_dim: int = 512,
        *,
        dropout: float = 0.5,
        one_mask: bool = False,
    ):
        """A policy with random weights.

        Args:
            embedding_dim: D.
            hidden_dim: H, of the LSTM's state.
            mlp_dim: hidden units of the scoring network.
            dropout: on z, x, h and the hidden units, in training mode, in [0, 1).
            one_mask: drop the same components of the z in all steps of a run, which keeps the product with them a
                single one. The official implementation draws them anew in every step.
        """
        super().__init__()
        self.dropout, self.one_mask = dropout, one_mask
        self.lstm_cell = nn.LSTMCell(embedding_dim, hidden_dim)
        self.mlp1 = nn.Linear(hidden_dim + embedding_dim, mlp_dim)
        self.mlp2 = nn.Linear(mlp_dim, 1)

    def forward(
        self,
        target: Tensor,
        sentences: Tensor,
        lengths: Tensor,
        num_steps: int,
        *,
        greedy: bool,
        exploration: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """Pick up to K candidates of each document.

        Args:
            target: (B, D), z_tgt.
            sentences: (B, M, D); rows from ``lengths`` on are ignored, whatever they hold.
            lengths: (B,) int64 in [0, M].
            num_steps: K >= 0.
            greedy: take the most probable candidate, the first of equal ones, instead of drawing one.
            exploration: probability, for each document and step by itself, of a uniform pick; its log-probability is
                then the uniform one, a constant without gradient.
            generator: of the draws.

        Raises:
            ValueError: shapes or widths that do not fit, lengths outside [0, M], a negative ``num_steps``, or an
                exploration outside [0, 1].
        """
        if num_steps < 0:
            raise ValueError(f"num_steps: must not be negative, got {num_steps}")
        if not 0.0 <= exploration <= 1.0:
            raise ValueError(f"exploration: must lie in [0, 1], got {exploration}")

        def choose(step: int, log_pi: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
            if greedy:
                picks = log_pi.argmax(-1, keepdim=True)
            else:
                picks = torch.multinomial(log_pi.detach().exp(), 1, generator=generator)
            chosen = log_pi.gather(1, picks)
            if exploration > 0.0:
                shape, device = (len(picks), 1), picks.device
                explores = torch.rand(shape, generator=generator, device=device) < exploration
                possible = (~log_pi.isneginf()).to(log_pi.dtype)
                uniform = torch.multinomial(possible, 1, generator=generator)
                picks = torch.where(explores, uniform, picks)
                chosen = torch.where(explores, -possible.sum(1, keepdim=True).log(), chosen)
            return picks[:, 0], chosen[:, 0]

        return self._run(target, sentences, lengths, num_steps, choose)

    def score_actions(self, target: Tensor, sentences: Tensor, lengths: Tensor, indices: Tensor) -> Tensor:
        """log pi_t of given picks, (B, K), differentiable in the parameters.

        Args:
            target, sentences, lengths: as in `forward`.
            indices: (B, K) int64; -1 exactly where the document is exhausted.

        Raises:
            ValueError: as `forward`; a pick that repeats, lies outside the document, or is -1 too early.
        """
        if indices.ndim != 2 or len(indices) != len(target) or indices.is_floating_point():
            raise ValueError(f"indices: need integers ({len(target)}, K), got {tuple(indices.shape)} {indices.dtype}")

        def choose(step: int, log_pi: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
            picks = indices[:, step]
            inside = (picks >= 0) & (picks < available.shape[1])
            safe = picks.where(inside, 0)
            exhausted = ~available.any(1)
            right = torch.where(exhausted, picks == -1, inside & available.gather(1, safe[:, None])[:, 0])
            if not right.all():
                row = int((~right).nonzero()[0, 0])
                raise ValueError(
                    f"indices: pick {int(picks[row])} of document {row} in step {step} repeats or is not available"
                )
            return safe, log_pi.gather(1, safe[:, None])[:, 0]

        return self._run(target, sentences, lengths, indices.shape[1], choose).log_probs

    def _run(
        self,
        target: Tensor,
        sentences: Tensor,
        lengths: Tensor,
        num_steps: int,
        choose: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Selection:
        """K steps; ``choose`` gives picks and their log-probabilities, (B,), from log pi_t and what is available, (B,
        M).

        Exhausted documents have some log pi_t over all candidates; what is chosen for them does not count.
        """
        self._check(target, sentences, lengths)
        rows = torch.arange(len(target), device=target.device)
        if sentences.shape[1] == 0:  # a masked candidate: one case less for all that follows
            sentences = sentences.new_zeros(len(target), 1, sentences.shape[2])
        available = torch.arange(sentences.shape[1], device=target.device) < lengths[:, None]
        sentences = sentences.where(available[..., None], 0.0)  # zeros, not masks: NaN times 0 is NaN
        score = self._scorer(sentences)
        hidden = cell = target.new_zeros(len(target), self.lstm_cell.hidden_size)
        last, indices, log_probs = target, [], []
        for step in range(num_steps):
            hidden, cell = self._advance(last, hidden, cell)
            exhausted = ~available.any(1)
            # Where nothing is left, nothing is masked: a softmax of -inf alone is NaN, and so is its gradient.
            masked = ~available & ~exhausted[:, None]
            log_pi = score(hidden).masked_fill(masked, -torch.inf).log_softmax(-1)
            picks, chosen = choose(step, log_pi, available)
            indices.append(picks.masked_fill(exhausted, -1))
            log_probs.append(chosen.masked_fill(exhausted, 0.0))
            last = sentences[rows, picks]
            available = available.scatter(1, picks[:, None], False)
        if not indices:
            return Selection(lengths.new_zeros(len(target), 0), target.new_zeros(len(target), 0))
        return Selection(torch.stack(indices, 1), torch.stack(log_probs, 1))

    def _advance(self, last: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The state after reading the last pick: h_t (B, H), as it is carried on, and c_t (B, H)."""
        hidden, cell = self.lstm_cell(self._drop(last), (hidden, cell))
        return self._drop(hidden), cell

    def _scorer(self, sentences: Tensor) -> Callable[[Tensor], Tensor]:
        """Scores (B, M) as a function of the state h_t, with what does not depend on it computed once."""
        width = sentences.shape[2]
        of_sentence, of_state = self.mlp1.weight[:, :width], self.mlp1.weight[:, width:]
        masks_differ = self.training and self.dropout > 0 and not self.one_mask
        shared = None if masks_differ else linear(self._drop(sentences), of_sentence)

        def score(hidden: Tensor) -> Tensor:
            product = linear(self._drop(sentences), of_sentence) if shared is None else shared
            state = linear(hidden, of_state, self.mlp1.bias)
            return self.mlp2(torch.tanh(self._drop(product + state[:, None]))).squeeze(-1)

        return score

    def _drop(self, values: Tensor) -> Tensor:
        return dropout(values, self.dropout, self.training) if self.dropout > 0 else values

    def _check(self, target: Tensor, sentences: Tensor, lengths: Tensor) -> None:
        width = self.lstm_cell.input_size
        if target.ndim != 2 or target.shape[1] != width:
            raise ValueError(f"target: need shape (B, {width}), got {tuple(target.shape)}")
        if sentences.ndim != 3 or sentences.shape[0] != len(target) or sentences.shape[2] != width:
            raise ValueError(f"sentences: need shape ({len(target)}, M, {width}), got {tuple(sentences.shape)}")
        if lengths.shape != target.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(f"lengths: need integers ({len(target)},), got {tuple(lengths.shape)} {lengths.dtype}")
        if len(lengths) and not (int(lengths.min()) >= 0 and int(lengths.max()) <= sentences.shape[1]):
            raise ValueError(f"lengths: must lie in [0, {sentences.shape[1]}], got {lengths.tolist()}")


class StatelessSelector(SentenceSelector):
    """The ablation: scores from z_m alone (the state is always zero), so that greedy picks are the K best scores."""

    def _advance(self, last: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, cell


def uniform_picks(lengths: Tensor, num_steps: int, generator: torch.Generator | None = None) -> Tensor:
    """K distinct candidates of each document, drawn uniformly: (B, K) int64, -1 once a document is exhausted.

    Args:
        lengths: (B,) int64.
        num_steps: K.
    """
    most = max(int(lengths.max()) if len(lengths) else 0, num_steps)
    keys = torch.rand(len(lengths), most, generator=generator, device=lengths.device)
    outside = torch.arange(most, device=lengths.device) >= lengths[:, None]
    order = keys.masked_fill(outside, 2.0).argsort(dim=1, stable=True)[:, :num_steps]
    return order.where(order < lengths[:, None], -1)
