"""Score: ROUGE-L, Self-BLEU and the grammar's verdict on every response."""

from __future__ import annotations

import pandas as pd

from papers.csd.options import ScoreOptions
from papers.csd.runs import PROMPT_KEY
from papers.csd.testbed import parse_rate
from shared.lm.diversity import self_bleu
from shared.lm.rouge import rouge_l
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def score(options: ScoreOptions, *, judge: str, samples: tuple[Input, ...], prompts: Input, scores: Output) -> None:
    """Write one row for each run and prompt: means over its samples.

    ``judge`` is ``gold`` where the grammar can tell right responses from wrong ones, else ``none``. Columns: setting,
    method, seed, suite, prompt_id, rouge_l, self_bleu (both x 100), parse (gold only), teacher_nll, tokens; float32.
    """
    responses = pd.concat([read_table(path) for path in samples], ignore_index=True)
    asked = read_table(prompts, ("suite", "prompt_id", "prompt", "references"))
    responses = responses.merge(asked, on=["suite", "prompt_id"], validate="many_to_one")
    references = responses.pop("references").map(list).tolist()
    texts = responses["response"].tolist()
    responses["rouge_l"] = [100 * value for value in rouge_l(texts, references, stemmer=options.stemmer)]
    means = ["rouge_l", "teacher_nll", "tokens"]
    if judge == "gold":
        responses["parse"] = parse_rate(responses["prompt"].tolist(), texts, responses["finished"].tolist())
        means.append("parse")
    groups = responses.groupby(PROMPT_KEY)
    table = groups[means].mean()
    table["self_bleu"] = groups["response"].agg(lambda group: 100 * self_bleu([group.tolist()]))
    write_table(scores, table.astype("float32").reset_index())


if __name__ == "__main__":
    run(score)
