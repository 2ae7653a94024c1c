import json

import pytest

from arriero.cli.chat.conversation import Conversation
from arriero.errors import ConfigError


def texts(talk):
    return [f"{each['role']}: {each['content']}" for each in talk.messages]


@pytest.fixture
def talk():
    """One question that was answered."""
    talk = Conversation("m")
    talk.ask("one")
    talk.answer("1")
    return talk


def test_a_question_that_was_not_answered_gives_way_to_the_next(talk):
    talk.ask("two")
    talk.ask("three")
    assert texts(talk) == ["user: one", "assistant: 1", "user: three"]


def test_the_last_question_is_asked_again_or_forgotten(talk):
    assert talk.reopen()
    assert texts(talk) == ["user: one"]
    assert talk.undo()
    assert not talk.undo()
    assert not talk.reopen()
    assert texts(talk) == []


def test_the_system_prompt_stays_first_and_alone(talk):
    talk.system = "Be brief."
    talk.system = "Be long."
    assert texts(talk) == ["system: Be long.", "user: one", "assistant: 1"]
    talk.clear()
    assert texts(talk) == ["system: Be long."]
    assert not talk.undo()
    talk.system = None
    assert (talk.messages, talk.system) == ([], None)


def test_what_was_saved_is_a_request_and_can_be_loaded(talk, tmp_path):
    file = tmp_path / "talk.json"
    talk.parameters["temperature"] = 0.5
    talk.ask("größer")
    talk.save(file)
    assert json.loads(file.read_text("utf-8")) == talk.body()
    assert file.stat().st_mode & 0o777 == 0o600
    other = Conversation("other", {"seed": 1})
    other.load(file)
    assert (other.model, other.parameters, other.messages) == ("other", {"temperature": 0.5}, talk.messages)


def test_a_list_of_messages_can_be_loaded(talk, tmp_path):
    file = tmp_path / "messages.json"
    file.write_text('[{"role": "user", "content": [{"type": "text", "text": "one"}]}]')
    talk.load(file)
    assert talk.has_question


@pytest.mark.parametrize("content", ["{", "{}", "3", '["text"]', '{"messages": [{"content": "no role"}]}', b"\xff"])
def test_what_is_no_conversation_changes_nothing(talk, tmp_path, content):
    file = tmp_path / "talk.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = texts(talk)
    with pytest.raises(ConfigError, match=str(file)):
        talk.load(file)
    assert texts(talk) == before


def test_a_place_that_cannot_be_written_is_one_sentence(talk, tmp_path):
    with pytest.raises(ConfigError, match="cannot write"):
        talk.save(tmp_path / "no" / "such.json")
    with pytest.raises(ConfigError, match="cannot read"):
        talk.load(tmp_path / "no" / "such.json")
