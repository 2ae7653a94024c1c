from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.core import Event, Finished, GenerationRequest, Token
from arriero.errors import EngineDied
from arriero.models.tokenizer import Tokenizer, load_tokenizer
from arriero.text.stop import stop_constraints
from arriero.text.stream import Delta, Ended, stream_text


@pytest.fixture(scope="session")
def tokenizer(vocabularies) -> Tokenizer:
    return load_tokenizer(vocabularies["smollm-like"])


async def replay(batches: list[list[Event]]) -> AsyncIterator[list[Event]]:
    for batch in batches:
        yield batch


async def collect(batches, tokenizer, **options) -> tuple[dict[int, str], dict[int, Ended]]:
    texts: dict[int, str] = {}
    endings: dict[int, Ended] = {}
    async for items in stream_text(replay(batches), tokenizer, **options):
        assert items
        for item in items:
            assert item.index not in endings
            if isinstance(item, Delta):
                assert item.text
                texts[item.index] = texts.get(item.index, "") + item.text
            else:
                endings[item.index] = item
    return texts, endings


def cut(text: str, stop_strings: list[str]) -> str:
    starts = [text.find(stop) for stop in stop_strings if stop in text]
    return text[: min(starts, default=len(text))]


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, parse_special=False)


texts = st.text(st.sampled_from("ab 🤷你é\u200d\u0301"), max_size=20)
stops = st.lists(st.text(st.sampled_from("ab 🤷你é"), min_size=1, max_size=3), max_size=3)


@given(st.lists(texts, min_size=1, max_size=3), stops, st.randoms(use_true_random=False))
def test_streams_together_are_the_decoded_texts_cut_at_stop_strings(tokenizer, answers, stop_strings, draw):
    events: list[list[Event]] = []
    for index, answer in enumerate(answers):
        tokens = tokens_of(tokenizer, answer)
        events.append([*(Token(index, id) for id in tokens), Finished(index, "length", len(tokens), cached_tokens=3)])
    batches: list[list[Event]] = []
    while any(events):
        choice = draw.choice([choice for choice in events if choice])
        taken = [choice.pop(0) for _ in range(draw.randint(1, len(choice)))]
        if batches and draw.random() < 0.3:
            batches[-1] += taken
        else:
            batches.append(taken)
    got, endings = asyncio.run(collect(batches, tokenizer, stop_strings=stop_strings))
    for index, answer in enumerate(answers):
        assert got.get(index, "") == cut(answer, stop_strings)
        reason = "stop" if any(stop in answer for stop in stop_strings) else "length"
        assert endings[index] == Ended(index, reason, len(tokens_of(tokenizer, answer)), 3)


@given(texts, stops)
def test_engine_and_stream_stop_at_the_same_token(tokenizer, answer, stop_strings):
    request = GenerationRequest(id="1", prompts=((1,),), max_tokens=99, stop_strings=tuple(stop_strings))
    constraint = stop_constraints(tokenizer)(request)
    tokens = tokens_of(tokenizer, answer)
    told = [constraint.accept(id) for id in tokens] if constraint else []
    taken = tokens[: told.index(True) + 1] if True in told else tokens
    whole = asyncio.run(
        collect([[Token(0, id)] for id in tokens] + [[Finished(0, "length", 1)]], tokenizer, stop_strings=stop_strings)
    )
    cut_short = asyncio.run(
        collect([[Token(0, id) for id in taken], [Finished(0, "length", 1)]], tokenizer, stop_strings=stop_strings)
    )
    assert whole == cut_short


async def test_nothing_of_a_stop_string_leaks(tokenizer):
    batches = [[Token(0, id)] for id in tokens_of(tokenizer, "one STOP two")]
    got, endings = await collect([*batches, [Finished(0, "length", 9)]], tokenizer, stop_strings=["STOP"])
    assert got == {0: "one "}
    assert endings[0] == Ended(0, "stop", 9, 0)


async def test_an_incomplete_character_is_replaced_when_the_choice_ends(tokenizer):
    first = tokens_of(tokenizer, "\U00040000")[0]
    got, _ = await collect([[Token(0, first), Finished(0, "length", 1)]], tokenizer)
    assert got == {0: "\ufffd"}


async def test_one_delta_a_choice_and_batch(tokenizer):
    tokens = tokens_of(tokenizer, "a b c d")
    batch: list[Event] = [Token(index, id) for id in tokens for index in (1, 0)]
    items = [item async for item in stream_text(replay([batch]), tokenizer)]
    assert items == [[Delta(1, "a b c d"), Delta(0, "a b c d")]]


async def test_special_tokens_are_no_text_unless_asked_for(tokenizer):
    batches: list[list[Event]] = [[Token(0, 3), *(Token(0, id) for id in tokens_of(tokenizer, "a"))]]
    assert (await collect(batches, tokenizer))[0] == {0: "a"}
    assert (await collect(batches, tokenizer, skip_special_tokens=False))[0] == {0: "<|im_start|>a"}


class Source:
    """Events that notice when they are closed."""

    def __init__(self, batches: list[list[Event]], error: Exception | None = None) -> None:
        self.closed = False
        self._events = self._run(batches, error)

    async def _run(self, batches, error):
        try:
            for batch in batches:
                yield batch
            if error:
                raise error
            await asyncio.sleep(3600)
        finally:
            self.closed = True

    def __aiter__(self):
        return self

    def __anext__(self):
        return self._events.__anext__()

    async def aclose(self) -> None:
        await self._events.aclose()


async def test_closing_the_stream_closes_the_events(tokenizer):
    source = Source([[Token(0, tokens_of(tokenizer, "a")[0])]])
    stream = stream_text(source, tokenizer)
    assert await anext(stream) == [Delta(0, "a")]
    await stream.aclose()
    assert source.closed


async def test_cancelling_the_reader_closes_the_events(tokenizer):
    source = Source([])

    async def read() -> None:
        async for _ in stream_text(source, tokenizer):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed


async def test_a_failing_engine_fails_the_stream(tokenizer):
    source = Source([], EngineDied("gone"))
    with pytest.raises(EngineDied):
        await anext(stream_text(source, tokenizer))
    assert source.closed


async def test_a_failure_of_its_own_closes_the_events(tokenizer):
    source = Source([[Token(0, "no id")]])
    with pytest.raises(TypeError):
        await anext(stream_text(source, tokenizer))
    assert source.closed
