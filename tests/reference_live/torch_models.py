"""Tiny random models of many families, as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 120


def _llama() -> PreTrainedModel:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    )


def _mistral() -> PreTrainedModel:
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            sliding_window=5,
        )
    )


def _gpt2() -> PreTrainedModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    )


def _gpt_neox() -> PreTrainedModel:
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
        )
    )


def _falcon() -> PreTrainedModel:
    return transformers.FalconForCausalLM(
        transformers.FalconConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            alibi=True,
            new_decoder_architecture=False,
        )
    )


def _bloom() -> PreTrainedModel:
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    )


def _opt() -> PreTrainedModel:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
        )
    )


def _mamba() -> PreTrainedModel:
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2)
    )


def _t5() -> PreTrainedModel:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )


def _bart() -> PreTrainedModel:
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            forced_eos_token_id=None,
            tie_word_embeddings=False,
        )
    )


def _marian() -> PreTrainedModel:
    return transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            pad_token_id=1,
            eos_token_id=2,
            bos_token_id=0,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
            tie_word_embeddings=False,
        )
    )


def _m2m_100() -> PreTrainedModel:
    return transformers.M2M100ForConditionalGeneration(
        transformers.M2M100Config(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            tie_word_embeddings=False,
        )
    )


def _led() -> PreTrainedModel:
    return transformers.LEDForConditionalGeneration(
        transformers.LEDConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_encoder_position_embeddings=256,
            max_decoder_position_embeddings=128,
            attention_window=8,
        )
    )


def _lfm2() -> PreTrainedModel:
    return transformers.Lfm2ForCausalLM(
        transformers.Lfm2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            layer_types=["conv", "full_attention"],
        )
    )


DECODERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "mistral": _mistral,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "falcon": _falcon,
    "bloom": _bloom,
    "opt": _opt,
    "mamba": _mamba,
    "lfm2": _lfm2,
}
ENCODER_DECODERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "t5": _t5,
    "bart": _bart,
    "marian": _marian,
    "m2m_100": _m2m_100,
    "led": _led,
}


def save(name: str, directory: Path, spread: float = 0.08) -> PreTrainedModel:
    """Make one of them, save it, return it; `spread` is the standard deviation of its matrices.

    The larger it is, the more an answer depends on what was read, and the more rounding counts.
    """
    torch.manual_seed(20)
    model = {**DECODERS, **ENCODER_DECODERS}[name]().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.requires_grad and path.endswith("weight") and parameter.dim() == 2:
                parameter.normal_(std=spread)
    model.save_pretrained(directory)
    return model
