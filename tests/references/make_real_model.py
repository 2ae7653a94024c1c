"""Make real_model.npz: what transformers computes for the catalog's default model, SmolLM2-135M-Instruct.

    PYTHONPATH=tests python tests/references/make_real_model.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs torch and transformers; `real_model` tells what is in the file and reads it without. The GGUF file is
decoded with the `gguf` package and put into transformers' own LlamaForCausalLM in float32; one sequence at a time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from references import natural_text
from references.real_model import FILE, NUM_TOKENS

FULL_LOGITS_OF = (3, 88)
SOME_LOGITS_OF = (3, 17, 40, 70, 88, 95)
NUM_COLUMNS = 2000

_LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_model(path: Path) -> LlamaForCausalLM:
    """The GGUF file as transformers' model, float32."""
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    config = LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        _, _, module = tensor.name.removesuffix(".weight").rpartition(".")
        if module in heads:
            # llama.cpp keeps the two elements that rotate together side by side, transformers half a head apart.
            pairs = values.reshape(heads[module], -1, 2, values.shape[1])
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
        state[_name(tensor.name)] = torch.from_numpy(values)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"], missing  # the embedding, once more
    assert not unexpected, unexpected
    return model


def _name(name: str) -> str:
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in whole:
        return whole[name]
    _, layer, module, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_MODULES[module]}.{kind}"


def load_prompts(path: Path) -> list[list[int]]:
    """The token ids of all prompts, by transformers' own reading of the file's vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    prompts = [tokenizer(text).input_ids for text in natural_text.texts()]
    for messages in natural_text.conversations():
        prompts.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    return prompts


@torch.inference_mode()
def greedy(model: LlamaForCausalLM, prompt: list[int]) -> tuple[list[int], list[float]]:
    """64 tokens, and how far ahead of the second best each was."""
    tokens: list[int] = []
    gaps: list[float] = []
    output = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
    while True:
        best, second = output.logits[0, -1].topk(2).values
        tokens.append(int(output.logits[0, -1].argmax()))
        gaps.append(float(best - second))
        if len(tokens) == NUM_TOKENS:
            return tokens, gaps
        output = model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)


@torch.inference_mode()
def logits(model: LlamaForCausalLM, prompts: list[list[int]]) -> dict[str, np.ndarray]:
    """Logits at the last and four other positions of some prompts."""
    dice = np.random.PCG64(5)
    columns = np.unique(dice.random_raw(4 * NUM_COLUMNS) % model.config.vocab_size)[::4][:NUM_COLUMNS].astype(np.int32)
    positions, rows, full = [], [], []
    for index in SOME_LOGITS_OF:
        all_logits = model(torch.tensor([prompts[index]])).logits[0].numpy()
        last = len(prompts[index]) - 1
        if index in FULL_LOGITS_OF:
            full.append(all_logits[last])
        for position in sorted({last, *(int(raw) % (last + 1) for raw in dice.random_raw(4))}, reverse=True):
            positions.append((index, position))
            rows.append(all_logits[position, columns])
    return {
        "logit_positions": np.array(positions, np.int32),
        "logit_columns": columns,
        "logits": np.array(rows),
        "full_logits_of": np.array(FULL_LOGITS_OF, np.int32),
        "full_logits": np.array(full),
    }


def make(path: Path) -> dict[str, np.ndarray]:
    """The file's contents."""
    model, prompts = load_model(path), load_prompts(path)
    answers = [greedy(model, prompt) for prompt in prompts]
    return {
        "prompts": np.concatenate(prompts).astype(np.uint16),
        "lengths": np.array([len(prompt) for prompt in prompts], np.int32),
        "continuations": np.array([tokens for tokens, _ in answers], np.uint16),
        "gaps": np.array([gaps for _, gaps in answers], np.float32),
        **logits(model, prompts),
    }


if __name__ == "__main__":
    np.savez_compressed(FILE, **make(Path(sys.argv[1])))
