"""Each parameter where it changes the answer, at its bounds, past them, streamed, and in a crowd of all the others.

On a small random model, because here probabilities matter.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from api.tiny import END, START, letter, tiny_model
from arriero.api import schemas
from arriero.api.application import application
from arriero.api.generation import Delivery
from arriero.api.limits import Limits
from arriero.api.parameters import table
from arriero.pool import Pool, ServedModel
from arriero.text.infill import STYLES

PROMPT = "".join(map(letter, (3, 77, 150, 9)))
SLOTS = 8
GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 1, "seed": 7}
HALF = list(range(128))
BEAMS = GREEDY | {"num_beams": 4, "stop_token_ids": HALF, "length_penalty": 5}
ONE_LETTER = GREEDY | {"logit_bias": {"5": 100}}


@dataclass(frozen=True)
class Case:
    """`base | change` is answered otherwise than `base`; both are allowed with any of `bounds`, none of `beyond`."""

    name: str
    base: dict[str, Any]
    change: Any
    bounds: tuple[Any, ...] = ()
    beyond: tuple[Any, ...] = ()
    streamed: bool = True
    others: dict[str, Any] = field(default_factory=dict)
    """What the bounds need."""


BOTH = [
    Case("temperature", SAMPLED, 0, (0, 2), (-0.01, 2.01)),
    Case("top_p", SAMPLED, 0.1, (0, 1), (-0.01, 1.01)),
    Case("top_k", SAMPLED, 1, (-1, 0, 2**31 - 1), (-2, 2**31)),
    Case("min_p", SAMPLED, 1.0, (0, 1), (-0.01, 1.01)),
    Case("typical_p", SAMPLED, 0.05, (1e-9, 1), (0, 1.01)),
    Case("do_sample", SAMPLED, False, (True,), ("no",)),
    Case("seed", SAMPLED, 8, (-(2**63), 2**63 - 1), (-(2**63) - 1, 2**63)),
    Case("n", SAMPLED, 3, (1, SLOTS), (0, SLOTS + 1)),
    Case("num_beams", GREEDY, 4, (1, SLOTS), (0, SLOTS + 1)),
    Case("length_penalty", BEAMS, 0, (-10, 10), (-10.1, 10.1), others=BEAMS),
    Case("early_stopping", BEAMS, True, (False, "never"), ("always", 1), others=BEAMS),
    Case("repetition_penalty", GREEDY, 5, (0.01, 100), (0, 100.1)),
    Case("presence_penalty", ONE_LETTER | {"logit_bias": {"5": 6}}, 2, (-2, 2), (-2.1, 2.1)),
    Case("frequency_penalty", ONE_LETTER | {"logit_bias": {"5": 8}}, 2, (-2, 2), (-2.1, 2.1)),
    Case("no_repeat_ngram_size", ONE_LETTER, 1, (0, 2**31 - 1), (-1, 2**31)),
    Case("logit_bias", GREEDY, {"5": 100}, ({}, {"0": -100}, {"257": 100}), ({"5": 100.1}, {"258": 0}, {"x": 0})),
    Case("max_tokens", GREEDY, 3, (1, 200), (-1,)),
    Case("min_tokens", GREEDY | {"stop_token_ids": HALF}, 5, (0, 16), (-1, 17)),
    Case("stop", GREEDY, letter(58), ([], ["a", "b", "c", "d"]), ("", ["a"] * 5)),
    Case("stop_token_ids", GREEDY, [58], ([], [0, 257]), ([-1], [258])),
    Case("ignore_eos", GREEDY | {"logit_bias": {str(END): 100}}, True, (False,), (1,)),
    Case("skip_special_tokens", GREEDY | {"logit_bias": {str(START): 100}}, False, (True,), (0,)),
    Case("include_stop_str_in_output", GREEDY | {"stop": letter(58)}, True, (False,), (0,)),
    Case("prompt_logprobs", GREEDY, 2, (0, 20), (-1, 21), streamed=False),
]
CHAT = [
    Case("max_completion_tokens", GREEDY | {"max_tokens": None}, 3, (1, 200), (0,), others={"max_tokens": None}),
    Case("logprobs", GREEDY, True, (False,), (1,)),
    Case("top_logprobs", GREEDY | {"logprobs": True}, 2, (0, 20), (-1, 21), others={"logprobs": True}),
    Case("add_generation_prompt", GREEDY, False, (True,), (0,)),
    Case("continue_final_message", GREEDY, True, (False,), (0,)),
    Case("chat_template_kwargs", GREEDY, {"tone": letter(8)}, ({},), ([],)),
    Case("messages", GREEDY, [{"role": "user", "message": letter(8)}], (), ([], "a")),
]
COMPLETIONS = [
    Case("prompt", GREEDY, letter(8), ("", [0], [0, 257], [[0], [1]]), ([258], [-1], [], 5)),
    Case("best_of", SAMPLED | {"seed": 3}, 8, (1, SLOTS), (0, SLOTS + 1), streamed=False),
    Case("echo", GREEDY, True, (False,), (1,)),
    Case("logprobs", GREEDY, 2, (0, 20), (-1, 21)),
]
CASES = (
    [(endpoint, case) for case in BOTH for endpoint in ("chat/completions", "completions")]
    + [("chat/completions", case) for case in CHAT]
    + [("completions", case) for case in COMPLETIONS]
)
NAMES = [f"{case.name}-{endpoint}" for endpoint, case in CASES]
ELSEWHERE = {"model", "stream", "stream_options", "suffix", "priority", "deadline"}


def body_of(endpoint: str, **given: Any) -> dict[str, Any]:
    said = {"messages": [{"role": "user", "content": PROMPT}]} if endpoint == "chat/completions" else {"prompt": PROMPT}
    return {"model": "tiny", "max_tokens": 16, **said, **given}


@dataclass
class Tiny:
    client: httpx.AsyncClient

    async def answer(self, endpoint: str, **given: Any) -> Any:
        """What is said and why it ended, by choice; a stream folded."""
        answer = await self.client.post(f"/v1/{endpoint}", json=body_of(endpoint, **given))
        assert answer.status_code == 200, answer.text
        if given.get("stream"):
            return folded(answer)
        body = answer.json()
        return [plain(each, body.get("prompt_logprobs")) for each in body["choices"]]

    async def refusal(self, endpoint: str, **given: Any) -> str:
        answer = await self.client.post(f"/v1/{endpoint}", json=body_of(endpoint, **given))
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        return str(error["param"])


def plain(choice: dict[str, Any], scores: Any = None) -> tuple[Any, ...]:
    """Text, tokens and reason of a choice, and its prompt's scores where there are any."""
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    scores = choice.get("prompt_logprobs", scores)
    return text, choice["logprobs"], choice["finish_reason"], *([scores] if scores else [])


def folded(answer: httpx.Response) -> list[tuple[str, Any, str]]:
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chosen: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            chosen.setdefault(choice["index"], []).append(choice)
    return [fold(chosen[index]) for index in sorted(chosen)]


def fold(pieces: list[dict[str, Any]]) -> tuple[str, Any, str]:
    text = "".join(each["text"] if "text" in each else each["delta"].get("content") or "" for each in pieces)
    parts = [each["logprobs"] for each in pieces if each["logprobs"]]
    logprobs = {
        name: None if values is None else [each for part in parts for each in part[name]]
        for name, values in (parts[0] if parts else {}).items()
    }
    return text, logprobs or None, pieces[-1]["finish_reason"]


def rounded(value: Any) -> Any:
    """fp32 sums may differ in their last bits when rows are computed together."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@asynccontextmanager
async def serving(model: ServedModel) -> AsyncIterator[Tiny]:
    await model.engine.start()
    app = application(Pool([model]), delivery=Delivery(limits=Limits(max_n=SLOTS)))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://arriero", timeout=60) as client:
        yield Tiny(client)
    await model.engine.close()


@pytest.fixture
async def tiny(conversions: Path) -> AsyncIterator[Tiny]:
    async with serving(tiny_model(conversions, SLOTS)) as tiny:
        yield tiny


def test_no_parameter_is_left_out() -> None:
    honoured = {(row.name, endpoint) for row in table() if row.mark is None for endpoint in row.endpoints}
    assert {each for each in honoured if each[0] not in ELSEWHERE} == {(case.name, where) for where, case in CASES}


@pytest.mark.parametrize(("endpoint", "case"), CASES, ids=NAMES)
async def test_a_parameter_changes_the_answer(tiny: Tiny, endpoint: str, case: Case) -> None:
    base = await tiny.answer(endpoint, **case.base)
    changed = await tiny.answer(endpoint, **case.base | {case.name: case.change})
    assert changed != base
    if case.streamed:
        assert rounded(await tiny.answer(endpoint, **case.base, stream=True)) == rounded(base)
        streamed = await tiny.answer(endpoint, **case.base | {case.name: case.change}, stream=True)
        assert rounded(streamed) == rounded(changed)


@pytest.mark.parametrize(("endpoint", "case"), CASES, ids=NAMES)
async def test_a_parameter_at_and_past_its_bounds(tiny: Tiny, endpoint: str, case: Case) -> None:
    for stream in (False, True) if case.streamed else (False,):
        for value in case.bounds:
            await tiny.answer(endpoint, **case.others | {case.name: value}, stream=stream)
        for value in case.beyond:
            refused = await tiny.refusal(endpoint, **case.others | {case.name: value}, stream=stream)
            assert refused == case.name


async def test_each_answer_in_a_crowd_is_the_one_alone(tiny: Tiny) -> None:
    requests = [(endpoint, case.base | {case.name: case.change}) for endpoint, case in CASES]
    alone = [await tiny.answer(endpoint, **given) for endpoint, given in requests]
    crowd = await asyncio.gather(*(tiny.answer(endpoint, **given) for endpoint, given in requests))
    for request, one, among in zip(requests, alone, crowd, strict=True):
        assert rounded(one) == rounded(among), request


async def test_a_seed_gives_the_same_answer_after_a_restart(conversions: Path) -> None:
    texts = set()
    for _ in range(2):
        async with serving(tiny_model(conversions, SLOTS)) as tiny:
            texts.add((await tiny.answer("completions", temperature=2, seed=5))[0][0])
    assert len(texts) == 1


async def test_a_suffix_changes_the_answer_of_a_model_that_fills_in(conversions: Path) -> None:
    async with serving(tiny_model(conversions, SLOTS, marks=STYLES[1])) as tiny:
        without = await tiny.answer("completions", **GREEDY)
        within = [await tiny.answer("completions", **GREEDY, suffix=letter(each), stream=True) for each in (8, 9)]
        assert within[0] != within[1] != without != within[0]
        assert within[0] == await tiny.answer("completions", **GREEDY, suffix=letter(8))
        usage = (await post(tiny, "completions", suffix=letter(8)))["usage"]
        assert usage["prompt_tokens"] == len(PROMPT) + 4
        model = (await tiny.client.get("/v1/models/tiny")).json()
    assert "infill" in model["capabilities"]
    assert "suffix" in model["supported_parameters"]["completions"]


async def post(tiny: Tiny, endpoint: str, **given: Any) -> Any:
    answer = await tiny.client.post(f"/v1/{endpoint}", json=body_of(endpoint, **given))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_log_probabilities_of_a_text(tiny: Tiny) -> None:
    choice = (await post(tiny, "completions", **GREEDY, echo=True, logprobs=3, max_tokens=4))["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert choice["text"].startswith(PROMPT)
    assert logprobs["text_offset"] == list(range(8))
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    for token, value, top in list(
        zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == value <= 0
        assert len(top) in (3, 4)
        assert sum(np.exp(each) for each in top.values()) <= 1
    said = list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))[4:]
    assert all(max(top, key=top.get) == token for token, top in said)


async def test_offsets_count_the_prompt_even_where_it_is_not_echoed(tiny: Tiny) -> None:
    logprobs = (await post(tiny, "completions", **GREEDY, logprobs=0, max_tokens=3))["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [4, 5, 6]
    assert all(len(top) == 1 for top in logprobs["top_logprobs"])


async def test_a_prompt_alone_can_be_scored(tiny: Tiny) -> None:
    """The sum over a text's tokens is the same whether they were given or generated."""
    given = (await post(tiny, "completions", **GREEDY, echo=True, logprobs=1, max_tokens=0))["choices"][0]
    assert (given["text"], given["finish_reason"]) == (PROMPT, "length")
    assert len(given["logprobs"]["tokens"]) == 4
    said = (await post(tiny, "completions", **GREEDY, logprobs=1, max_tokens=5))["choices"][0]
    whole = await post(tiny, "completions", prompt=PROMPT + said["text"], echo=True, logprobs=1, max_tokens=0)
    scores = whole["choices"][0]["logprobs"]["token_logprobs"]
    assert scores[1:4] == pytest.approx(given["logprobs"]["token_logprobs"][1:], abs=1e-3)
    assert scores[4:] == pytest.approx(said["logprobs"]["token_logprobs"], abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
async def test_one_scored_token_is_there_even_if_it_ends_the_answer(tiny: Tiny, stream: bool) -> None:
    """lm-evaluation-harness asks for one token, and leaves the last entry out of its sums."""
    given = GREEDY | {"logit_bias": {str(END): 100}, "echo": True, "logprobs": 1, "max_tokens": 1, "stream": stream}
    [(text, logprobs, reason)] = await tiny.answer("completions", **given)
    assert (text, reason) == (PROMPT, "stop")
    assert len(logprobs["token_logprobs"]) == 5
    assert logprobs["tokens"][-1] == "<|im_end|>"
    assert logprobs["text_offset"][-1] == len(PROMPT)
    assert logprobs["top_logprobs"][-1]["<|im_end|>"] == logprobs["token_logprobs"][-1] <= 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{}, {"num_beams": 4, "early_stopping": True}, {"stop_token_ids": [END, 58]}])
async def test_what_ends_a_text_is_its_last_log_probability(tiny: Tiny, more: dict[str, Any], stream: bool) -> None:
    """As in the reference, and not in a chat: there it is no part of the message."""
    given = GREEDY | {"logit_bias": {"58": 80, str(END): 81}, "frequency_penalty": 2, "logprobs": 1} | more
    given |= {"min_tokens": 3, "stream": stream}
    [(text, logprobs, reason)] = await tiny.answer("completions", **given)
    assert reason == "stop"
    assert "".join(logprobs["tokens"]) == text + "<|im_end|>"
    assert logprobs["text_offset"] == [len(PROMPT) + place for place in range(len(text) + 1)]
    [(message, content, reason)] = await tiny.answer(
        "chat/completions", **given | {"logprobs": True, "top_logprobs": 1}
    )
    assert reason == "stop"
    assert "".join(each["token"] for each in content["content"]) == message


async def test_several_prompts_have_their_own_echoes(tiny: Tiny) -> None:
    for stream in (False, True):
        given = SAMPLED | {"prompt": [PROMPT, letter(8)], "n": 2, "echo": True, "logprobs": 1, "stream": stream}
        answers = await tiny.answer("completions", **given)
        assert [answer[0][0] for answer in answers] == [PROMPT[0], PROMPT[0], letter(8), letter(8)]
        for text, logprobs, _ in answers:
            assert "".join(logprobs["tokens"]).replace("<|im_start|>", "").removesuffix("<|im_end|>") == text


async def test_log_probabilities_of_a_prompt(tiny: Tiny) -> None:
    scores = (await post(tiny, "completions", **GREEDY, prompt_logprobs=2))["choices"][0]["prompt_logprobs"]
    assert scores[0] is None
    for token, score in zip((77, 150, 9), scores[1:], strict=True):
        assert str(token) in score
        assert score[str(token)]["decoded_token"] == letter(token)
        assert {1, 2} <= {each["rank"] for each in score.values()}
    body = await post(tiny, "chat/completions", **GREEDY, prompt_logprobs=0)
    assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]
    assert all(len(each) == 1 for each in body["prompt_logprobs"][1:])


async def test_log_probabilities_of_a_message(tiny: Tiny) -> None:
    choice = (await post(tiny, "chat/completions", **GREEDY, logprobs=True, top_logprobs=2))["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == choice["message"]["content"]
    for each in content:
        assert bytes(each["bytes"]).decode() == each["token"]
        assert each["top_logprobs"][0]["logprob"] == each["logprob"]
        assert len(each["top_logprobs"]) == 2


async def test_the_best_are_those_of_the_highest_mean_log_probability(tiny: Tiny) -> None:
    given = SAMPLED | {"logprobs": 0, "logit_bias": {str(END): 2.5}}
    everyone = (await post(tiny, "completions", **given, n=8))["choices"]
    assert {each["finish_reason"] for each in everyone} == {"stop", "length"}
    ranked = sorted(everyone, key=lambda each: -np.mean(each["logprobs"]["token_logprobs"]))
    chosen = (await post(tiny, "completions", **given, n=2, best_of=8))["choices"]
    assert [each["text"] for each in chosen] == [each["text"] for each in ranked[:2]]
    assert [each["index"] for each in chosen] == [0, 1]
    unasked = await post(tiny, "completions", **SAMPLED, n=2, best_of=8)
    assert all(each["logprobs"] is None for each in unasked["choices"])
    assert unasked["usage"]["completion_tokens"] > 2 * 16


@st.composite
def bodies(draw: st.DrawFn, endpoint: str) -> dict[str, Any]:
    """Any parameters together, each at a bound, at its example, or sometimes past a bound."""
    body: dict[str, Any] = {}
    for case in draw(st.lists(st.sampled_from([case for where, case in CASES if where == endpoint]), max_size=6)):
        values = [case.change, *case.bounds, *(case.beyond if draw(st.integers(0, 9)) == 0 else ())]
        body[case.name] = draw(st.sampled_from(values))
    return body | {"stream": draw(st.booleans())}


async def check(tiny: Tiny, endpoint: str, several: list[dict[str, Any]]) -> None:
    sent = [tiny.client.post(f"/v1/{endpoint}", json=body_of(endpoint, **body)) for body in several]
    answers = await asyncio.gather(*sent)
    for body, answer in zip(several, answers, strict=True):
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            named = answer.json()["error"]["param"]
            assert named.partition(".")[0] in {*body, "prompt", "messages", "max_tokens", "n"}
        else:
            choices = folded(answer) if body["stream"] else answer.json()["choices"]
            assert len(choices) == body.get("n", 1) * (2 if body.get("prompt") == [[0], [1]] else 1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(several=st.lists(bodies("chat/completions"), min_size=1, max_size=4))
async def test_any_combination_is_a_chat_or_refused_by_name(tiny: Tiny, several: list[dict[str, Any]]) -> None:
    await check(tiny, "chat/completions", several)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(several=st.lists(bodies("completions"), min_size=1, max_size=4))
async def test_any_combination_is_a_completion_or_refused_by_name(tiny: Tiny, several: list[dict[str, Any]]) -> None:
    await check(tiny, "completions", several)


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_fit_the_types_of_openai_and_our_own_description(tiny: Tiny, stream: bool) -> None:
    chat = body_of("chat/completions", **GREEDY, logprobs=True, top_logprobs=2, n=2, stream=stream)
    answer = await tiny.client.post("/v1/chat/completions", json=chat)
    for body in bodies_of(answer):
        (ChatCompletionChunk if stream else ChatCompletion).model_validate(body, strict=True)
        (schemas.ChatCompletionChunk if stream else schemas.ChatCompletion).model_validate(body)
    text = body_of("completions", **GREEDY, logprobs=2, echo=True, n=2, stream=stream)
    for body in bodies_of(await tiny.client.post("/v1/completions", json=text)):
        schemas.Completion.model_validate(body)
        for choice in body["choices"]:  # openai's type knows neither a stream's nor a first token's null
            choice["finish_reason"] = choice["finish_reason"] or "stop"
            for name in ("token_logprobs", "top_logprobs"):
                if choice["logprobs"] and choice["logprobs"][name][0] is None:
                    del choice["logprobs"][name][0]
        Completion.model_validate(body, strict=True)


def bodies_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "application/json":
        return [answer.json()]
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n")[:-2]]
