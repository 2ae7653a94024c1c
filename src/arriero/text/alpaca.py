"""The prompts that Alpaca models were trained on, byte for byte as the server of Chinese-LLaMA-Alpaca makes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from arriero.core import PromptScored
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.text.chat import ChatTemplate
from arriero.text.stream import Delta, Ended

SYSTEM = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

_CHAT = (
    "{%- set system = namespace(text=" + repr(SYSTEM) + ") %}"
    "{%- for message in messages if message.role == 'system' %}{% set system.text = message.content %}{% endfor %}"
    "{{- system.text + '\\n\\n' }}"
    "{%- for message in messages if message.role != 'system' %}"
    "{%- if message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}"
    "{%- elif message.role == 'assistant' %}{{ '### Response: ' + message.content + '\\n\\n' }}"
    "{%- else %}{{ raise_exception('Alpaca has no place for the role ' + message.role + '.') }}"
    "{%- endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '### Response: ' }}{% endif %}"
)


def instruction(prompt: str) -> str:
    """The text that asks an Alpaca model to do what `prompt` says."""
    return f"{SYSTEM}\n    \n### Instruction:\n{prompt}\n\n### Response: "


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """Alpaca's form of a conversation; the last system message takes the place of the usual first sentence."""
    begins = tokenizer.bos_token_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
    return ChatTemplate(("{{ bos_token }}" if begins else "") + _CHAT, tokenizer)


async def strip(
    deltas: AsyncGenerator[list[PromptScored | Delta | Ended], None],
) -> AsyncGenerator[list[PromptScored | Delta | Ended], None]:
    """The same answers without white space around them; `deltas` is closed with this iterator."""
    started: set[int] = set()
    held: dict[int, str] = {}
    async with aclosing(deltas):
        async for batch in deltas:
            stripped: list[PromptScored | Delta | Ended] = []
            for item in batch:
                if isinstance(item, Delta):
                    text = held.pop(item.index, "") + item.text
                    text = text if item.index in started else text.lstrip()
                    said = text.rstrip()
                    if said:
                        started.add(item.index)
                    if item.index in started:
                        held[item.index] = text[len(said) :]
                    item = replace(item, text=said)
                    if not item.text and not item.tokens:
                        continue
                stripped.append(item)
            if stripped:
                yield stripped
