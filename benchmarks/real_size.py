"""A model of a real size, Arriero and llama.cpp by turns: prompts of 2,000 words at 1 and at 8 clients.

    python benchmarks/real_size.py [--clients 1,8] [--layers 16] [--repetitions 1] [--only NAMES]

The model has the shape of LLaMA 3.2 1B and random weights: hidden size 2048, 16 layers, 32 heads of which 8 for keys
and values, intermediate size 8192; its vocabulary is SmolLM2's, 49,152 tokens instead of 128,256, with that model's
tokenizer. Speed does not depend on the values. It is written once as Q8_0, for llama.cpp and for Arriero's int8, and
once as Q4_0, for llama.cpp and for int4. A model of fewer layers has the same products, only not so many.

A request is a prompt of 2,000 words (about 2,050 tokens) that occurs once, and 64 greedy tokens; every client sends
one. The first turn of all converts the model for Arriero, which takes a while. A figure is output tokens a second over
all, reading included.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from arriero import config_sources
from arriero.models.sources.resolve import resolve
from contestants import Contestant, arriero, by_turns, llama, put, standing
from figures import Figures, Verdict, best, chosen, medians, parser

HIDDEN, HEADS, KEY_VALUE_HEADS, INTERMEDIATE, CONTEXT = 2048, 32, 8, 8192, 4096
DEVIATION = 0.02
"""Of the random weights, as models are initialised."""
GOALS = {1: 1.2, 8: 1.5}
PER_CLIENT = 2560
"""Tokens that llama.cpp sets aside for a client."""


def write_model(tokenizer: Path, target: Path, kind: str, layers: int) -> Path:
    """Write a random model with another GGUF file's tokenizer; a target that exists is taken as it is."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    reader, writer = gguf.GGUFReader(tokenizer), gguf.GGUFWriter(part, arch="llama")
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1])
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    draw = np.random.default_rng(0)
    narrow = HIDDEN // HEADS * KEY_VALUE_HEADS
    matrices = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (narrow, HIDDEN),
        "attn_v": (narrow, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (INTERMEDIATE, HIDDEN),
        "ffn_up": (INTERMEDIATE, HIDDEN),
        "ffn_down": (HIDDEN, INTERMEDIATE),
    }
    _add(writer, draw, "token_embd.weight", (vocabulary, HIDDEN), "Q8_0")
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
        for name, shape in matrices.items():
            _add(writer, draw, f"blk.{layer}.{name}.weight", shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(target)


def _add(writer: gguf.GGUFWriter, draw: np.random.Generator, name: str, shape: tuple[int, int], kind: str) -> None:
    """Add a matrix of random blocks: a scale in half precision, then 32 numbers of 4 or 8 bits (GGML's layout)."""
    rows, columns = shape
    width, deviation = {"Q8_0": (32, 73.9), "Q4_0": (16, 4.61)}[kind]  # of evenly drawn bytes and nibbles
    blocks = np.empty((rows * columns // 32, 2 + width), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(DEVIATION / deviation).tobytes(), np.uint8)
    blocks[:, 2:] = draw.integers(0, 256, (len(blocks), width), np.uint8)
    writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType[kind])


def measure(contestants: list[Contestant], clients: int, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Three quantities of everybody at one number of clients."""

    def ask(each: Contestant, url: str, seed: int) -> dict[str, float]:
        load: dict[str, Any] = {"prompt_tokens": 2000, "max_tokens": 64, "seed": seed + clients}
        result = put(each, url, clients=clients, requests=clients, **load)
        return {
            "tokens/s": result.output_tokens_per_second,
            "first token s": statistics.median(one.first_token for one in result.answered if one.first_token),
            "per token s": statistics.median(one.time_per_token for one in result.answered if one.time_per_token),
        }

    with standing(contestants, clients, PER_CLIENT) as urls:
        return by_turns(contestants, urls, repetitions, ask)


def main() -> None:
    arguments = parser(__doc__, repetitions=1)
    arguments.add_argument("--clients", default="1,8", help="numbers of clients, with commas")
    arguments.add_argument("--layers", type=int, default=16, help="layers of the model (default 16)")
    given = arguments.parse_args()
    cache = config_sources.load({}).cache
    tokenizer = resolve(None, cache).path
    files = {
        kind: write_model(tokenizer, cache / "benchmarks" / f"random-{given.layers}.{kind}.gguf", kind, given.layers)
        for kind in ("Q8_0", "Q4_0")
    }
    contestants = chosen(
        [
            arriero("int8", model=files["Q8_0"]),
            arriero("int4", model=files["Q4_0"]),
            llama("llama.cpp Q4_0", files["Q4_0"], cache),
            llama("llama.cpp Q8_0", files["Q8_0"], cache),
        ],
        given.only,
    )
    levels = [int(part) for part in given.clients.split(",")]
    found = {clients: measure(contestants, clients, given.repetitions) for clients in levels}
    values = {f"{clients} client{'s' * (clients > 1)}": each["tokens/s"] for clients, each in found.items()}
    verdicts = []
    for clients, condition in zip(levels, values, strict=True):
        middle = medians(values[condition])
        for each in contestants:
            if each.ours and not all(one.ours for one in contestants):
                what = f"{each.name} / llama.cpp's best, {condition}"
                verdicts.append(Verdict(what, middle[each.name] / best(middle, contestants), GOALS.get(clients)))
    Figures(
        name="real-size",
        title=f"Random weights in the shape of LLaMA 3.2 1B, {given.layers} layers: prompts of 2,000 words, 64 tokens",
        unit="tokens/s",
        values=values,
        verdicts=verdicts,
        flags={each.name: each.shown_flags(max(levels), PER_CLIENT) for each in contestants},
        details=found,
    ).conclude(given.output)


if __name__ == "__main__":
    main()
