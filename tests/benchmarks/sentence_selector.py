"""Speed of the sentence selector beside its naive form: `python -m tests.benchmarks.sentence_selector`.

The naive form joins every candidate with the state and multiplies anew in every step, as the equations are written; the
selector computes the sentences' part once per run. Forward and backward, no dropout, one thread, the sizes of the
paper's scale; rounds of the two are interleaved, so that a busy machine slows them alike, and medians are compared.
"""

import statistics
import time

import torch
from torch import Tensor

from papers.reic.selector import SentenceSelector

DOCUMENTS, CANDIDATES, PICKS, DIM, HIDDEN = 16, 64, 6, 768, 512
ROUNDS = 5


def naive_run(selector: SentenceSelector, target: Tensor, sentences: Tensor, picks: Tensor) -> Tensor:
    """log pi (B, K) of given picks, by the equations."""
    hidden = cell = target.new_zeros(len(target), selector.lstm_cell.hidden_size)
    rows, last, result = torch.arange(len(target)), target, []
    available = torch.ones(sentences.shape[:2], dtype=torch.bool)
    for step in range(picks.shape[1]):
        hidden, cell = selector.lstm_cell(last, (hidden, cell))
        joined = torch.cat([sentences, hidden[:, None].expand(-1, sentences.shape[1], -1)], 2)
        scores = selector.mlp2(torch.tanh(selector.mlp1(joined))).squeeze(-1)
        result.append(scores.masked_fill(~available, -torch.inf).log_softmax(1)[rows, picks[:, step]])
        available = available.scatter(1, picks[:, step, None], False)
        last = sentences[rows, picks[:, step]]
    return torch.stack(result, 1)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    selector = SentenceSelector(DIM, HIDDEN, HIDDEN, dropout=0.0)
    target, sentences = torch.randn(DOCUMENTS, DIM), torch.randn(DOCUMENTS, CANDIDATES, DIM)
    lengths = torch.full((DOCUMENTS,), CANDIDATES)
    picks = selector(target, sentences, lengths, PICKS, greedy=False).indices
    forms = {
        "naive": lambda: naive_run(selector, target, sentences, picks),
        "split product": lambda: selector.score_actions(target, sentences, lengths, picks),
    }
    torch.testing.assert_close(forms["naive"](), forms["split product"](), atol=1e-4, rtol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            started = time.process_time()
            form().sum().backward()
            seconds[name].append(time.process_time() - started)
            selector.zero_grad()
    for name, values in seconds.items():
        print(f"{name:14s} {1000 * statistics.median(values):8.1f} ms")
    ratio = statistics.median(seconds["naive"]) / statistics.median(seconds["split product"])
    print(f"{'ratio':14s} {ratio:8.1f}")


if __name__ == "__main__":
    main()
