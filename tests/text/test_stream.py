from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.core import Event, Finished, GenerationRequest, Logprob, PromptScored, Token
from arriero.errors import EngineDied
from arriero.models.tokenizers.tokenizer import Tokenizer, load_tokenizer
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


@given(texts, stops, st.integers(0, 8), st.booleans())
def test_engine_and_stream_stop_at_the_same_token(tokenizer, answer, stop_strings, min_tokens, included):
    request = GenerationRequest(
        id="1", prompts=((1,),), max_tokens=99, min_tokens=min_tokens, stop_strings=tuple(stop_strings)
    )
    options = {"stop_strings": stop_strings, "min_tokens": min_tokens, "include_stop_string": included}
    constraint = stop_constraints(tokenizer)(request)
    tokens = tokens_of(tokenizer, answer)
    told = [constraint.accept(id) for id in tokens] if constraint else []
    taken = tokens[: told.index(True) + 1] if True in told else tokens
    whole = asyncio.run(collect([[Token(0, id)] for id in tokens] + [[Finished(0, "length", 1)]], tokenizer, **options))
    cut_short = asyncio.run(collect([[Token(0, id) for id in taken], [Finished(0, "length", 1)]], tokenizer, **options))
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


@given(texts, stops, st.booleans(), st.randoms(use_true_random=False))
def test_every_token_is_told_with_the_text_that_shows_it(tokenizer, answer, stop_strings, included, draw):
    """In order, once, never before its text, and none that belongs to a stop string alone."""
    ids = tokens_of(tokenizer, answer)
    events: list[Event] = [Token(0, id, Logprob(-float(place))) for place, id in enumerate(ids)]
    batches: list[list[Event]] = []
    while events:
        size = draw.randint(1, 3)
        batches.append(events[:size])
        events = events[size:]
    options = {"stop_strings": stop_strings, "include_stop_string": included}

    async def read():
        stream = stream_text(replay([*batches, [Finished(0, "length", len(ids))]]), tokenizer, **options)
        return [item async for items in stream for item in items if isinstance(item, Delta)]

    deltas = asyncio.run(read())
    told = [logprob.value for delta in deltas for _, logprob in delta.tokens]
    assert told == [-float(place) for place in range(len(told))]
    text, seen = "", b""
    for delta in deltas:
        text += delta.text
        seen += b"".join(tokenizer.token_bytes(id) for id, _ in delta.tokens)
        if delta is not deltas[-1]:
            assert text.encode().startswith(seen)
    shown = len(text.encode())
    starts = [sum(len(tokenizer.token_bytes(id)) for id in ids[:place]) for place in range(len(ids))]
    if len(text) < len(answer):
        assert len(told) >= sum(start < shown for start in starts) - 3  # the bytes of one character begin together
        assert all(start <= shown for start in starts[: len(told)])
    else:
        assert len(told) == len(ids)


async def test_a_held_token_travels_with_the_delta_that_shows_it(tokenizer):
    ids = tokens_of(tokenizer, "aST🤷")
    logprobs = [Logprob(-float(place)) for place in range(len(ids))]
    events = [[Token(0, id, logprob)] for id, logprob in zip(ids, logprobs, strict=True)]
    stream = stream_text(replay(events), tokenizer, stop_strings=["STOP"])
    items = [items async for items in stream]
    assert "".join(item.text for (item,) in items) == "aST🤷"
    assert [pair for (item,) in items for pair in item.tokens] == list(zip(ids, logprobs, strict=True))
    assert all(item.text and item.tokens for (item,) in items)


async def test_scored_prompts_come_before_all_else(tokenizer):
    scored = PromptScored(0, (None, Logprob(-1.0)))
    token = tokens_of(tokenizer, "a")[0]
    items = [items async for items in stream_text(replay([[Token(0, token), scored]]), tokenizer)]
    assert items == [[scored, Delta(0, "a")]]


async def test_a_kept_stop_string_is_the_end_of_the_text(tokenizer):
    batches = [[Token(0, id)] for id in tokens_of(tokenizer, "one STOP two")]
    got, endings = await collect(
        [*batches, [Finished(0, "length", 9)]], tokenizer, stop_strings=["STOP"], include_stop_string=True
    )
    assert got == {0: "one STOP"}
    assert endings[0].reason == "stop"


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


async def test_the_token_that_ends_a_choice_comes_with_its_end(tokenizer):
    """Where it is scored, and nothing else has ended the text before it."""
    score = Logprob(-0.5)
    batches = [[Token(0, id, score) for id in tokens_of(tokenizer, "abc")]]
    ended = [Finished(0, "stop", 9, ending=Token(0, 7, score))]
    _, endings = await collect([*batches, ended], tokenizer)
    assert endings[0] == Ended(0, "stop", 9, 0, ending=(7, score))
    _, endings = await collect([*batches, [Finished(0, "stop", 9, ending=Token(0, 7))]], tokenizer)
    assert endings[0].ending is None
    got, endings = await collect([*batches, ended], tokenizer, stop_strings=["bc", "abcd"])
    assert (got[0], endings[0].ending) == ("a", None)
