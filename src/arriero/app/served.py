"""What every model that runs in this process has around its runner."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from arriero import __version__
from arriero.compute import Runner, RunnerInfo
from arriero.core import ConstraintFactory
from arriero.engine.local import LocalEngine
from arriero.machine import available_memory
from arriero.models.card import ModelCard
from arriero.models.tokenizers.slow_tokenizers import TOKENIZER_FILES
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.pool import ServedModel, Vectors
from arriero.text.chat import ChatTemplate
from arriero.text.stop import stop_constraints

if TYPE_CHECKING:
    from arriero.config import Settings

KEY_VALUE_SHARE = 0.5
"""How much of the memory that is left beside the weights keys and values may take, unless settings say otherwise."""
PROMPT_CHUNK = 512
"""Prompt tokens read in one step while nobody waits for the next token."""


def serve_runner(
    settings: Settings,
    runner: Runner,
    card: ModelCard,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    fingerprint: str,
    memory: int = 0,
    constraints: ConstraintFactory | None = None,
) -> ServedModel:
    """A model on an engine of its own; `memory` is what is free where keys and values will lie, 0: main memory.

    `constraints` is for an engine that answers in several vocabularies.
    """
    return ServedModel(
        card=card,
        created=int(time.time()),
        engine=LocalEngine(
            lambda: runner,
            constraints=constraints or stop_constraints(tokenizer),
            token_budget=settings.token_budget or _token_budget(runner.info, memory or available_memory()),
            max_queue=settings.max_queue,
            chunk=max(PROMPT_CHUNK, settings.prefill_chunk),
            chunk_beside_decode=settings.prefill_chunk,
            prefix_tokens=settings.prefix_cache,
        ),
        tokenizer=tokenizer,
        template=template,
        fingerprint=fingerprint,
        vectors=Vectors(width=runner.info.hidden_size, normalise=True),
    )


def _token_budget(info: RunnerInfo, memory: int) -> int:
    """Tokens whose keys and values fit the memory at hand; at least one full slot, at most all of them."""
    fitting = int(KEY_VALUE_SHARE * memory / info.bytes_per_token)
    slot = info.context + info.source_context
    return min(max(fitting, slot), info.num_slots * slot)


def vocabulary_digest(path: Path) -> str:
    """The tokenizer of a directory, which the checkpoint's identity does not cover; a GGUF file holds its own."""
    files = [path / name for name in ("tokenizer.json", *TOKENIZER_FILES)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file()))
    return digest.hexdigest() if path.is_dir() else ""


def fingerprint_of(*facts: str) -> str:
    """Another one for whatever may change what the same request with the same seed is answered."""
    return "fp_" + hashlib.sha256("\n".join((__version__, *facts)).encode()).hexdigest()[:10]
