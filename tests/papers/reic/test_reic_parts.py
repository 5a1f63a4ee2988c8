"""Baselines, frozen embeddings, relation modules and names of runs."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import save_file

from papers.reic import baselines, corpus
from papers.reic.baselines import FilterDials
from papers.reic.codred import TextPath
from papers.reic.documents import BRIDGE_MARKERS, MARKERS, TARGET_MARKERS, PathDocument, PathText
from papers.reic.embeddings import BlockEncoder, Standardized, StoredEmbeddings, write_embeddings
from papers.reic.methods import parse_run
from papers.reic.networks import build_module, build_selector, small_bert
from papers.reic.options import EncoderOptions, InputOptions
from papers.reic.picking import Heuristic, TextMaker, pad_embeddings
from papers.reic.relation_modules import EndToEnd, aggregate_paths, two_threshold_loss
from papers.reic.selector import SentenceSelector, StatelessSelector
from shared.errors import InputError

TOKENIZER = corpus.build_tokenizer()
E, F = corpus.ENTITIES, corpus.FILLERS


def document(blocks, *, target=0, bridges=None, names=None, evidence=()):
    """A document of blocks given as texts; the target mention is the first word of the target block."""
    tokens, spans = [], []
    for block in blocks:
        spans.append((len(tokens), len(tokens) + len(block.split())))
        tokens += block.split()
    start = spans[target][0]
    return PathDocument(
        "title", tuple(tokens), tuple(TOKENIZER.convert_tokens_to_ids(tokens)), tuple(spans), target,
        (start, start + 1), tuple(map(frozenset, bridges or [()] * len(blocks))),
        tuple(names or [False] * len(blocks)), frozenset(evidence),
    )  # fmt: skip


@pytest.fixture
def plain():
    return document([f"{E[0]} .", f"{F[0]} .", f"{F[1]} founded .", f"{F[2]} .", f"{F[3]} ."], target=2, evidence=[4])


def test_simple_heuristics(plain):
    assert baselines.first_blocks(plain, 3) == [0, 1, 2]
    assert baselines.nearest_blocks(plain, 3) == [1, 2, 0]  # blocks 1, 3, 0
    assert baselines.first_blocks(plain, 9) == [0, 1, 2, 3]
    target, sentences = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [5.0, 0.1], [-1.0, 0.0], [1.0, 1.0]])
    assert baselines.similar_blocks(target, sentences, 2) == [1, 3]
    assert baselines.similar_blocks(target, sentences[:0], 2) == []
    assert baselines.snippet(plain, 5) == (2, 7)


def test_the_bridge_filter():
    """Bridge 1 stands beside the target, 2 beside 1, and 3 alone."""
    head = document(["a .", "b .", "c .", "d .", "e ."], bridges=[(), (1,), (1, 2), (3,), ()],
                    names=[True, True, False, False, True])  # fmt: skip
    tail = document(["a .", "b ."], bridges=[(), (3,)], names=[True, False])
    text = PathText(TextPath("Q1#Q2", "a", "b", 0), (head, tail))
    other = PathText(TextPath("Q1#Q2", "c", "d", 0), (tail, tail))
    scores = baselines.bridge_scores(text, [text, other], FilterDials())
    assert scores[1] == pytest.approx(1.0) and scores[2] == pytest.approx(0.1) and scores[3] == pytest.approx(0.01)
    # block 1: 1 + 1; block 2: 1.1; block 4: 1 (names the target); block 3 and the tail's: 0.01
    assert baselines.bridge_filter(text, [text, other], 1) == ([0, 1], [])
    assert baselines.bridge_filter(text, [text, other], 1, FilterDials(jointly=False)) == ([0], [0])
    picks, others = baselines.bridge_filter(text, [text], 9)
    assert picks == [0, 1, 3, 2] and others == [0]


def heuristic(method, **more):
    maker = TextMaker(InputOptions(10, 2, 6, 6, "document"), TOKENIZER)
    return Heuristic(method, maker, lambda documents: [torch.ones(5, 2) for _ in documents], **more)


@pytest.mark.parametrize("method", ["random", "first", "nearest", "similarity", "oracle", "oracle_triggers", "filter"])
def test_every_method_shows_the_target_and_as_many_blocks(plain, method):
    text = PathText(TextPath("Q1#Q2", "a", "b", 0), (plain, plain))
    ((head, tail),) = heuristic(method, triggers=frozenset({"founded"}))([[text]], 2, torch.Generator().manual_seed(0))
    assert head.blocks[0] == 2 and len(head.blocks) + len(tail.blocks) == 6 and len(head.ids) <= 8
    assert (head.recall(plain) == 1.0) or not method.startswith("oracle")


def test_oracles_differ_in_their_fill():
    doc = document(["a .", "b .", "c founded .", "d .", "e .", "f .", "g ."], evidence=[6])
    text = PathText(TextPath("Q1#Q2", "a", "b", 0), (doc, doc))
    shown = {}
    for method in ("oracle", "oracle_triggers"):
        method_shows = heuristic(method, triggers=frozenset({"founded"}))
        shown[method] = {
            method_shows([[text]], 2, torch.Generator().manual_seed(seed))[0][0].blocks for seed in range(8)
        }
    assert shown["oracle_triggers"] == {(0, 6, 2)} and len(shown["oracle"]) > 2


def test_a_snippet_shows_whole_blocks_only_where_they_are(plain):
    text = PathText(TextPath("Q1#Q2", "a", "b", 0), (plain, plain))
    head, _ = heuristic("snippet")([[text]], 2, torch.Generator())[0]
    assert head.ids == list(plain.ids[2:8]) and head.blocks == (1, 2)


def test_input_batches():
    maker = TextMaker(InputOptions(), TOKENIZER)
    batch = maker.batch([([10, 11], [12]), ([10], [11])], [0, 1])
    cls, sep, pad = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.pad_token_id
    assert batch.input_ids.tolist() == [[cls, 10, 11, sep, 12, sep], [cls, 10, sep, 11, sep, pad]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch.attention_mask.tolist() == [[1] * 6, [1] * 5 + [0]] and batch.num_bags == 2


# --- relation modules


@pytest.mark.parametrize("aggregator", ["attention", "max", "mean"])
def test_bags_against_a_loop(aggregator):
    generator = torch.Generator().manual_seed(0)
    vectors, weight = torch.randn(5, 3, generator=generator).double(), torch.randn(4, 3, generator=generator).double()
    bias = torch.randn(4, generator=generator).double()
    bag_of = torch.tensor([0, 1, 1, 1, 2])
    found = aggregate_paths(vectors @ weight.T, bias, bag_of, 3, aggregator)
    for bag in range(3):
        e = vectors[bag_of == bag]
        for c in range(4):
            score = e @ weight[c]
            if aggregator == "attention":
                expected = weight[c] @ (score.softmax(0) @ e)
            else:
                expected = score.max() if aggregator == "max" else score.mean()
            assert found[bag, c].item() == pytest.approx((expected + bias[c]).item(), abs=1e-10)
    paths = vectors @ weight.T + bias
    torch.testing.assert_close(found[[0, 2]], paths[[0, 4]], atol=1e-10, rtol=0)  # bags of one path
    with pytest.raises(ValueError, match="aggregator: unknown"):
        aggregate_paths(vectors @ weight.T, bias, bag_of, 3, "median")


def test_the_two_threshold_loss():
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double() * 5, torch.arange(6) % 4
    found = two_threshold_loss(logits, labels)
    for row, label in enumerate(labels.tolist()):
        others = sum(math.exp(logits[row, c]) for c in range(4) if c != label)
        expected = math.log(math.exp(10) + others) + math.log(math.exp(-8) + math.exp(-logits[row, label])) - 2
        assert found[row].item() == pytest.approx(expected, abs=1e-10)
    assert (found > 0).all()
    perfect = torch.full((1, 4), -60.0).double()
    perfect[0, 2] = 60.0
    assert 0 <= two_threshold_loss(perfect, torch.tensor([2])).item() < 1e-12


def ids(pair):
    return TOKENIZER.convert_tokens_to_ids(list(pair))


def marked_batch(head_words, tail_words, bag_of=(0,)):
    maker = TextMaker(InputOptions(), TOKENIZER)
    rows = [(TOKENIZER.convert_tokens_to_ids(head.split()), TOKENIZER.convert_tokens_to_ids(tail.split()))
            for head, tail in zip(head_words, tail_words, strict=True)]  # fmt: skip
    return maker.batch(rows, list(bag_of))


def test_entity_vectors_are_maxima_over_mentions(tiny_options):
    module = build_module(parse_run("reic@ecrim/x"), tiny_options, small_bert(tiny_options.encoder, len(TOKENIZER), 64),
                          TOKENIZER, 5)  # fmt: skip
    m = [f"[unused{index}]" for index in range(11)]
    batch = marked_batch(
        [f"{m[1]} {E[0]} {m[2]} {m[7]} {E[1]} {m[8]} .", f"{m[1]} {E[0]} {m[2]} ."],
        [f"{m[3]} {E[2]} {E[3]} {m[4]} {m[7]} {E[1]} {m[8]} {m[5]} {E[4]} {m[6]}", f"{m[3]} {E[2]} {m[4]}"], (0, 1),
    )  # fmt: skip
    hidden = torch.randn(*batch.input_ids.shape, 16, generator=torch.Generator().manual_seed(0))
    vectors, present = module.entity_vectors(hidden, batch.input_ids)
    assert present.tolist() == [[True] * 4, [True, True, False, False]]
    torch.testing.assert_close(vectors[0, 0], hidden[0, 2])
    torch.testing.assert_close(vectors[0, 1], hidden[0, 10:12].amax(0))
    torch.testing.assert_close(vectors[0, 2], torch.maximum(hidden[0, 5], hidden[0, 14]))  # first in the text
    torch.testing.assert_close(vectors[0, 3], hidden[0, 17])
    assert torch.all(vectors[1, 2:] == 0)
    cut, _ = module.entity_vectors(hidden[:1, :5], marked_batch([E[0]], [E[1]]).input_ids)
    torch.testing.assert_close(cut[0, 0], hidden[0, 0])  # no mention is left: the vector at [CLS]


@pytest.mark.parametrize("name", ["reic@end_to_end/x", "reic@ecrim/x"])
def test_modules_learn_and_padding_changes_nothing(tiny_options, name):
    torch.manual_seed(0)
    module = build_module(
        parse_run(name), tiny_options, small_bert(tiny_options.encoder, len(TOKENIZER), 64), TOKENIZER, 5
    )
    m = [f"[unused{index}]" for index in range(7)]
    heads = [f"{m[1]} {E[0]} {m[2]} {m[5]} {E[1]} {m[6]} .", f"{m[1]} {E[0]} {m[2]} {F[0]}", f"{m[1]} {E[3]} {m[2]}"]
    tails = [f"{m[3]} {E[2]} {m[4]} {m[5]} {E[1]} {m[6]}", f"{m[3]} {E[2]} {m[4]}", f"{m[3]} {E[5]} {m[4]}"]
    paths, bags = module(marked_batch(heads, tails, (0, 0, 1)))
    assert paths.shape == (3, 5) and bags.shape == (2, 5)
    torch.testing.assert_close(bags[1], paths[2], atol=1e-5, rtol=1e-5)  # a bag of one path
    alone, _ = module(marked_batch(heads[2:], tails[2:]))
    torch.testing.assert_close(alone[0], paths[2], atol=1e-5, rtol=1e-5)
    loss = module.loss(paths, bags, torch.tensor([1, 0, 2]), torch.tensor([1, 2]))
    loss.backward()
    used = [name for name, value in module.named_parameters() if value.grad is not None and value.grad.isfinite().all()]
    assert any("encoder" in name for name in used) and "predictor.weight" in used


def test_n_a_weighs_less(tiny_options):
    module = EndToEnd(small_bert(tiny_options.encoder, len(TOKENIZER), 16), 3, na_weight=0.1)
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    own = -logits.log_softmax(1)[[0, 1], [2, 0]]
    expected = (own[0] + 0.1 * own[1]) / 1.1
    torch.testing.assert_close(module.path_loss(logits, torch.tensor([2, 0])), expected)


# --- frozen embeddings


def test_what_the_frozen_encoder_reads():
    target = f"[unused1] {E[1]} [unused2] [unused5] {E[0]} [unused6]"
    doc = document([f"[unused5] {E[0]} [unused6] .", target, f"{F[0]} ."], target=1)
    encoder = BlockEncoder(small_bert(EncoderOptions(), len(TOKENIZER), 32), TOKENIZER, TOKENIZER, name="x")
    texts = [" ".join(TOKENIZER.convert_ids_to_tokens(each.ids)) for each in encoder.inputs(doc)]
    assert texts == [
        f"[CLS] {E[1]} [unused5] {E[0]} [unused6]",  # bridge markers stay in the target's own input
        f"[CLS] {E[0]} . [SEP] {E[1]} {E[0]}",
        f"[CLS] {E[1]} {E[0]} [SEP] {F[0]} .",
    ]
    own = [each.ids[slice(*each.candidate)] for each in encoder.inputs(doc)]
    assert TOKENIZER.convert_ids_to_tokens(own[2]) == [F[0], "."]


def test_embeddings_do_not_depend_on_the_batch_and_are_found_again(plain, tmp_path):
    model = small_bert(EncoderOptions(), len(TOKENIZER), 32)
    other = document([f"{E[3]} .", f"{F[5]} {F[6]} {F[7]} ."])
    for pooling in ("cls", "mean"):
        together, one = (
            BlockEncoder(model, TOKENIZER, TOKENIZER, name="x", pooling=pooling, batch_size=size) for size in (99, 1)
        )
        for first, second in zip(together([plain, other]), one([plain, other]), strict=True):
            torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    assert write_embeddings(tmp_path / "store", one, iter([plain, other, plain]), shard=1) == 2
    stored = StoredEmbeddings(tmp_path / "store", one)
    torch.testing.assert_close(stored([other])[0], one([other])[0], atol=2e-3, rtol=1e-2)
    with pytest.raises(InputError, match="no embeddings of document 'title'"):
        stored([document(["a .", "b ."])])
    renamed = BlockEncoder(model, TOKENIZER, TOKENIZER, name="y", pooling="mean")
    assert renamed.key(plain) != one.key(plain) != one.key(other)
    standard = torch.cat(Standardized(one, [plain, other])([plain, other]))
    torch.testing.assert_close(standard.mean(0), torch.zeros(64), atol=1e-5, rtol=0)
    target, sentences, lengths = pad_embeddings(one([plain, other]), torch.device("cpu"))
    assert target.shape == (2, 64) and sentences.shape == (2, 4, 64) and lengths.tolist() == [4, 1]


# --- names


def test_names_of_runs(tiny_options):
    run = parse_run("reic,lr=0.01,baseline=none@end_to_end/dense")
    assert (run.method, run.setting, run.label) == ("reic", "end_to_end/dense", "reic,lr=0.01,baseline=none")
    options = run.training(tiny_options, {"lr": "0.5", "weight": "3", "relation_lr": "0.1"})
    assert (options.selector_learning_rate, options.baseline) == (0.01, "none")
    assert (options.positive_weight, options.learning_rate) == (3.0, 0.1)
    assert parse_run("reic@ecrim/dense").training(tiny_options).reward == "threshold"
    assert parse_run("reic_cold@end_to_end/dense").training(tiny_options).uniform_fraction == 0.0
    assert parse_run("filter,indirect=1,jointly=0@ecrim/x").dials() == FilterDials(indirect=1.0, jointly=False)
    for wrong in ("best@end_to_end/x", "reic@end_to_end", "reic@bert/x", "reic,lr=a@ecrim/x", "reic,speed=1@ecrim/x"):
        with pytest.raises(InputError, match="run "):
            parse_run(wrong)


def test_selectors(tiny_options, tmp_path):
    assert build_selector(parse_run("filter@ecrim/x"), tiny_options, 6) is None
    assert type(build_selector(parse_run("reic_stateless@ecrim/x"), tiny_options, 6)) is StatelessSelector
    given = SentenceSelector(6, 8, 8)
    save_file(given.state_dict(), tmp_path / "official.safetensors")
    chosen = dataclasses.replace(tiny_options.selector, checkpoint=str(tmp_path / "official.safetensors"))
    loaded = build_selector(parse_run("reic@ecrim/x"), dataclasses.replace(tiny_options, selector=chosen), 6)
    assert torch.equal(loaded.mlp1.weight, given.mlp1.weight)
    with pytest.raises(InputError, match="not a selector of this size"):
        build_selector(parse_run("reic@ecrim/x"), dataclasses.replace(tiny_options, selector=chosen), 7)


def test_markers():
    assert len(set(MARKERS)) == len(MARKERS) == 84 and ids(TARGET_MARKERS["head"]) != ids(BRIDGE_MARKERS[0])
