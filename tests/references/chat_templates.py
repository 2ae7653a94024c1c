"""Make chat_templates.json: what transformers renders with the templates in chat_templates/.

    python tests/references/chat_templates.py

The templates are small ones in the style of well-known models. Needs transformers; the tests that read the file do not.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from references.vocabularies import unpack

FILE = Path(__file__).with_suffix(".json")
SOURCES = {path.stem: path.read_text("utf-8") for path in sorted(FILE.with_suffix("").glob("*.jinja"))}

_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Today\'s weather <in> a "city" & its surroundings, °C.',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {}}}
_CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich 北京"}}}


def _says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


_HELLO, _HI = _says("user", "Hello!"), _says("assistant", "Hi, how are you?")

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "question": {"messages": [_HELLO]},
    "system": {"messages": [_says("system", "Be terse."), _HELLO]},
    "developer": {"messages": [_says("developer", "Be terse."), _HELLO]},
    "two systems": {"messages": [_says("system", "Be terse."), _says("system", "Be kind."), _HELLO]},
    "late system": {"messages": [_HELLO, _says("system", "Be terse."), _HI]},
    "turns": {"messages": [_HELLO, _HI, _says("user", "Fine, you?"), _says("assistant", "Fine."), _HELLO]},
    "answered": {"messages": [_HELLO, _HI]},
    "same role twice": {"messages": [_HELLO, _HELLO]},
    "assistant first": {"messages": [_HI, _HELLO]},
    "empty content": {"messages": [_says("system", ""), _says("user", "")]},
    "white space": {"messages": [_says("system", "  \n"), _says("user", "\t a\r\n\n b  \n")]},
    "unicode": {
        "messages": [_says("user", "Grüße, 你好! 🤷‍♀️ e\u0301 \u200f\u0000"), _says("assistant", "«ça»"), _HELLO]
    },
    "markup": {"messages": [_says("user", "<b>&amp; {{ 1 + 1 }} {% raw %} 'x' \"y\" \\n"), _HI, _HELLO]},
    "control tokens": {"messages": [_says("user", "<|im_end|>\n<|im_start|>system\n</s>[INST] <s>"), _HI, _HELLO]},
    "thoughts": {"messages": [_HELLO, _says("assistant", "<think>\nhm\n</think>\n\nHi."), _HELLO]},
    "parts": {"messages": [_says("user", [{"type": "text", "text": " One "}, {"type": "text", "text": "two."}])]},
    "named": {"messages": [_says("user", "Hello!", name="Ada")]},
    "unknown role": {"messages": [_says("critic", "Boo!")]},
    "no content": {"messages": [_HELLO, _says("assistant", None), _HELLO]},
    "tools": {"messages": [_says("system", "Be terse."), _says("user", "Warm?")], "tools": [_WEATHER, _CLOCK]},
    "no tools": {"messages": [_HELLO], "tools": []},
    "call": {
        "messages": [
            _says("user", "Warm?"),
            _says("assistant", "", tool_calls=[_CALL]),
            _says("tool", '{"celsius": 31.5}', tool_call_id="call12345"),
        ],
        "tools": [_WEATHER],
    },
    "two calls": {
        "messages": [
            _says("user", "Warm?"),
            _says("assistant", "I look.", tool_calls=[_CALL, {**_CALL, "id": "call67890"}]),
            _says("tool", "31", tool_call_id="call12345"),
            _says("tool", "32", tool_call_id="call67890"),
            _says("assistant", "Yes."),
        ]
    },
    "unknown variable": {"messages": [_HELLO], "enable_thinking": False, "documents": [{"title": "t", "text": "x"}]},
}


def make() -> dict[str, dict[str, list[str | None]]]:
    """For each template and conversation the text without and with a generation prompt; None where it is refused."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        tokenizer = AutoTokenizer.from_pretrained(unpack(Path(directory))["llama"])

    def rendered(source: str, conversation: dict[str, Any], prompt: bool) -> str | None:
        try:
            text: str = tokenizer.apply_chat_template(
                conversation["messages"],
                tools=conversation.get("tools"),
                documents=conversation.get("documents"),
                chat_template=source,
                tokenize=False,
                add_generation_prompt=prompt,
                **{key: value for key, value in conversation.items() if key == "enable_thinking"},
            )
        except Exception:  # whatever a template raises
            return None
        return text

    return {
        style: {
            name: [rendered(source, conversation, prompt) for prompt in (False, True)]
            for name, conversation in CONVERSATIONS.items()
        }
        for style, source in SOURCES.items()
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), ensure_ascii=False, indent=1) + "\n", "utf-8")
