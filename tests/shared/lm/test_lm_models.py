import pytest
import torch
from transformers import AutoModelForCausalLM

from shared.lm.batches import right_padded
from shared.lm.models import ScalarHeadModel, build_decoder
from shared.lm.options import DecoderOptions

SIZES = {"vocabulary_size": 40, "max_positions": 16, "pad_id": 0, "eos_id": 1, "bos_id": 2}
BATCH = right_padded([[2, 5], [2, 5, 6]], [[7, 8, 1], [1]], pad_id=0)
INPUTS = (BATCH.input_ids, BATCH.attention_mask, BATCH.position_ids)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_built_decoder_follows_its_options(architecture):
    options = DecoderOptions(architecture, layers=3, width=32, heads=2, initializer_range=0.08, embedding_std=0.01)
    model = build_decoder(options, **SIZES, seed=0)
    config = model.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (40, 32, 3)
    assert (config.num_attention_heads, config.max_position_embeddings) == (2, 16)
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, 2)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert inputs is not outputs
    assert inputs.std().item() == pytest.approx(0.01, rel=0.1)
    assert outputs.std().item() == pytest.approx(0.08, rel=0.1)
    assert not any("dropout" in name and module.p for name, module in model.named_modules() if hasattr(module, "p"))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_tied_embeddings_are_one_tensor(architecture):
    model = build_decoder(DecoderOptions(architecture, tie_embeddings=True), **SIZES, seed=0)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_gpt2_activation_is_the_one_of_gpt2():
    fused = build_decoder(DecoderOptions(), **SIZES, seed=0).eval()
    original = build_decoder(DecoderOptions(), **SIZES, seed=0).eval()
    from transformers.activations import ACT2FN

    for block in original.transformer.h:
        block.mlp.act = ACT2FN["gelu_new"]
    torch.testing.assert_close(fused(BATCH.input_ids).logits, original(BATCH.input_ids).logits)


def test_weights_depend_on_the_seed_alone():
    options = DecoderOptions()
    torch.manual_seed(5)
    first = build_decoder(options, **SIZES, seed=1).state_dict()
    state = torch.get_rng_state()
    second = build_decoder(options, **SIZES, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    other = build_decoder(options, **SIZES, seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads"):
        build_decoder(DecoderOptions(width=10, heads=4), **SIZES, seed=0)


def test_scalar_head_reads_the_last_hidden_state_of_every_position(decoder):
    model = ScalarHeadModel(decoder.base_model)
    assert torch.equal(model(*INPUTS), torch.zeros(BATCH.input_ids.shape))
    torch.nn.init.normal_(model.head.weight)
    hidden = decoder(
        BATCH.input_ids,
        attention_mask=BATCH.attention_mask,
        position_ids=BATCH.position_ids,
        output_hidden_states=True,
    ).hidden_states[-1]
    torch.testing.assert_close(model(*INPUTS), hidden @ model.head.weight[0])


def test_scalar_head_survives_saving(decoder, tmp_path):
    model = ScalarHeadModel(decoder.base_model)
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "scalar_head.safetensors"}
    loaded = ScalarHeadModel.from_pretrained(tmp_path)
    assert torch.equal(model(*INPUTS), loaded(*INPUTS))
    assert torch.equal(
        ScalarHeadModel.from_pretrained(tmp_path, attn_implementation="eager")(*INPUTS).isfinite(),
        torch.ones_like(BATCH.response_mask),
    )


def test_scalar_head_starts_from_a_saved_language_model(decoder, tmp_path):
    decoder.save_pretrained(tmp_path)
    model = ScalarHeadModel.from_causal_lm(tmp_path)
    for name, weight in decoder.base_model.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], weight), name
    assert not model.head.weight.any()
    # loading is not sharing: training the head model leaves the file's model alone
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.backbone.get_input_embeddings().weight.data.zero_()
    assert again.get_input_embeddings().weight.any()


def test_values_are_float32_under_low_precision(decoder):
    model = ScalarHeadModel(decoder.base_model.to(torch.bfloat16))
    torch.nn.init.normal_(model.head.weight)
    hidden = model.backbone(*INPUTS[:1], attention_mask=INPUTS[1], position_ids=INPUTS[2]).last_hidden_state
    values = model(*INPUTS)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, hidden.float() @ model.head.weight[0])
    model.backbone.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(*INPUTS).dtype == torch.float32
