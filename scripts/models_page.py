"""Write docs/models.md from the families' declarations; with --check, only tell if it is up to date.

With --measure the errors are measured anew, against transformers' results in tests/references; else they are kept.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from arriero.compute import Row, Want  # noqa: E402
from arriero.models.checkpoint import open_checkpoint  # noqa: E402
from arriero.models.decoders.families import ARCHITECTURES  # noqa: E402
from arriero.models.decoders.gguf_families import ARCHITECTURES as GGUF_ARCHITECTURES  # noqa: E402
from references import tiny_families  # noqa: E402
from references.tiny_models import kept  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
MEASURED = "<!-- measured: `make models` -->\n"

HEAD = """\
# Models

Made from the code by `make models`. The ONNX engine computes the decoder families below; what it does not compute
goes to the torch engine (extra `torch`), which takes whatever transformers can generate text with. `arriero models
show NAME` tells which engine runs a model, and why.

## Families

A family is one function in `models/decoders/families.py` and one entry of its table. Weights come from safetensors, one
file or many, in float32, float16 or bfloat16, or from a GGUF file. What is not said here is as in LLaMA.

| `architectures` in config.json | GGUF | Among others | What sets it apart |
|---|---|---|---|
"""

MODELS = {
    "Gemma2ForCausalLM": "Gemma 2",
    "Gemma3ForCausalLM": "Gemma 3 270M and 1B",
    "Gemma3ForConditionalGeneration": "Gemma 3 4B, 12B and 27B",
    "GemmaForCausalLM": "Gemma, CodeGemma",
    "GraniteForCausalLM": "Granite 3",
    "InternLM3ForCausalLM": "InternLM3",
    "LlamaForCausalLM": "LLaMA, Llama 2 and 3, TinyLlama, SmolLM2, Yi, DeepSeek LLM, Falcon 3",
    "MinistralForCausalLM": "Ministral",
    "MistralForCausalLM": "Mistral, Mistral Nemo",
    "Olmo2ForCausalLM": "OLMo 2",
    "Olmo3ForCausalLM": "OLMo 3",
    "Phi3ForCausalLM": "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    "Qwen2ForCausalLM": "Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen",
    "Qwen3ForCausalLM": "Qwen3",
    "SeedOssForCausalLM": "Seed-OSS",
    "SmolLM3ForCausalLM": "SmolLM3",
}
"""Models that people know the family by."""
GGUF_AS = {"Gemma3ForConditionalGeneration": "gemma3", "MistralForCausalLM": "llama", "Olmo3ForCausalLM": "olmo2"}
"""Families whose GGUF files go by another family's name."""

LIMITS = """
## Positions

Unscaled, `linear`, `llama3` and `yarn` are computed over the whole context. Two kinds depend on how long a sequence
is:

- `longrope` (Phi-3 with 128k, Phi-4-mini) has short factors up to the original context and long ones, for all
  positions, beyond. transformers computes the whole sequence anew when it grows past that point. Here the original
  context is the limit.
- `dynamic` has another base at every length beyond the original context, and in transformers that depends on what
  else is in the batch. It is computed within the original context, where it is no scaling.

## What is refused

With one sentence that names the setting or tensor, and handed to the torch engine where that is installed:
architectures that are not in the table (mixtures of experts and models that see or hear among them), quantised
weights (GPTQ, AWQ and others), attention that is neither full nor a sliding window, cross attention, attention in
both directions, activations other than SiLU and GELU, `partial_rotary_factor` outside Phi-3, and scaled positions
in layers that have a window and positions of their own. A tensor that the configuration does not imply is an error as
well: leaving out a weight would give wrong answers.

Heads that are no multiple of 16 elements are computed with zeros among them; norms of queries and keys, and adapters,
are refused then.

## int8

`int8` rotates the residual stream at conversion ([ADR 2](adr/0002-row-wise-int8.md)), which needs every layer to
read it through a norm and to write to it without one. Gemma 2 and 3 and OLMo 2 and 3 have norms behind their
branches: there the MLP's inner channels are evened out, and in Gemma the channels that layers read from a norm. On
SmolLM2-135M, where all of it can be had, rotation costs 0.6 % of perplexity, evening as in Gemma 1.3 % and as in OLMo
2.9 %; no trained model of these families was at hand to measure.
Where quality counts more than speed, serve them with `--weights fp32`. Answers stay independent of what else runs, in
every family.

## int4

`--weights int4` is for models whose files have 4 bits a weight: on the native engine those in Q4_0, Q4_1 and Q4_K keep
their weights in about two thirds of int8's memory, and lose no more than int8 does. Other files' weights are rounded
to 4 bits, which costs a small model much (SmolLM2-135M 7 % of perplexity, and on ONNX Runtime, whose blocks are
larger, 19 %). One answer at a time is faster than with int8, sixteen together are not.

## Agreement with transformers

Small random models of every family and variant (`tests/references/tiny_families.py`), prompts of 1 to 150 tokens,
windows of 24. `tests/fidelity/test_families.py` holds logits to 1e-4 with prompts whole, in chunks and token by
token in a batch, and greedy tokens to the same ones. Below are the largest difference of fp32's logits from
transformers', and the root mean square of int8's difference from fp32, in percent of the logits' standard
deviation. Random weights attend sharply and react to small changes more than trained ones do;
`benchmarks/quality.py` says what int8 costs a real model.

"""


def families() -> str:
    """The table's rows."""
    rows = []
    for name, family in sorted(ARCHITECTURES.items()):
        plain = family.config.__name__.removeprefix("_")
        known = [key for key, value in GGUF_ARCHITECTURES.items() if value.family == plain]
        gguf = ", ".join(f"`{key}`" for key in [*known, *([GGUF_AS[name]] if name in GGUF_AS else [])])
        apart = (family.config.__doc__ or "").strip().splitlines()[0]
        rows.append(f"| `{name}` | {gguf} | {MODELS[name]} | {apart} |\n")
    return "".join(rows)


def measurements() -> str:
    """The table of errors, which needs no torch: transformers' results are at hand."""
    from arriero.runners.onnx import load_runner

    rows = ["| Family and variant | fp32, largest difference | int8, % |\n|---|---|---|\n"]
    with np.load(tiny_families.FILE) as file:
        for case in tiny_families.CASES:
            with tempfile.TemporaryDirectory() as directory:
                source = Path(directory) / "model"
                source.mkdir()
                checkpoint = open_checkpoint(tiny_families.write(case, source))
                logits = {}
                for weights in ("fp32", "int8"):
                    runner = load_runner(
                        checkpoint, weights=weights, slots=1, context=192, threads=1, cache=Path(directory) / weights
                    )
                    parts = []
                    for prompt in tiny_families.prompts(case):
                        parts.append(runner.step([Row(0, prompt, 0, Want.ALL)])[kept(len(prompt))].copy())
                        runner.free(0)
                    logits[weights] = np.concatenate(parts)
                    runner.close()
            error = np.abs(logits["fp32"] - file[f"{case}.logits"]).max()
            loss = np.sqrt(np.square(logits["int8"] - logits["fp32"]).mean()) / logits["fp32"].std()
            rows.append(f"| {case.replace('/', ': ').replace('_', ' ')} | {error:.1e} | {100 * loss:.1f} |\n")
    return "".join(rows)


def page(measured: str) -> str:
    """The whole text."""
    return HEAD + families() + LIMITS + MEASURED + measured


if __name__ == "__main__":
    kept_table = PAGE.read_text().partition(MEASURED)[2] if PAGE.exists() else ""
    text = page(measurements() if "--measure" in sys.argv else kept_table)
    if "--check" in sys.argv:
        cases = [case.replace("/", ": ").replace("_", " ") for case in tiny_families.CASES]
        missing = [case for case in cases if f"| {case} |" not in kept_table]
        sys.exit(None if PAGE.read_text() == text and not missing else "docs/models.md is not up to date: make models")
    PAGE.write_text(text)
