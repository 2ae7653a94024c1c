"""Scripted replies: a model that needs no weights, for tests, demonstrations and benchmarks of everything above it.

Tokenizer, template, engine and runner are the real ones; only what the runner predicts is written down beforehand.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from arriero import __version__
from arriero.config_description import flag
from arriero.engine.local import LocalEngine
from arriero.errors import ConfigError
from arriero.models.card import ModelCard, decoder_tasks
from arriero.models.tokenizers.tokenizer import TextMetadata, Tokenizer
from arriero.pool import ServedModel, Vectors
from arriero.runners.scripted import ScriptedRunner
from arriero.text.chat import ChatTemplate
from arriero.text.stop import stop_constraints

if TYPE_CHECKING:
    from arriero.config import Settings

NAME = "scripted"
CONTEXT = 32_768
WIDTH = 16
"""Elements of its embeddings, which tell little more than which bytes a text has."""

_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is replied to a text in which `pattern` is found."""

    pattern: re.Pattern[str]
    reply: str


def scripted_model(settings: Settings) -> ServedModel:
    """A model that replies from `settings.script`, or with the last user message, or with the whole prompt.

    Its tokens are bytes. Raises `ConfigError` for a script that cannot be read, and for settings as `check_settings`.
    """
    check_settings(settings)
    rules = read_script(settings.script) if settings.script else []
    tokenizer = byte_tokenizer()
    context = settings.context or CONTEXT
    end = tokenizer.control_tokens[_TURN_END]

    @lru_cache(maxsize=64)
    def reply(prompt: tuple[int, ...]) -> Sequence[int]:
        text = _last_user_text(tokenizer, prompt)
        answer = next((rule.reply for rule in rules if rule.pattern.search(text)), text)
        return tokenizer.encode(answer, add_special_tokens=False, parse_special=False)

    def runner() -> ScriptedRunner:
        return ScriptedRunner(
            vocab_size=tokenizer.vocab_size,
            num_slots=settings.slots,
            context=context,
            end_token_id=end,
            reply=reply,
            pace=1 / settings.pace if settings.pace else 0.0,
            hidden_size=WIDTH,
            num_guesses=settings.speculation or 0,
        )

    return ServedModel(
        card=ModelCard(
            name=settings.model_name or NAME,
            source=str(settings.script or "echo"),
            family=NAME,
            parameters=0,
            context=context,
            vocab_size=tokenizer.vocab_size,
            source_format="script",
            weights="none",
            invariant=True,
            tasks=decoder_tasks(chats=True, embeds=True),
            engine="scripted",
            engine_reason="The settings ask for it.",
        ),
        created=int(time.time()),
        engine=LocalEngine(
            runner,
            constraints=stop_constraints(tokenizer),
            token_budget=settings.token_budget or None,
            max_queue=settings.max_queue,
            chunk=context,
            chunk_beside_decode=context,  # reading takes no time, so nobody has to be spared it
            thread=bool(settings.pace),
        ),
        tokenizer=tokenizer,
        template=ChatTemplate(_TEMPLATE, tokenizer),
        vectors=Vectors(width=WIDTH, normalise=True),
        fingerprint=f"fp_{NAME}_{hashlib.sha256(repr((__version__, rules)).encode()).hexdigest()[:10]}",
    )


def check_settings(settings: Settings) -> None:
    """Raise `ConfigError` that names a setting, in plain words, that only an engine with a model can honour."""
    for name in ("model", "lora_model", "tokenizer_path", "lora", "trust_remote_code"):
        if value := getattr(settings, name):
            given = value if isinstance(value, str | Path) else ",".join(value) if isinstance(value, dict) else "on"
            raise ConfigError(f"--engine scripted computes no model, but {flag(name)} is {given}")
    if settings.weights != "auto":
        raise ConfigError(f"--engine scripted has no weights, but --weights is {settings.weights}")
    if settings.gpus not in (None, "none"):
        raise ConfigError(f"--engine scripted uses the CPU, but --gpus is {settings.gpus}")


def byte_tokenizer() -> Tokenizer:
    """A tokenizer whose tokens are the 256 bytes and the two marks of the ChatML conversation format."""
    characters = sorted(ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(BPE({each: id for id, each in enumerate(characters)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([_TURN_START, _TURN_END])
    metadata = TextMetadata(
        chat_template=_TEMPLATE,
        special_tokens={"eos_token": _TURN_END},
        bos_token_id=None,
        end_token_ids=frozenset({len(characters) + 1}),
        add_bos=None,
        context=None,
    )
    return Tokenizer(Path(NAME), json.loads(backend.to_str()), metadata)


def read_script(path: Path) -> list[Rule]:
    """The rules of a script file: a JSON array of objects, or one object a line.

    An object has `reply` and one of `match` (a text that is to be contained) and `pattern` (a regular expression
    that is to be found); one with neither matches everything. The first rule that matches counts.

    Raises:
        ConfigError: the file cannot be read, or an entry is malformed; the message says which.
    """
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the script {path}: {error}") from None
    try:
        if source.lstrip().startswith("["):
            entries = json.loads(source)
        else:
            entries = [json.loads(line) for line in source.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ConfigError(f"the script {path} is not JSON: {error}") from None
    return [_rule(path, number, entry) for number, entry in enumerate(entries, 1)]


def _rule(path: Path, number: int, entry: Any) -> Rule:
    where = f"entry {number} of the script {path}"
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise ConfigError(f"{where} is not an object of strings")
    if (
        "reply" not in entry
        or not entry.keys() <= {"reply", "match", "pattern"}
        or {"match", "pattern"} <= entry.keys()
    ):
        raise ConfigError(f"{where} needs 'reply' and at most one of 'match' and 'pattern', and nothing else")
    try:
        pattern = re.compile(entry.get("pattern", re.escape(entry.get("match", ""))))
    except re.error as error:
        raise ConfigError(f"the pattern in {where} is no regular expression: {error}") from None
    return Rule(pattern, entry["reply"])


def _last_user_text(tokenizer: Tokenizer, prompt: tuple[int, ...]) -> str:
    """What the user said last; the whole prompt where it is no conversation."""
    start, end = (tokenizer.control_tokens[mark] for mark in (_TURN_START, _TURN_END))
    starts = [place for place, token in enumerate(prompt) if token == start]
    for begin in reversed(starts):
        stop = prompt.index(end, begin) if end in prompt[begin:] else len(prompt)
        role, _, text = tokenizer.decode(prompt[begin + 1 : stop]).partition("\n")
        if role == "user":
            return text
    return tokenizer.decode(prompt)
