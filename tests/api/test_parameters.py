from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params as completion_types
from openai.types.chat import completion_create_params as chat_types
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam

from arriero.api.objects import Ignored, Refused
from arriero.api.parameters import ChatParameters, CompletionParameters, StreamOptions, table

REFUSED = [each for each in table() if isinstance(each.mark, Refused)]

EXAMPLES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "store": True,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "high",
    "web_search_options": {},
}


NO_EFFECT: dict[str, Any] = {
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "flex",
    "user": "u",
}


async def send(served: Any, endpoint: str, **body: Any) -> Any:
    given = {"messages": [{"role": "user", "content": "Hi"}]} if endpoint == "chat/completions" else {"prompt": "Hi"}
    return await served.post(f"/v1/{endpoint}", **(given | body))


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (ChatParameters, chat_types.CompletionCreateParamsNonStreaming),
        (CompletionParameters, completion_types.CompletionCreateParamsNonStreaming),
        (StreamOptions, ChatCompletionStreamOptionsParam),
    ],
)
def test_every_parameter_of_the_reference_is_known(ours: Any, reference: Any) -> None:
    assert get_type_hints(reference).keys() <= ours.model_fields.keys()


def test_the_table_tells_everything_once() -> None:
    rows = [(each.name, endpoint) for each in table() for endpoint in each.endpoints]
    assert len(rows) == len(set(rows)) == len(ChatParameters.model_fields) + len(CompletionParameters.model_fields)
    assert all(each.field.description for each in table())


CASES = [(each, endpoint) for each in REFUSED for endpoint in each.endpoints]


@pytest.mark.parametrize(("parameter", "endpoint"), CASES, ids=[f"{each.name}-{where}" for each, where in CASES])
async def test_what_is_not_implemented_is_refused_by_name(served: Any, parameter: Any, endpoint: str) -> None:
    name = parameter.name
    answer = await send(served, endpoint, **{name: EXAMPLES[name]})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == name
    assert error["code"] == "unsupported_parameter"
    assert error["type"] == "invalid_request_error"
    assert f"'{name}'" in error["message"]
    for neutral in (None, *parameter.mark.neutral):
        answer = await send(served, endpoint, **{name: neutral})
        assert answer.status_code == 200, answer.text
        assert "x-arriero-ignored" not in answer.headers


IGNORED = [(each, endpoint) for each in table() if isinstance(each.mark, Ignored) for endpoint in each.endpoints]


@pytest.mark.parametrize(("parameter", "endpoint"), IGNORED, ids=[f"{each.name}-{where}" for each, where in IGNORED])
async def test_what_has_no_effect_is_tolerated_and_named(served: Any, parameter: Any, endpoint: str) -> None:
    for stream in (False, True):
        answer = await send(served, endpoint, **{parameter.name: NO_EFFECT[parameter.name]}, stream=stream)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-arriero-ignored"] == parameter.name
    for neutral in (None, *parameter.mark.neutral):
        answer = await send(served, endpoint, **{parameter.name: neutral})
        assert answer.status_code == 200, answer.text
        assert "x-arriero-ignored" not in answer.headers


@pytest.mark.parametrize("name", ["length_penalty", "early_stopping"])
async def test_what_means_something_for_beams_only_is_named_without_them(served: Any, name: str) -> None:
    answer = await served.complete(**{name: {"length_penalty": 0.5, "early_stopping": True}[name]})
    assert answer.status_code == 200
    assert answer.headers["x-arriero-ignored"] == name


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
async def test_null_is_the_same_as_leaving_out(served: Any, endpoint: str) -> None:
    model = ChatParameters if endpoint == "chat/completions" else CompletionParameters
    nulls = {name: None for name, field in model.model_fields.items() if not field.is_required()}
    answer = await send(served, endpoint, **{**nulls, "prompt": "Hi"} if "prompt" in nulls else nulls)
    assert answer.status_code == 200
    choice = answer.json()["choices"][0]
    assert (choice.get("text") or choice["message"]["content"]) == "Hi"


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("deadline", -1, "decimal_below_min_value"),
        ("temperature", -0.1, "decimal_below_min_value"),
        ("temperature", 2.1, "decimal_above_max_value"),
        ("temperature", "warm", "invalid_type"),
        ("temperature", True, "invalid_type"),
        ("top_p", 1.1, "decimal_above_max_value"),
        ("min_p", -1, "decimal_below_min_value"),
        ("top_k", -2, "integer_below_min_value"),
        ("top_k", 2**31, "integer_above_max_value"),
        ("n", 0, "integer_below_min_value"),
        ("n", 129, "integer_above_max_value"),
        ("n", 1.5, "invalid_type"),
        ("n", "1", "invalid_type"),
        ("max_tokens", -1, "integer_below_min_value"),
        ("max_tokens", 10**30, "invalid_type"),
        ("seed", 2**63, "integer_above_max_value"),
        ("stream", "true", "invalid_type"),
        ("min_tokens", -1, "integer_below_min_value"),
        ("typical_p", 0, "decimal_below_min_value"),
        ("typical_p", 1.1, "decimal_above_max_value"),
        ("repetition_penalty", 0, "decimal_below_min_value"),
        ("repetition_penalty", 101, "decimal_above_max_value"),
        ("presence_penalty", -2.1, "decimal_below_min_value"),
        ("frequency_penalty", 2.1, "decimal_above_max_value"),
        ("frequency_penalty", -3, "decimal_below_min_value"),
        ("no_repeat_ngram_size", -1, "integer_below_min_value"),
        ("logit_bias", {"1": 101}, "invalid_value"),
        ("logit_bias", {"1": -100.5}, "invalid_value"),
        ("logit_bias", {"-1": 1}, "invalid_value"),
        ("logit_bias", {"a": 1}, "invalid_value"),
        ("logit_bias", {"258": 1}, "invalid_value"),
        ("logit_bias", [1], "invalid_type"),
        ("stop_token_ids", [258], "invalid_value"),
        ("stop_token_ids", [-1], "invalid_value"),
        ("stop_token_ids", 5, "invalid_type"),
        ("num_beams", 0, "integer_below_min_value"),
        ("num_beams", 129, "integer_above_max_value"),
        ("length_penalty", 11, "decimal_above_max_value"),
        ("early_stopping", "always", "invalid_value"),
        ("do_sample", "yes", "invalid_type"),
        ("skip_special_tokens", 0, "invalid_type"),
        ("include_stop_str_in_output", 0, "invalid_type"),
        ("prompt_logprobs", -1, "integer_below_min_value"),
        ("prompt_logprobs", 21, "integer_above_max_value"),
        ("stop", ["a", "b", "c", "d", "e"], "array_above_max_length"),
        ("stop", "", "empty_string"),
        ("stop", 5, "invalid_type"),
        ("ignore_eos", 1, "invalid_type"),
        ("user", 7, "invalid_type"),
        ("stream_options", {}, "invalid_value"),
        ("stream_options", 5, "invalid_type"),
        ("presence_penalty", 3, "decimal_above_max_value"),
        ("model", 5, "invalid_type"),
    ],
)
async def test_a_value_out_of_range_is_refused_by_name(
    served: Any, endpoint: str, name: str, value: Any, code: str
) -> None:
    answer = await send(served, endpoint, **{name: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", name, code)
    assert f"'{name}'" in error["message"]


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([], "messages", "empty_array"),
        ("Hi", "messages", "invalid_type"),
        (["Hi"], "messages.0", "invalid_type"),
        ([{"content": "Hi"}], "messages.0.role", "missing_required_parameter"),
        ([{"role": "user"}], "messages.0.content", "missing_required_parameter"),
        ([{"role": "user", "content": None}], "messages.0.content", "missing_required_parameter"),
        ([{"role": "user", "content": 5}], "messages.0.content", "invalid_type"),
        ([{"role": "function", "content": "Hi"}], "messages.0.role", "invalid_value"),
        ([{"role": "robot", "content": "Hi"}], "messages.0.role", "invalid_value"),
        ([{"role": "user", "content": ["Hi"]}], "messages.0.content.0", "invalid_type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text", "missing_required_parameter"),
        ([{"role": "user", "content": "Hi", "name": 5}], "messages.0.name", "invalid_type"),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{}]}],
            "messages.1.tool_calls",
            "unsupported_parameter",
        ),
        ([{"role": "user", "content": "Hi", "message": "Hi"}], "messages.0.message", "invalid_value"),
        ([{"role": "user", "message": 5}], "messages.0.message", "invalid_type"),
        ([{"role": "assistant", "content": "", "refusal": 5}], "messages.0.refusal", "invalid_type"),
    ],
)
async def test_what_is_no_conversation_is_refused_by_its_place(
    served: Any, messages: Any, param: str, code: str
) -> None:
    answer = await served.post("/v1/chat/completions", messages=messages)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "refusal"])
async def test_a_content_part_that_is_no_text_is_refused_by_name(served: Any, kind: str) -> None:
    answer = await served.chat([{"type": "text", "text": "Look:"}, {"type": kind, kind: {"url": "data:,"}}])
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "messages.0.content.1.type"
    assert repr(kind) in error["message"]


async def test_unknown_keys_are_tolerated_and_named(served: Any) -> None:
    messages = [{"role": "user", "content": "Hi", "mood": "good"}]
    unknown = {"guided_json": {}, "ünknown\r\nx: y": 1, "nothing": None}
    for stream in (False, True):
        options = {"stream_options": {"continuous": True}} if stream else {}
        answer = await served.post("/v1/chat/completions", messages=messages, stream=stream, **unknown, **options)
        assert answer.status_code == 200
        names = set(answer.headers["x-arriero-ignored"].split(","))
        expected = {"guided_json", "%C3%BCnknown%0D%0Ax%3A%20y", "messages.0.mood"}
        assert names == expected | ({"stream_options.continuous"} if stream else set())


async def test_a_thousand_unknown_keys_still_fit_the_header(served: Any) -> None:
    answer = await served.chat(**{f"key_{number}": 1 for number in range(1000)})
    assert answer.status_code == 200
    assert len(answer.headers["x-arriero-ignored"]) <= 1024


CHAT_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"service_tier": "first"}, "service_tier"),
    ({"prompt_cache_retention": "1h"}, "prompt_cache_retention"),
    ({"n": 3, "num_beams": 2}, "n"),
    ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
]
COMPLETION_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 0}, "best_of"),
    ({"best_of": 21}, "best_of"),
    ({"best_of": 2, "n": 3}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"best_of": 2, "num_beams": 2}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"suffix": "end"}, "suffix"),
    ({"suffix": "end", "echo": True}, "echo"),
    ({"n": 3, "num_beams": 2}, "n"),
    ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
]
FAULTS = [("chat/completions", *each) for each in CHAT_FAULTS] + [("completions", *each) for each in COMPLETION_FAULTS]


@pytest.mark.parametrize(("endpoint", "body", "param"), FAULTS, ids=[f"{where}-{body}" for where, body, _ in FAULTS])
async def test_a_fault_of_one_endpoint_is_refused_by_name(
    served: Any, endpoint: str, body: dict[str, Any], param: str
) -> None:
    answer = await send(served, endpoint, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert f"'{param}'" in error["message"]


LIMITS: list[tuple[str, dict[str, int], str, dict[str, Any], dict[str, Any]]] = [
    ("completions", {"completion_max_prompt": 2}, "prompt", {"prompt": "ab"}, {"prompt": "abc"}),
    ("completions", {"completion_max_tokens": 3}, "max_tokens", {"max_tokens": 3}, {"max_tokens": 4}),
    ("completions", {"completion_max_tokens": 3}, "min_tokens", {"min_tokens": 3}, {"min_tokens": 4}),
    ("completions", {"completion_max_n": 2}, "n", {"n": 2}, {"n": 3}),
    ("completions", {"completion_max_n": 2}, "best_of", {"best_of": 2}, {"best_of": 3}),
    ("completions", {"completion_max_n": 200}, "n", {"n": 64}, {"n": 201}),
    ("completions", {"completion_max_logprobs": 2}, "logprobs", {"logprobs": 2}, {"logprobs": 3}),
    ("completions", {"completion_max_logprobs": 2}, "prompt_logprobs", {"prompt_logprobs": 2}, {"prompt_logprobs": 3}),
    ("chat/completions", {"completion_max_prompt": 21}, "messages", {}, {}),
    ("chat/completions", {"completion_max_tokens": 3}, "max_tokens", {"max_tokens": 3}, {"max_tokens": 4}),
    (
        "chat/completions",
        {"completion_max_tokens": 3},
        "max_completion_tokens",
        {"max_completion_tokens": 3},
        {"max_completion_tokens": 4},
    ),
    ("chat/completions", {"completion_max_n": 2}, "n", {"n": 2}, {"n": 3}),
    (
        "chat/completions",
        {"completion_max_logprobs": 2},
        "top_logprobs",
        {"logprobs": True, "top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 3},
    ),
]


@pytest.mark.parametrize(("endpoint", "settings", "param", "allowed", "beyond"), LIMITS)
async def test_the_operators_limits(
    serve: Any, endpoint: str, settings: Any, param: str, allowed: Any, beyond: Any
) -> None:
    served = await serve(**settings)
    if param == "messages":
        beyond = {"messages": [{"role": "user", "content": "Hi!"}]}
    assert (await send(served, endpoint, **allowed)).status_code == 200
    for stream in (False,) if param in ("best_of", "prompt_logprobs") else (False, True):
        answer = await send(served, endpoint, **beyond, stream=stream)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param


async def test_a_limit_of_tokens_bounds_the_default_too(serve: Any) -> None:
    served = await serve(completion_max_tokens=3)
    for answer in (await served.chat("Hello"), await served.complete("Hello")):
        assert answer.json()["usage"]["completion_tokens"] == 3


async def test_options_of_a_stream_need_a_stream(served: Any) -> None:
    answer = await served.chat(stream_options={"include_usage": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stream_options"


async def test_obfuscation_is_refused_by_name(served: Any) -> None:
    answer = await served.chat(stream=True, stream_options={"include_obfuscation": True})
    assert answer.json()["error"]["param"] == "stream_options.include_obfuscation"
    assert (await served.chat(stream=True, stream_options={"include_obfuscation": False})).status_code == 200


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
async def test_a_model_must_be_named_and_known(served: Any, endpoint: str) -> None:
    missing = (await send(served, endpoint, model=None)).json()["error"]
    assert (missing["param"], missing["code"]) == ("model", "missing_required_parameter")
    for stream in (False, True):
        answer = await send(served, endpoint, model="gpt-9", stream=stream)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
        assert "gpt-9" in error["message"]


async def test_messages_must_be_there(served: Any) -> None:
    error = (await served.post("/v1/chat/completions")).json()["error"]
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")
