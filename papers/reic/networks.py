"""Networks of a run, from the options: functions of the options and the seed alone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from papers.reic.documents import BRIDGE_MARKERS, MARKERS, TARGET_MARKERS
from papers.reic.methods import LEARNED, Run
from papers.reic.options import EncoderOptions, TrainOptions
from papers.reic.relation_modules import Ecrim, EndToEnd
from papers.reic.selector import SentenceSelector, StatelessSelector
from shared.errors import InputError


def small_bert(options: EncoderOptions, vocabulary: int, positions: int) -> BertModel:
    """A BERT with random weights and without dropout."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.feedforward,
        hidden_act="relu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=positions,
        initializer_range=0.08,
    )
    return BertModel(config, add_pooling_layer=False)


def build_encoder(options: EncoderOptions, tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
    """The relation module's encoder, with an embedding for every token of the tokenizer."""
    if options.name is None:
        return small_bert(options, len(tokenizer), positions)
    model = AutoModel.from_pretrained(options.name, add_pooling_layer=False, use_safetensors=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return model


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with all markers: BERT's vocabulary has them, RoBERTa's gets them."""
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"extra_special_tokens": [marker for marker in MARKERS if marker not in known]})
    return tokenizer


def build_module(
    run: Run, options: TrainOptions, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_classes: int
) -> nn.Module:
    """The relation module of a run on an encoder."""
    if run.module == "end_to_end":
        return EndToEnd(encoder, num_classes, aggregator=options.aggregator, na_weight=options.na_weight)

    def ids(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[int, int], ...]:
        return tuple(tuple(tokenizer.convert_tokens_to_ids(list(pair))) for pair in pairs)

    return Ecrim(
        encoder,
        num_classes,
        target_markers=ids(tuple(TARGET_MARKERS.values())),
        bridge_markers=ids(BRIDGE_MARKERS),
        layers=options.pair_layers,
        heads=options.pair_heads,
        feedforward=options.pair_feedforward,
        most_mentions=options.most_mentions,
        threshold=options.threshold,
    )


def build_selector(run: Run, options: TrainOptions, dim: int) -> SentenceSelector | None:
    """The selector of a learned method, else None.

    Raises:
        InputError: a checkpoint of another size.
    """
    if run.method not in LEARNED:
        return None
    chosen = options.selector
    kind = StatelessSelector if run.method == "reic_stateless" else SentenceSelector
    selector = kind(dim, chosen.hidden_dim, chosen.mlp_dim, dropout=chosen.dropout, one_mask=chosen.one_mask)
    if chosen.checkpoint is not None:
        try:
            selector.load_state_dict(load_file(Path(chosen.checkpoint)))
        except (RuntimeError, OSError) as error:
            problem = " ".join(str(error).split())
            raise InputError(f"{chosen.checkpoint}: not a selector of this size: {problem}") from None
    return selector


def build_networks(
    run: Run,
    options: TrainOptions,
    tokenizer: PreTrainedTokenizerBase,
    num_classes: int,
    dim: int,
    seed: int,
) -> tuple[nn.Module, SentenceSelector | None]:
    """Relation module and selector; the module starts alike for all methods of a seed."""
    inputs = options.inputs
    grown = max((options.inputs.picks, *options.evaluated_picks)) + 1
    positions = (inputs.head_budget + inputs.tail_budget) * grown // (inputs.picks + 1) + 3 + 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(options.encoder, tokenizer, positions)
        module = build_module(run, options, encoder, tokenizer, num_classes)
        torch.manual_seed(seed + 1)
        return module, build_selector(run, options, dim)
