import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 13


def _tiny_model(family: str):
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "initializer_range": 0.4,
        **ids,
    }
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.4, **ids
        )
        return GPT2LMHeadModel(config)
    model_class, config_class, extra = {
        "llama": (LlamaForCausalLM, LlamaConfig, {}),
        "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 8}),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    }[family]
    return model_class(config_class(**shape, **extra))


@pytest.fixture(params=["gpt2", "llama", "gemma", "qwen2"])
def decoder(request):
    """A tiny random causal language model of each family, in evaluation mode, with 13 token ids."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _tiny_model(request.param).eval()


@pytest.fixture
def gpt2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _tiny_model("gpt2").eval()
