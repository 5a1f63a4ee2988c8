"""Stages at tiny sizes: what is learned and written, kill and resume, the paper's scale made small."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from papers.reic import corpus, embed, evaluate, example, figures, store, train, train_hub, tune
from papers.reic.baselines import FilterDials
from papers.reic.embeddings import BlockEncoder
from papers.reic.methods import parse_run
from papers.reic.networks import build_module, build_networks, prepare_tokenizer
from papers.reic.options import EncoderOptions, HubOptions, Scale
from papers.reic.picking import Heuristic, TextMaker
from papers.reic.runs import TABLES, selected_options
from papers.reic.testbed import open_encoder, read_problem
from papers.reic.training import Training, _Log
from shared.claims import read_paper
from shared.errors import InputError
from shared.files import write_json
from shared.options import from_mapping, read_scale, read_yaml
from shared.pages import read_captions
from shared.results import read_metrics, read_units
from shared.tables import read_table, write_table
from tests.papers.reic.conftest import TINY_CORPUS

PAPER = Path(__file__).resolve().parents[3] / "papers" / "reic"
SCALES = tuple(read_yaml(PAPER / "config.yaml")["scales"])
RUNS = ("reic@end_to_end/dense", "filter@end_to_end/dense", "snippet@end_to_end/dense", "reic@ecrim/dense")


@pytest.fixture(scope="module")
def problem(tiny_corpus, tiny_store, tiny_encoder):
    return read_problem(tiny_corpus, tiny_store, 10, open_encoder(tiny_encoder), seed=3)


def training(problem, options, name="reic@end_to_end/dense", seed=5):
    run = parse_run(name)
    options = run.training(options)
    torch.manual_seed(seed)
    module, selector = build_networks(run, options, problem.tokenizer, len(problem.relations), problem.dim, seed)
    maker = TextMaker(options.inputs, problem.tokenizer)
    heuristic = None if selector else Heuristic(run.method, maker, problem.embed, FilterDials(), problem.triggers)
    return Training(run, problem, options, seed, Accelerator(), module, selector, heuristic)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    return any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_who_learns_when(problem, tiny_options, tmp_path):
    """The selector rests while picks are uniform; a frozen one always; the relation module always learns."""
    for name, after_warmup in (("reic@end_to_end/dense", True), ("reic_frozen@end_to_end/dense", False)):
        found = training(problem, tiny_options, name)
        module, selector = weights(found.module), weights(found.selector)
        steps = dict(found._batches(0))
        found.step(0, steps[0], _Log())
        assert not changed(found.selector, selector)
        found.step(4, steps[4], _Log())
        assert changed(found.selector, selector) == after_warmup and changed(found.module, module)
    cold = training(problem, tiny_options, "reic_cold@end_to_end/dense")
    before = weights(cold.selector)
    cold.step(0, dict(cold._batches(0))[0], _Log())
    assert changed(cold.selector, before)


def test_a_killed_training_resumes_to_the_same_result(problem, tiny_options, tmp_path):
    options = dataclasses.replace(tiny_options, checkpoint_every=3, intra_document_share=1.0)
    with_intra = dataclasses.replace(problem, intra=[([10, 11], [12], 1), ([13], [14, 15], 0)])
    whole = training(with_intra, options)
    history = whole.run(tmp_path / "a")
    assert [row["step"] for row in history] == [2, 4, 6] and {"loss", "reward", "recall"} <= set(history[0])
    assert "surprise" not in history[0] and history[-1]["surprise"] > 0 and history[-1]["selector_grad_norm"] > 0
    killed = training(with_intra, options)
    original = killed.step

    def until_four(step, bags, log):
        if step == 4:
            raise KeyboardInterrupt
        original(step, bags, log)

    killed.step = until_four
    with pytest.raises(KeyboardInterrupt):
        killed.run(tmp_path / "b")
    resumed = training(with_intra, options)
    assert resumed.run(tmp_path / "b") == history
    for network in ("module", "selector"):
        assert not changed(getattr(resumed, network), weights(getattr(whole, network)))
    plain = training(problem, tiny_options)
    plain.run(tmp_path / "c")
    assert changed(plain.module, weights(whole.module))  # the intra-document examples count


def test_accumulation_of_relation_gradients(problem, tiny_options):
    """Two micro-batches of one bag each give the mean of their gradients."""
    found = training(problem, dataclasses.replace(tiny_options, accumulation=2), "first@end_to_end/dense")
    bags = [(0, problem.train[0]), (1, problem.train[1])]
    losses = [found._relation_loss([bag], 0, _Log())[0] for bag in bags]
    log = _Log()
    found.step(0, bags, log)
    assert log.row()["loss"] == pytest.approx((losses[0] + losses[1]).item() / 2, rel=1e-5)


def test_evaluation_is_greedy_and_repeats(problem, tiny_options):
    found = training(problem, tiny_options)
    found.selector.train()
    first, second = found.evaluate(), found.evaluate()
    assert [[side.blocks for side in path] for path in first.shown] == [
        [s.blocks for s in path] for path in second.shown
    ]
    assert (first.scores == second.scores).all() and first.scores.shape == (len(problem.dev), 4)
    assert {len(side.blocks) for path in found.evaluate(1).shown for side in path} == {2}
    sampled = training(problem, dataclasses.replace(tiny_options, sampled_evaluation=True))
    assert [s.blocks for path in sampled.evaluate().shown for s in path] != [s.blocks for p in first.shown for s in p]


@pytest.fixture(scope="module")
def trained(tiny_options, tiny_encoder, tmp_path_factory):
    """The tables of the stage ``train`` for two seeds, in folders."""
    folders = []
    for seed in (3, 4):
        folder = tmp_path_factory.mktemp(f"reic-{seed}")
        write_table(folder / "reic.parquet", pd.DataFrame({"run": ["reic,lr=0.01@end_to_end/dense"], "auc": [0.5]}))
        outputs = {name: folder / f"{name}-out.parquet" for name in TABLES}
        found = train.train(
            tiny_options, TINY_CORPUS, seed=seed, runs=RUNS, ranks=(5,), encoder=tiny_encoder,
            tuned=(folder / "reic.parquet",), **outputs, state=folder / "state",
        )  # fmt: skip
        write_json(folder / "record.json", {"measurements": found, "options": {"seed": seed}})
        folders.append(folder)
    return folders


def paths_of(trained, name):
    return tuple(folder / f"{name}-out.parquet" for folder in trained)


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reic-metrics")
    rows = [{"method": run.partition("@")[0], "setting": run.partition("@")[2], "seed": seed, "wall_seconds": 1.0}
            for run in RUNS for seed in (3, 4)]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "seconds", lambda records: pd.DataFrame(rows))
        evaluate.evaluate(
            paper="reic", scale="small", summary=paths_of(trained, "summary"), measured=paths_of(trained, "units"),
            history=paths_of(trained, "history"), records=(), metrics=folder / "metrics.parquet",
            units=folder / "units.parquet",
        )  # fmt: skip
    return folder


def test_tables(trained, measured):
    metrics, units = read_metrics(measured / "metrics.parquet"), read_units(measured / "units.parquet")
    assert {"f1", "auc", "p@5", "recall", "accuracy", "both_found", "reward"} <= set(metrics["metric"])
    assert set(metrics["seed"]) == {3, 4} and set(metrics["setting"]) == {"end_to_end/dense", "ecrim/dense"}
    assert set(units["metric"]) == {"accuracy", "recall"} and units["value"].between(0, 1).all()
    table = read_table(paths_of(trained, "distances")[0])
    shown = table[(table["method"] == "reic") & (table["setting"] == "end_to_end/dense")]
    assert shown["count"].sum() % 6 == 0 and 0 not in set(shown["distance"])
    assert set(read_table(paths_of(trained, "by_picks")[0])["picks"]) == {1}
    blocks = read_table(paths_of(trained, "examples")[0])
    one = blocks[(blocks["method"] == "reic") & (blocks["path"] == 0) & (blocks["setting"] == "end_to_end/dense")]
    assert sorted(one[one["pick"] > 0]["pick"]) == [1, 1, 2, 2, 3, 3] and one["evidence"].sum() == 2
    assert (one["role"] == "target").sum() == 2


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_is_drawn(trained, measured, tmp_path, name):
    series = {each: paths_of(trained, each) for each in ("history", "curve", "by_picks", "distances", "examples")}
    figures.draw(figure=name, picks=3, uniform_steps=2, metrics=measured / "metrics.parquet", **series,
                 png=tmp_path / "a.png", pdf=tmp_path / "a.pdf")  # fmt: skip
    assert (tmp_path / "a.png").stat().st_size > 3000


def test_the_example_page(trained, tmp_path):
    example.write_example(title="A <page>", examples=paths_of(trained, "examples"), page=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "A &lt;page&gt;" in text and text.count("<section>") == len(RUNS) and "unused" not in text
    assert 'class="block shown target"' in text and "evidence" in text and '<mark class="bridge">' in text
    assert (
        example.readable("[unused1] Babia [unused2] [unused5] Dalia [unused6] founded .") == "⟦Babia⟧ ⟨Dalia⟩ founded."
    )


def test_tuning_selects_the_highest_auc(tiny_options, tiny_encoder, tmp_path):
    runs = ("first,relation_lr=0.001@end_to_end/dense", "first,relation_lr=0.01@end_to_end/dense")
    tune.tune(tiny_options, TINY_CORPUS, seed=9, runs=runs, encoder=tiny_encoder, tried=tmp_path / "tried.parquet",
              state=tmp_path / "state")  # fmt: skip
    tried = read_table(tmp_path / "tried.parquet")
    assert tuple(tried["run"]) == runs and tried["auc"].nunique() == 2
    best = tried.loc[tried["auc"].idxmax(), "run"]
    assert selected_options({"learning_rate": tried}) == {"learning_rate": parse_run(best).options}


def test_runs_of_a_job_share_a_corpus(tiny_options, tiny_encoder, tmp_path):
    with pytest.raises(InputError, match="runs: must share a corpus"):
        train.train(tiny_options, TINY_CORPUS, seed=0, runs=("first@ecrim/a", "first@ecrim/b"), ranks=(),
                    encoder=tiny_encoder, tuned=(), state=tmp_path, **{name: tmp_path for name in TABLES})  # fmt: skip


# --- the paper's scale


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    """A tiny BERT with random weights and its tokenizer, as on the hub."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = corpus.build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scale", ["paper", "paper_ecrim"])
def test_the_papers_scale_made_small(tiny_corpus, hub_folder, tmp_path, scale):
    settings = read_scale(PAPER / "config.yaml", scale, Scale)
    hub = dataclasses.replace(settings.hub, dataset=str(tiny_corpus), selector_encoder=str(hub_folder))
    options = dataclasses.replace(
        settings.train, encoder=EncoderOptions(name=str(hub_folder)), steps=2, batch_size=4, workers=0,
        inputs=dataclasses.replace(settings.train.inputs, block_length=10, picks=2, head_budget=40, tail_budget=40),
        selector=dataclasses.replace(settings.train.selector, hidden_dim=8, mlp_dim=8),
        pair_layers=1, pair_heads=2, pair_feedforward=8, intra_document_share=1.0, mixed_precision="no",
    )  # fmt: skip
    store.write_store(hub, store=tmp_path / "documents.sqlite")
    made = embed.embed(options.encoder, hub, block_length=10, store=tmp_path / "documents.sqlite",
                       embeddings=tmp_path / "embeddings")  # fmt: skip
    assert made["documents"] > 50
    runs = [run for group in settings.groups.values() for run in group][:2]
    outputs = {name: tmp_path / f"{name}.parquet" for name in TABLES}
    train_hub.train_hub(options, hub, seed=0, runs=tuple(runs), ranks=(5,), store=tmp_path / "documents.sqlite",
                        embeddings=tmp_path / "embeddings", **outputs,
                        state=tmp_path / "state")  # fmt: skip
    summary = read_table(outputs["summary"])
    assert len(summary[summary["metric"] == "f1"]) == 2


def test_another_tokenizer_of_the_frozen_encoder_reads_the_blocks_words(problem, hub_folder):
    """RoBERTa's pieces are not BERT's: blocks are written out and read again."""
    other = AutoTokenizer.from_pretrained(hub_folder)
    other.add_tokens(["another"])
    model = BertModel.from_pretrained(hub_folder)
    text = problem.train[0][0].documents[0]
    same, again = (
        BlockEncoder(model, other, reader, name="x").inputs(text)[1:] for reader in (other, problem.tokenizer)
    )
    assert [each.ids for each in same] == [each.ids for each in again]


def test_roberta_gets_the_markers():
    tokenizer = prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=corpus.build_tokenizer()._tokenizer))
    assert tokenizer.convert_tokens_to_ids("[unused5]") != tokenizer.unk_token_id


def test_the_papers_networks_on_the_meta_device():
    settings = read_scale(PAPER / "config.yaml", "paper_ecrim", Scale)
    tokenizer = corpus.build_tokenizer()
    with torch.device("meta"):
        encoder = BertModel(BertConfig(), add_pooling_layer=False)
        module = build_module(parse_run("reic@ecrim/codred"), settings.train, encoder, tokenizer, 277)
    assert module.predictor.out_features == 277 and len(module.pairs.layers) == 4
    assert 1.1e8 < sum(value.numel() for value in module.parameters()) < 1.4e8


# --- configuration


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = read_scale(PAPER / "config.yaml", scale, Scale)
    runs = [parse_run(run) for group in settings.groups.values() for run in group]
    assert len({run.name for run in runs}) == len(runs)
    paper, made = read_paper(PAPER / "paper.yaml"), 0
    for claim in paper.claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                for method, setting, _ in test.series:
                    assert any(run.label == method and run.setting == setting for run in runs), (claim.id, test.name)
                    assert method in paper.methods
    assert made
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))
    assert settings.tuning_seed not in settings.seeds
    if scale == "small":  # as many candidates for the method as for the baseline
        assert len(settings.tuned["reic"]) == len(settings.tuned["filter"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpora": None}, "give either corpora or hub"),
        ({"pretrain": None}, "pretrain: procedural corpora need it"),
        ({"groups": {"a": ["reic@end_to_end/none"]}}, "a: its runs need corpora that there are"),
        ({"groups": {"a": ["reic@end_to_end/dense", "reic@end_to_end/sparse"]}}, "a: its runs must share a corpus"),
    ],
)
def test_a_configuration_that_does_not_fit(changes, message):
    small = read_yaml(PAPER / "config.yaml")["scales"]["small"]
    with pytest.raises(InputError, match=message):
        from_mapping(small | changes, Scale, where="config.yaml: scales.small")


def test_hub_options_are_needed_whole(tmp_path):
    with pytest.raises(InputError, match="name: CodRED needs a pretrained encoder"):
        embed.embed(EncoderOptions(), HubOptions("a", "b"), block_length=10, store=tmp_path, embeddings=tmp_path)
