"""A small random model behind the API, where probabilities are a model's and not a script's.

Every token is one Chinese character, so that a text tells its tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers.models import BPE

from arriero.engine.local import LocalEngine
from arriero.models.card import ModelCard, decoder_tasks
from arriero.models.tokenizers.tokenizer import TextMetadata, Tokenizer
from arriero.pool import ServedModel, Vectors
from arriero.runners.onnx import load_runner
from arriero.text.chat import ChatTemplate
from arriero.text.stop import stop_constraints
from references.tiny_models import CASES, random_checkpoint

NUM_LETTERS = 256
START, END = NUM_LETTERS, NUM_LETTERS + 1
"""The marks of a turn; the second ends an answer."""
TEMPLATE = (
    "{{ tone }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def letter(token: int) -> str:
    return chr(0x4E00 + token)


def tiny_tokenizer(marks: Sequence[str] = ()) -> Tokenizer:
    backend = tokenizers.Tokenizer(BPE({letter(id): id for id in range(NUM_LETTERS)}, merges=[]))
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", *marks])
    metadata = TextMetadata(
        chat_template=TEMPLATE,
        special_tokens={"eos_token": "<|im_end|>"},
        bos_token_id=None,
        end_token_ids=frozenset({END}),
        add_bos=None,
        context=None,
    )
    return Tokenizer(Path("tiny"), json.loads(backend.to_str()), metadata)


def tiny_model(cache: Path, slots: int = 8, marks: Sequence[str] = ()) -> ServedModel:
    """`marks` are further control tokens."""
    tokenizer = tiny_tokenizer(marks)
    config = dataclasses.replace(CASES["grouped"], vocab_size=tokenizer.vocab_size)
    checkpoint = random_checkpoint(config)
    return ServedModel(
        card=ModelCard(
            name="tiny",
            source="random",
            family=config.family,
            parameters=0,
            context=config.context,
            vocab_size=config.vocab_size,
            source_format="F32",
            weights="fp32",
            invariant=True,
            tasks=decoder_tasks(chats=True, embeds=True),
        ),
        created=0,
        engine=LocalEngine(
            lambda: load_runner(
                checkpoint, weights="fp32", slots=slots, context=config.context, threads=1, cache=cache
            ),
            constraints=stop_constraints(tokenizer),
        ),
        tokenizer=tokenizer,
        template=ChatTemplate(TEMPLATE, tokenizer),
        fingerprint="fp_tiny",
        vectors=Vectors(width=config.hidden_size, normalise=True),
    )
