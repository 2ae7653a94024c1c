import asyncio
import json

import pytest

from arriero.bench import report
from arriero.bench.load import Load, measure, run
from arriero.errors import ConfigError


async def test_a_stream_is_measured(server):
    server.pause = 0.01
    result = await measure(Load(url=server.url, requests=2))
    assert result.load.model == "small"
    assert result.errors == {}
    assert result.output_tokens == 6
    for each in result.measurements:
        assert (each.prompt_tokens, each.output_tokens, each.finish_reason) == (12, 3, "stop")
        assert len(each.gaps) == 2
        assert 0 < each.first_token < each.latency
        assert each.from_usage
        assert each.time_per_token == pytest.approx((each.latency - each.first_token) / 2)


async def test_a_caller_without_a_loop_is_served(server):
    answers = []
    load = Load(url=server.url, clients=2, requests=4)
    result = await asyncio.to_thread(run, load, answers.append)
    assert result.errors == {}
    assert answers == list(result.measurements)
    assert result.output_tokens == 12


async def test_the_first_token_is_the_first_text_not_the_role(server):
    server.pause = 0.05
    result = await measure(Load(url=server.url, requests=1))
    assert result.measurements[0].first_token >= 0.1  # After two pauses: the role's piece is no token.


async def test_a_whole_answer_is_measured(server):
    server.body = {"choices": [{"finish_reason": "length"}], "usage": {"prompt_tokens": 12, "completion_tokens": 3}}
    result = await measure(Load(url=f"{server.url}/v1/", model="any", requests=3, stream=False, endpoint="completions"))
    assert result.output_tokens == 9
    assert all(each.first_token is None and each.finish_reason == "length" for each in result.measurements)
    assert "stream" not in server.requests[0]
    assert server.requests[0]["model"] == "any"
    assert len(server.requests[0]["prompt"].split()) == 100
    assert server.heads[0].startswith("POST /v1/completions ")


async def test_requests_carry_what_was_asked_for(server):
    extra = {"ignore_eos": True, "temperature": 0.5}
    await measure(Load(url=server.url, requests=1, prompt_tokens=7, max_tokens=9, extra_body=extra, api_key="secret"))
    body = server.requests[0]
    assert len(body["messages"][0]["content"].split()) == 7
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (9, True, 0.5)
    assert body["stream_options"] == {"include_usage": True}
    assert "authorization: Bearer secret\r\n" in server.heads[-1]


async def test_prompts_differ_by_request_and_seed_and_repeat_with_both(server):
    for seed in (1, 2, 1):
        await measure(Load(url=server.url, requests=5, seed=seed))
    prompts = [body["messages"][0]["content"] for body in server.requests]
    assert len(set(prompts)) == 10
    assert prompts[:5] == prompts[10:]


async def test_a_system_prompt_is_shared(server):
    await measure(Load(url=server.url, requests=2, system="Be brief.", prompt_tokens=7))
    systems, users = zip(*(body["messages"] for body in server.requests), strict=True)
    assert list(systems) == [{"role": "system", "content": "Be brief."}] * 2
    assert len({each["content"] for each in users}) == 2


async def test_completions_have_no_system_prompt(server):
    with pytest.raises(ConfigError, match="a system prompt is for chats"):
        await measure(Load(url=server.url, requests=1, system="Be brief.", endpoint="completions"))


async def test_the_answer_is_kept(server):
    streamed = await measure(Load(url=server.url, requests=1))
    assert streamed.measurements[0].text == "one two three"
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    for choice in ({"message": {"content": "said"}}, {"text": "said"}):
        server.body = {"choices": [choice], "usage": usage}
        whole = await measure(Load(url=server.url, requests=1, stream=False))
        assert whole.measurements[0].text == "said"


async def test_clients_send_at_the_same_time_and_keep_their_connections(server):
    server.pause = 0.005
    result = await measure(Load(url=server.url, model="any", clients=4, requests=12))
    assert len(result.answered) == 12
    assert server.connections == 4


async def test_a_new_connection_for_each_request(server):
    await measure(Load(url=server.url, model="any", requests=3, new_connection=True))
    assert server.connections == 3
    assert "connection: close\r\n" in server.heads[0]


async def test_an_open_loop_does_not_wait_for_answers(server):
    server.pause = 0.1
    result = await measure(Load(url=server.url, rate=200, requests=10))
    assert len(result.answered) == 10
    assert server.connections > 2  # One would do, if each waited for the one before.


async def test_time_ends_a_run_and_running_requests_finish(server):
    server.pause = 0.01
    result = await measure(Load(url=server.url, clients=2, duration=0.2))
    assert len(result.answered) >= 2
    assert result.errors == {}


async def test_a_load_without_end_is_refused(server):
    with pytest.raises(ConfigError, match="a number of requests or a duration"):
        await measure(Load(url=server.url))


async def test_an_http_error_is_told_with_its_code(server):
    server.status, server.body = "503 Busy", {"error": {"message": "full", "type": "server_error", "code": "busy"}}
    result = await measure(Load(url=server.url, requests=2))
    assert result.errors == {"HTTP 503 busy": 2}
    assert result.output_tokens == 0


async def test_an_error_without_an_openai_body_is_told(server):
    server.status, server.body = "500 Oops", "sorry"
    assert (await measure(Load(url=server.url, requests=1))).errors == {"HTTP 500": 1}


async def test_an_error_event_fails_the_request(server):
    server.pieces = [*server.pieces[:3], b'data: {"error": {"message": "died"}}\n\n']
    assert (await measure(Load(url=server.url, requests=1))).errors == {"error in the stream": 1}


async def test_a_stream_without_its_end_fails_the_request(server):
    server.pieces = server.pieces[:3]
    assert (await measure(Load(url=server.url, requests=1))).errors == {"stream cut short": 1}


async def test_a_lost_connection_fails_the_request(server):
    server.pieces, server.cut = server.pieces[:3], True
    assert (await measure(Load(url=server.url, model="any", requests=2))).errors == {"connection lost": 2}


async def test_a_malformed_answer_fails_the_request(server):
    server.body = {"choices": []}
    assert (await measure(Load(url=server.url, requests=1, stream=False))).errors == {"answer malformed": 1}


async def test_a_slow_answer_fails_the_request(server):
    server.pause = 5
    assert (await measure(Load(url=server.url, requests=1, timeout=0.05))).errors == {"timeout": 1}


async def test_nobody_listening_fails_every_request():
    result = await measure(Load(url="127.0.0.1:1", model="any", requests=2))
    assert [each.error for each in result.measurements] == ["connection refused"] * 2


async def test_without_usage_pieces_of_text_are_counted(server):
    del server.pieces[-2]
    result = await measure(Load(url=server.url, requests=1))
    assert (result.output_tokens, result.measurements[0].from_usage) == (3, False)
    assert report.data(result)["output_tokens_from_usage"] is False


@pytest.mark.parametrize("url", ["ftp://host", "http://", "mailto:me"])
async def test_another_address_is_refused(url):
    with pytest.raises(ConfigError, match=r"is no http:// or https:// address"):
        await measure(Load(url=url, requests=1))


async def test_the_model_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="cannot be reached: connection refused"):
        await measure(Load(url="http://127.0.0.1:1", requests=1))


async def test_figures_for_machines_are_json(server):
    result = await measure(Load(url=server.url, requests=4, api_key="secret"))
    text = json.dumps(report.data(result))
    figures = json.loads(text)
    assert figures["answered"] == 4
    assert figures["output_tokens"] == 12
    assert figures["output_tokens_per_request"]["min"] == 3
    assert figures["finish_reasons"] == {"stop": 4}
    assert set(figures["time_to_first_token"]) == {"mean", "p50", "p90", "p95", "p99", "min", "max"}
    assert "secret" not in text
