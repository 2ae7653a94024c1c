import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from arriero.app import load
from arriero.app.script import byte_tokenizer, read_script
from arriero.config import Settings
from arriero.errors import ConfigError

Serve = Callable[..., Awaitable[Any]]


async def said(served: Any, *contents: str) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    answer = await served.post("/v1/chat/completions", messages=messages)
    return str(answer.json()["choices"][0]["message"]["content"])


async def test_without_a_script_the_last_user_message_comes_back(serve: Serve) -> None:
    served = await serve()
    assert await said(served, "First", "Answer", "Second") == "Second"
    assert (await served.complete("A prompt")).json()["choices"][0]["text"] == "A prompt"


async def test_the_first_rule_that_matches_the_last_user_message_replies(serve: Serve) -> None:
    rules = [
        {"match": "a+b", "reply": "contained"},
        {"pattern": "^[0-9]+$", "reply": "found"},
        {"match": "a", "reply": "second"},
    ]
    served = await serve(script=rules)
    assert await said(served, "what is a+b?") == "contained"
    assert await said(served, "aab") == "second"
    assert await said(served, "123") == "found"
    assert await said(served, "a1", "123", "b") == "b"
    assert (await served.complete("12")).json()["choices"][0]["text"] == "found"


async def test_a_rule_without_a_condition_always_matches(serve: Serve) -> None:
    assert await said(await serve(script=[{"reply": "é🦙"}]), "anything") == "é🦙"


@pytest.mark.parametrize("text", ["", "Hé 🦙\r\n\t\0", "\u200b\ufeff", "<|im_start|>"])
def test_every_byte_is_a_token(text: str) -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode(text, parse_special=False)
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text


def test_a_script_is_an_array_or_one_object_a_line(tmp_path: Path) -> None:
    entries = [{"match": "a", "reply": "1"}, {"reply": "2"}]
    array, lines = tmp_path / "array.json", tmp_path / "lines.jsonl"
    array.write_text(json.dumps(entries, indent=2))
    lines.write_text("\n\n".join(map(json.dumps, entries)) + "\n")
    assert read_script(array) == read_script(lines)
    assert [rule.reply for rule in read_script(array)] == ["1", "2"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("[", "not JSON"),
        ('{"reply": "1"}\nnothing', "not JSON"),
        ('["a"]', "entry 1"),
        ('{"reply": "1"}\n{"match": "a"}', "entry 2"),
        ('{"reply": 1}', "entry 1"),
        ('{"reply": "1", "mach": "a"}', "entry 1"),
        ('{"reply": "1", "match": "a", "pattern": "a"}', "entry 1"),
        ('{"reply": "1", "pattern": "("}', "no regular expression"),
        ("\udcff", "cannot read"),
    ],
)
def test_a_script_that_makes_no_sense_is_refused(tmp_path: Path, source: str, complaint: str) -> None:
    file = tmp_path / "script.json"
    file.write_text(source, "utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=complaint) as error:
        read_script(file)
    assert str(file) in str(error.value)


def test_a_script_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_script(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"a": "b"}}, "--lora is a"),
        ({"lora_model": "b", "model": "c"}, "MODEL is c"),
        ({"base_model": "c"}, "MODEL is c"),
        ({"tokenizer_path": "b"}, "--tokenizer-path is b"),
        ({"trust_remote_code": True}, "--trust-remote-code is on"),
        ({"weights": "int8"}, "--weights is int8"),
        ({"load_in_8bit": True}, "--weights is int8"),
        ({"gpus": "0"}, "--gpus is 0"),
    ],
)
def test_what_only_a_model_can_honour_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(Settings(engine="scripted", **settings))


@pytest.mark.parametrize("settings", [{"script": "replies.json"}, {"pace": 2.0}])
def test_what_only_the_scripted_engine_can_honour_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(settings))} is for --engine scripted"):
        load(Settings(**settings))
