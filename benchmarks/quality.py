"""Perplexity of every weight format and engine on real prose, beside llama.cpp's, and the gates they have to pass.

    python benchmarks/quality.py [--text FILE] [--tokens 20480] [--json FILE]

The text, unless given, is what people wrote in the documentation of Django (its source distribution, fetched
with pip), without markup and code. It is cut into windows of 1,024 tokens; each window is read by itself, and
every token but its first is scored.

llama.cpp computes its own figure: its server is asked for one token after each prefix of a window, forced by
a logit bias to be the one that the text has, and tells the log-probability that the unbiased logits gave it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

import llama_cpp
from arriero import config_sources
from arriero.compute import Row, Runner, Want
from arriero.models.calibration import calibration
from arriero.models.checkpoint import open_checkpoint
from arriero.models.sources.resolve import resolve
from arriero.models.tokenizers.tokenizer import load_tokenizer
from arriero.runners import native, onnx

TEXT_PACKAGE = "Django==5.2.8"
TEXT_PARTS = ("faq", "internals", "misc", "intro", "topics")
WINDOW = 1024
CHUNK = 256
THREADS = os.cpu_count() or 1
DEFAULT_FORMAT_LIMIT = 1.01
INT4_LIMIT = 1.02


def documentation(directory: Path) -> str:
    """The prose of Django's documentation, a few hundred thousand words."""
    archives = list(directory.glob("[dD]jango-*.tar.gz"))
    if not archives:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "-d", directory, TEXT_PACKAGE], check=True)
        archives = list(directory.glob("[dD]jango-*.tar.gz"))
    with tarfile.open(archives[0]) as archive:
        names = sorted(name for name in archive.getnames() if re.match(rf"[^/]+/docs/({'|'.join(TEXT_PARTS)})/", name))
        files = (archive.extractfile(name) for name in names if name.endswith(".txt"))
        return "\n\n".join(paragraph for file in files if file for paragraph in _paragraphs(file.read().decode()))


def _paragraphs(source: str) -> Iterator[str]:
    """Paragraphs of whole sentences, their lines joined, without reStructuredText's marks."""
    for block in re.split(r"\n\s*\n", source):
        if (
            re.match(r"[A-Z]", block)
            and len(block) > 200
            and block.rstrip().endswith((".", ":"))
            and "\n  " not in block
        ):
            text = " ".join(block.split())
            text = re.sub(r":[a-z:]+:`~?!?([^`<]*?)(\s*<[^`]*>)?`", r"\1", text)
            text = re.sub(r"`([^`<]*?)\s*<[^`]*>`_+", r"\1", text)
            yield re.sub(r"``([^`]*)``|`([^`]*)`_*|\*+([^*]+)\*+", lambda m: m[1] or m[2] or m[3], text)


def arriero_perplexity(runner: Runner, windows: Sequence[Sequence[int]]) -> float:
    """exp of the mean negative log-likelihood, as a prompt of each window alone would be read."""
    total, count = 0.0, 0
    for window in windows:
        for start in range(0, len(window), CHUNK):
            logits = runner.step([Row(0, window[start : start + CHUNK], start, Want.ALL)])
            targets = window[start + 1 : start + CHUNK + 1]
            total -= _log_likelihoods(logits[: len(targets)], targets).sum()
            count += len(targets)
        runner.free(0)
    return math.exp(total / count)


def _log_likelihoods(logits: NDArray[np.float32], targets: Sequence[int]) -> NDArray[np.float64]:
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    log_sums = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    chosen: NDArray[np.float64] = logits[np.arange(len(targets)), list(targets)] - log_sums
    return chosen


def llama_perplexity(directory: Path, model: Path, windows: Sequence[Sequence[int]], together: int = 8) -> float:
    """The same of llama.cpp's server, each window in a slot of its own, its keys and values kept between tokens."""
    flags = {
        "n_ctx": (WINDOW + 64) * together,
        "n_parallel": together,
        "cpuparams.n_threads": THREADS,
        "cpuparams_batch.n_threads": THREADS,
        "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
        "cache_ram_mib": 0,
        "verbosity": 0,
    }
    with llama_cpp.server(directory, model, flags) as url:
        scores = asyncio.run(_ask_for_all(url.removesuffix("/v1"), windows, together))
    return math.exp(-sum(scores) / len(scores))


async def _ask_for_all(url: str, windows: Sequence[Sequence[int]], together: int) -> list[float]:
    queue = iter(windows)
    scores: list[float] = []

    async def client(slot: int) -> None:
        for window in queue:
            for length in range(1, len(window)):
                body = {
                    "prompt": list(window[:length]),
                    "id_slot": slot,
                    "cache_prompt": True,
                    "n_predict": 1,
                    "n_probs": 1,
                    "temperature": 0,
                    "logit_bias": [[window[length], 1e6]],
                }
                answer = (await http.post(f"{url}/completion", json=body)).raise_for_status().json()
                (chosen,) = answer["completion_probabilities"]
                assert chosen["id"] == window[length], "the bias did not decide"
                scores.append(chosen["logprob"])

    # llama.cpp drops idle connections without notice, so each request has its own.
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_keepalive_connections=0)) as http:
        await asyncio.gather(*(client(slot) for slot in range(together)))
    return scores


def windows_of(tokens: Sequence[int], num_tokens: int) -> list[list[int]]:
    """Whole windows, spread evenly over the text, at least `num_tokens` scored tokens in all."""
    count = -(-num_tokens // (WINDOW - 1))
    available = len(tokens) // WINDOW
    if available < count:
        raise SystemExit(f"The text has {available} windows of {WINDOW} tokens, {count} are needed.")
    return [list(tokens[i * WINDOW : (i + 1) * WINDOW]) for i in (n * available // count for n in range(count))]


def measure(text: str, num_tokens: int, work: Path) -> dict[str, float]:
    """Perplexity by name."""
    settings = config_sources.load({})
    path = resolve(None, settings.cache).path
    tokenizer = load_tokenizer(path)
    windows = windows_of(tokenizer.encode(text), num_tokens)
    result: dict[str, float] = {}

    def note(name: str, perplexity: float, started: float) -> None:
        result[name] = perplexity
        print(f"{name:24} {perplexity:9.4f}   {time.perf_counter() - started:5.0f} s", flush=True)

    print(f"{len(windows)} windows of {WINDOW} tokens, {len(windows) * (WINDOW - 1)} scored")
    for engine, formats in ((onnx, ("fp32", "int8", "int4")), (native, ("int8", "int4"))):
        for weights in formats:
            started = time.perf_counter()
            checkpoint = open_checkpoint(path)
            runner = engine.load_runner(
                checkpoint,
                weights=weights,
                slots=1,
                context=WINDOW,
                threads=THREADS,
                cache=work,
                calibration=calibration(tokenizer, WINDOW, checkpoint.config.vocab_size),
            )
            note(f"{weights} {engine.__name__.rpartition('.')[2]}", arriero_perplexity(runner, windows), started)
            runner.close()
    started = time.perf_counter()
    q4_0 = llama_cpp.model_files(path, work)["Q4_0"]
    note("llama.cpp Q4_0", llama_perplexity(settings.cache / "llama.cpp", q4_0, windows), started)
    return result


def gates(perplexity: dict[str, float]) -> Iterable[tuple[str, float, float]]:
    """What is held against what, the ratio, and the largest that passes."""
    for engine in ("native", "onnx"):
        yield f"int8 {engine} / fp32", perplexity[f"int8 {engine}"] / perplexity["fp32 onnx"], DEFAULT_FORMAT_LIMIT
        yield f"int4 {engine} / llama.cpp Q4_0", perplexity[f"int4 {engine}"] / perplexity["llama.cpp Q4_0"], INT4_LIMIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="prose in UTF-8, instead of Django's documentation")
    parser.add_argument("--tokens", type=int, default=20_480, help="how many to score, at least (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    downloads = config_sources.load({}).cache / "benchmarks"
    downloads.mkdir(parents=True, exist_ok=True)
    text = arguments.text.read_text("utf-8") if arguments.text else documentation(downloads)
    with tempfile.TemporaryDirectory(prefix="arriero-quality-") as work:
        perplexity = measure(text, arguments.tokens, Path(work))
    failed = False
    for name, ratio, limit in gates(perplexity):
        failed |= ratio > limit
        print(f"{name:28} {ratio:.4f}   at most {limit}: {'passed' if ratio <= limit else 'FAILED'}")
    if arguments.json:
        result = {"text": str(arguments.text or TEXT_PACKAGE), "tokens": arguments.tokens, "perplexity": perplexity}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
