"""Small language models built from the configuration classes of transformers, and models with a scalar head."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from shared.lm.options import DecoderOptions

SCALAR_HEAD_FILE = "scalar_head.safetensors"


def build_decoder(
    options: DecoderOptions,
    *,
    vocabulary_size: int,
    max_positions: int,
    pad_id: int,
    eos_id: int,
    bos_id: int,
    seed: int,
) -> PreTrainedModel:
    """Causal language model with random weights, a function of the arguments alone.

    Args:
        vocabulary_size: number of token ids.
        max_positions: longest sequence, prompt and response together.

    Raises:
        ValueError: the width is not a multiple of the heads.
    """
    if options.width % options.heads:
        raise ValueError(f"heads: must divide the width {options.width}, got {options.heads}")
    common = {
        "vocab_size": vocabulary_size,
        "pad_token_id": pad_id,
        "eos_token_id": eos_id,
        "bos_token_id": bos_id,
    }
    if options.architecture == "gpt2":
        model_class, config = GPT2LMHeadModel, _gpt2_config(options, max_positions, common)
    else:
        model_class, config = LlamaForCausalLM, _llama_config(options, max_positions, common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        if options.embedding_std is not None:
            nn.init.normal_(model.get_input_embeddings().weight, std=options.embedding_std)
    return model


def _gpt2_config(options: DecoderOptions, max_positions: int, common: dict[str, int]) -> GPT2Config:
    return GPT2Config(
        n_positions=max_positions,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        # The same function as GPT-2's "gelu_new", in one kernel: half the time of a small model's training step.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=options.dropout,
        initializer_range=options.initializer_range,
        tie_word_embeddings=options.tie_embeddings,
        **common,
    )


def _llama_config(options: DecoderOptions, max_positions: int, common: dict[str, int]) -> LlamaConfig:
    return LlamaConfig(
        max_position_embeddings=max_positions,
        hidden_size=options.width,
        # Three matrices of 8/3 the width have as many weights as GPT-2's two of four times the width.
        intermediate_size=8 * options.width // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        attention_dropout=options.dropout,
        initializer_range=options.initializer_range,
        tie_word_embeddings=options.tie_embeddings,
        **common,
    )


class ScalarHeadModel(nn.Module):
    """A decoder with one linear output, without bias, at every position: a reward model or a critic.

    On disk it is the backbone in the format of transformers (`config.json`, `model.safetensors`) and the head in
    `scalar_head.safetensors`. A new head is zero, so that all values are 0 and no random numbers are drawn.
    """

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone
        # float32 whatever the backbone's precision: bfloat16 resolves a reward of 10 to 0.06 only.
        self.head = nn.Linear(backbone.config.hidden_size, 1, bias=False, device=backbone.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Value at every position, (B, S), of tokens (B, S); float32 unless the head was converted."""
        hidden = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)

    @classmethod
    def from_causal_lm(cls, directory: str | Path, **loading_options) -> "ScalarHeadModel":
        """A new head on the body of the causal language model saved in `directory` (or of that hub name).

        `loading_options` are those of transformers' `from_pretrained`: dtype, attn_implementation, ...
        """
        model = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, **loading_options)
        return cls(model.base_model)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **loading_options) -> "ScalarHeadModel":
        """What `save_pretrained` wrote to `directory`; `loading_options` as in `from_causal_lm`."""
        model = cls(AutoModel.from_pretrained(directory, use_safetensors=True, **loading_options))
        model.head.load_state_dict(load_file(Path(directory) / SCALAR_HEAD_FILE))
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the backbone and the head to `directory`."""
        self.backbone.save_pretrained(directory)
        save_file({"weight": self.head.weight.detach().cpu().contiguous()}, Path(directory) / SCALAR_HEAD_FILE)
