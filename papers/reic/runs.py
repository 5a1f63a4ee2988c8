"""From the names of runs to their tables.

Tables of a run, to which `make_runs` adds the columns method, setting and seed:

``summary``    metric, value: f1, auc, mean_precision, p@<k> of all (pair, relation); accuracy of bags; recall and
               precision of gold evidence, and both_found, whether both documents' evidence is shown whole
``units``      metric, unit, value: accuracy of every bag, recall of every path that has evidence
``history``    step, and means over the steps since the row before; see :meth:`papers.reic.training.Training.run`
``curve``      recall, precision: the precision-recall curve at up to `CURVE_POINTS` of its points
``by_picks``   picks, f1, auc, recall: of the trained networks at other K
``distances``  distance (in blocks, from the target's), count of picked blocks, on all dev documents
``examples``   path, side, block, text, role, pick, evidence: the first dev paths with evidence, block by block; pick is
               the place in the order of picking, 0 for blocks that are not shown
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from papers.reic.documents import SIDES, PathText
from papers.reic.evaluation import evidence_precision, precision_recall_curve, precision_recall_summary
from papers.reic.methods import Run, family, parse_run
from papers.reic.networks import build_networks
from papers.reic.options import TrainOptions
from papers.reic.picking import Heuristic, Shown, TextMaker
from papers.reic.training import BagTexts, Evaluation, Problem, Training
from shared.files import write_json
from shared.run_by_run import FINISHED, RunFolders
from shared.tables import write_table

TABLES = ("summary", "units", "history", "curve", "by_picks", "distances", "examples")
CURVE_POINTS = 80
SHOWN_EXAMPLES = 2
SMALL_TYPES = {
    "seed": "int16",
    "step": "int32",
    "picks": "int16",
    "distance": "int32",
    "count": "int32",
    "path": "int16",
    "block": "int16",
    "pick": "int16",
    **dict.fromkeys(
        ("loss", "reward", "recall", "surprise", "selector_grad_norm", "precision", "f1", "auc"), "float32"
    ),
}


def make_runs(
    names: Sequence[str],
    problem: Problem,
    common: TrainOptions,
    selected: Mapping[str, Mapping[str, str]],
    seed: int,
    accelerator: Accelerator,
    state: Path,
    ranks: Sequence[int],
    paths: Mapping[str, Path],
) -> dict[str, dict[str, float]] | None:
    """Make runs one after another, and write the tables of all below each other; returns their times.

    Args:
        names: of the runs.
        problem, common, selected, seed, accelerator, ranks: as in `make_run`.
        state: the stage's folder; finished runs in it are not made again.
        paths: where each of the `TABLES` goes.
    """
    folders = RunFolders(state, names)
    for name, folder in folders.unfinished():
        make_run(parse_run(name), problem, common, selected, seed, accelerator, folder, ranks)
    if not accelerator.is_main_process:
        return None

    def columns(name: str) -> dict[str, object]:
        parsed = parse_run(name)
        return {"method": parsed.label, "setting": parsed.setting, "seed": seed}

    for table, path in paths.items():
        frame = folders.gather(table, columns)
        write_table(path, frame.astype({name: kind for name, kind in SMALL_TYPES.items() if name in frame}))
    return {"seconds": {name: record["seconds"] for name, record in folders.records().items()}}


def make_run(
    run: Run,
    problem: Problem,
    common: TrainOptions,
    selected: Mapping[str, Mapping[str, str]],
    seed: int,
    accelerator: Accelerator,
    folder: Path,
    ranks: Sequence[int],
) -> None:
    """Train and evaluate, and write the run's tables into its folder.

    Args:
        run: what to run.
        problem: its data.
        common: options of all runs.
        selected: options that were selected, by the kinds of runs that they are for; "learning_rate" is for all.
        seed: of weights, order and draws.
        accelerator: of the precision that the options name.
        folder: of the run's state.
        ranks: k of the precisions at k.
    """
    started = time.perf_counter()
    chosen = {**selected.get("learning_rate", {}), **selected.get(family(run.method), {})}
    options = run.training(common, chosen)
    torch.manual_seed(seed)  # of the selector's dropout
    module, selector = build_networks(run, options, problem.tokenizer, len(problem.relations), problem.dim, seed)
    heuristic = None
    if selector is None:
        maker = TextMaker(options.inputs, problem.tokenizer)
        heuristic = Heuristic(run.method, maker, problem.embed, run.dials(chosen), problem.triggers)
    training = Training(run, problem, options, seed, accelerator, module, selector, heuristic)
    history = training.run(folder / "training")
    found = training.evaluate()
    if accelerator.is_main_process:
        tables = tables_of(found, problem.dev, ranks) | {"history": pd.DataFrame(history)}
        by_picks = [{"picks": count, **numbers(training.evaluate(count), problem.dev)}
                    for count in options.evaluated_picks]  # fmt: skip
        tables["by_picks"] = pd.DataFrame(by_picks, columns=["picks", "f1", "auc", "recall"])
        for name, table in tables.items():
            write_table(folder / f"{name}.parquet", table)
        write_json(folder / FINISHED, {"seconds": round(time.perf_counter() - started, 2)})
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def facts(found: Evaluation, dev: BagTexts) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores of all (bag, relation), which of them are facts, and the number of facts."""
    columns = np.arange(1, found.scores.shape[1] + 1)
    correct = np.array([np.isin(columns, list(bag.labels)) for bag in dev.bags])
    return found.scores.ravel(), correct.ravel(), sum(len(bag.labels) for bag in dev.bags)


def shown_evidence(found: Evaluation, dev: BagTexts) -> pd.DataFrame:
    """Per path with evidence in a document: its place, recall and precision (means over such documents), both_found."""
    rows = []
    texts = [text for index in range(len(dev)) for text in dev[index]]
    for place, (text, sides) in enumerate(zip(texts, found.shown, strict=True)):
        recalls = [recall for document, side in zip(text.documents, sides, strict=True)
                   if (recall := side.recall(document)) is not None]  # fmt: skip
        if recalls:
            precisions = [evidence_precision(document.evidence, side.blocks)
                          for document, side in zip(text.documents, sides, strict=True)]  # fmt: skip
            rows.append({"place": place, "recall": np.mean(recalls), "precision": np.nanmean(precisions),
                         "both_found": float(min(recalls) == 1)})  # fmt: skip
    return pd.DataFrame(rows, columns=["place", "recall", "precision", "both_found"])


def numbers(found: Evaluation, dev: BagTexts, ranks: Sequence[int] = ()) -> dict[str, float]:
    """The ranking's numbers and the evidence's."""
    evidence = shown_evidence(found, dev).drop(columns="place").mean()
    return {
        **precision_recall_summary(*facts(found, dev), at=ranks),
        **evidence.rename({"precision": "evidence_precision"}),
    }


def tables_of(found: Evaluation, dev: BagTexts, ranks: Sequence[int]) -> dict[str, pd.DataFrame]:
    """All tables that an evaluation gives."""
    evidence = shown_evidence(found, dev)
    right = [
        int(best) in bag.labels if bag.labels else best == 0 for best, bag in zip(found.best, dev.bags, strict=True)
    ]
    accuracy = pd.DataFrame({"metric": "accuracy", "unit": range(len(right)), "value": np.array(right, float)})
    recalls = pd.DataFrame({"metric": "recall", "unit": evidence["place"], "value": evidence["recall"]})
    values = {"accuracy": float(np.mean(right)), **numbers(found, dev, ranks)}
    recall, precision = precision_recall_curve(*facts(found, dev))
    points = np.unique(np.linspace(0, len(recall) - 1, CURVE_POINTS).round().astype(int))
    return {
        "summary": pd.DataFrame({"metric": list(values), "value": list(values.values())}).dropna(),
        "units": pd.concat([accuracy, recalls], ignore_index=True).astype({"unit": "int32", "value": "float32"}),
        "curve": pd.DataFrame({"recall": recall[points], "precision": precision[points]}),
        "distances": distances(found, dev),
        "examples": examples(found, dev),
    }


def distances(found: Evaluation, dev: BagTexts) -> pd.DataFrame:
    """Where the blocks that are shown besides the target's stand, as seen from it."""
    texts = [text for index in range(len(dev)) for text in dev[index]]
    counts = Counter(
        block - document.target
        for text, sides in zip(texts, found.shown, strict=True)
        for document, side in zip(text.documents, sides, strict=True)
        for block in side.blocks
        if block != document.target
    )
    return pd.DataFrame(sorted(counts.items()), columns=["distance", "count"])


def examples(found: Evaluation, dev: BagTexts) -> pd.DataFrame:
    """The first paths with evidence in both documents, block by block."""
    texts = [text for index in range(len(dev)) for text in dev[index]]
    told = [place for place, text in enumerate(texts) if all(document.evidence for document in text.documents)]
    rows = [row for path, place in enumerate(told[:SHOWN_EXAMPLES])
            for row in _example(path, texts[place], found.shown[place])]  # fmt: skip
    return pd.DataFrame(rows, columns=["path", "side", "block", "text", "role", "pick", "evidence"])


def _example(path: int, text: PathText, shown: tuple[Shown, Shown]) -> list[dict[str, object]]:
    rows = []
    for name, document, side in zip(SIDES, text.documents, shown, strict=True):
        order = {block: place for place, block in enumerate((b for b in side.blocks if b != document.target), 1)}
        for block, (start, end) in enumerate(document.blocks):
            rows.append({"path": path, "side": name, "block": block, "text": " ".join(document.tokens[start:end]),
                         "role": "target" if block == document.target else "candidate",
                         "pick": order.get(block, 0), "evidence": block in document.evidence})  # fmt: skip
    return rows


def selected_options(tuned: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, str]]:
    """Of every table of tried runs (columns run, auc, with one row per run and seed) the options of the best run.

    The best has the highest mean AUC; of equal ones it is the first.
    """
    found = {}
    for name, table in tuned.items():
        means = table.groupby("run", sort=False)["auc"].mean()
        found[name] = parse_run(means.idxmax()).options
    return found
