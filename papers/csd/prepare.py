"""Prepare: draw the testbed's data: the teacher's examples, the distillation set, and the prompts of all suites."""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.csd.options import VALIDATION, DataOptions
from papers.csd.template_language import SUITES, Prompts, sample_prompts, sample_responses
from papers.csd.testbed import LANGUAGE, WORDS, to_texts
from shared.stage import Output, run
from shared.tables import write_table

# Validation and test prompts are the same for every training seed, so that seeds are paired prompt by prompt.
EVALUATION_SEED = 20_260_301


def prepare(
    options: DataOptions,
    *,
    seed: int,
    words: Output,
    teaching: Output,
    distillation: Output,
    plain: Output,
    prompts: Output,
) -> None:
    """Draw one training seed's examples, and the prompts with their references.

    ``teaching`` and ``distillation`` have the columns prompt, answer; ``plain`` has the column text, the distillation
    set's answers without their prompts; ``prompts`` has suite (``validation`` or a test suite), prompt_id, prompt,
    references (a list of texts).
    """
    words.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    rng = np.random.default_rng([seed, 0])
    for path, size in ((teaching, options.teacher_examples), (distillation, options.distillation_examples)):
        asked = sample_prompts(LANGUAGE, "in_distribution", size, rng)
        examples = pd.DataFrame({"prompt": to_texts(asked.tokens), "answer": _answers(asked, rng)})
        write_table(path, examples)
    write_table(plain, examples[["answer"]].rename(columns={"answer": "text"}))
    fixed = np.random.default_rng(EVALUATION_SEED)
    validation = sample_prompts(LANGUAGE, "in_distribution", options.validation_prompts, fixed)
    suites = {VALIDATION: validation}
    suites |= {suite: sample_prompts(LANGUAGE, suite, options.suite_prompts, fixed) for suite in SUITES}
    write_table(
        prompts,
        pd.concat([_suite_table(suite, asked, options.references, fixed) for suite, asked in suites.items()]),
    )


def _suite_table(suite: str, asked: Prompts, references: int, rng: np.random.Generator) -> pd.DataFrame:
    drawn = [_answers(asked, rng) for _ in range(references)]
    return pd.DataFrame(
        {
            "suite": suite,
            "prompt_id": np.arange(len(asked.topics)),
            "prompt": to_texts(asked.tokens),
            "references": list(map(list, zip(*drawn, strict=True))),
        }
    )


def _answers(asked: Prompts, rng: np.random.Generator) -> list[str]:
    return to_texts(sample_responses(LANGUAGE, asked.verbs, asked.topics, rng))


if __name__ == "__main__":
    run(prepare)
