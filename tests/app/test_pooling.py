"""Several models behind one address, as a file names them."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from arriero import config_sources
from arriero.app.front import Front
from arriero.app.pooling import _estimate, open_pool
from arriero.app.web import open_api
from arriero.config import Settings
from arriero.errors import ConfigError, ModelLoadError
from arriero.pool import Pool
from arriero.store.ledger import Ledger
from tiny_directory import write_directory

TWO = """
engine = "scripted"

[[models]]
name = "one"
aliases = ["gpt-4", "o*"]
preload = true

[[models]]
name = "two"
"""


@asynccontextmanager
async def serving(directory: Path, text: str) -> AsyncIterator[tuple[httpx.AsyncClient, Pool]]:
    file = directory / "arriero.toml"
    file.write_text(text)
    settings = config_sources.load({"config": str(file)}, {})
    pool = await open_pool(settings)
    front = Front(settings, Ledger(None), closed=False)
    open_api(front, settings, pool)
    transport = httpx.ASGITransport(front.application)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:
            yield client, pool
    finally:
        await pool.close()


async def complete(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """A task of its own, as servers have it: who asks for a model keeps it as long as that lasts."""
    return await asyncio.create_task(client.post("/v1/completions", json={"prompt": "Hello", **body}))


async def test_requests_go_to_the_model_that_they_name(tmp_path: Path) -> None:
    async with serving(tmp_path, TWO) as (client, pool):
        assert [entry.state for entry in pool.entries] == ["ready", "unloaded"]
        for asked, answers in (("one", "one"), ("gpt-4", "one"), ("o3-mini", "one"), ("two", "two")):
            answer = await complete(client, model=asked)
            assert (answer.status_code, answer.json()["model"]) == (200, answers)
        unknown = await complete(client, model="three")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert (await complete(client)).status_code == 400
        assert (await client.post("/v1/embeddings", json={"input": "Hello"})).status_code == 400


async def test_a_default_answers_those_who_name_none(tmp_path: Path) -> None:
    async with serving(tmp_path, TWO + "default = true\n") as (client, _):
        assert (await complete(client)).json()["model"] == "two"
        assert (await complete(client, model="three")).status_code == 404


async def test_all_are_listed_with_what_is_known_of_them(tmp_path: Path) -> None:
    async with serving(tmp_path, TWO) as (client, _):
        listed = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
        assert list(listed) == ["one", "two", "gpt-4"]
        assert {name: model["state"] for name, model in listed.items()} == {
            "one": "ready",
            "gpt-4": "ready",
            "two": "unloaded",
        }
        assert (listed["gpt-4"]["parent"], listed["one"]["parent"]) == ("one", None)
        assert "context_length" in listed["gpt-4"]
        assert "context_length" not in listed["two"]
        for name in ("one", "two", "gpt-4"):
            assert (await client.get(f"/v1/models/{name}")).json() == listed[name]
        assert (await client.get("/v1/models/ohm")).json()["parent"] == "one"
        assert (await client.get("/v1/models/three")).status_code == 404


HABITS = """
engine = "scripted"

[[models]]
name = "brief"
aliases = ["short-*"]
default = true
completion_max_tokens = 50
completion_max_n = 2
completion_max_prompt = 200
defaults = { max_tokens = 3, temperature = 0, n = 2 }

[[models]]
name = "llama"
profile = "alpaca"

[[models]]
name = "plain"
"""
HELLO = [{"role": "user", "content": "Hello"}]


async def test_each_model_has_its_own_defaults_limits_and_profile(tmp_path: Path) -> None:
    async with serving(tmp_path, HABITS) as (client, _):

        async def chat(**body: Any) -> httpx.Response:
            asked = {"messages": HELLO, **body}
            return await asyncio.create_task(client.post("/v1/chat/completions", json=asked))

        for name in ({}, {"model": "brief"}, {"model": "short-one"}):
            for answer in (await complete(client, **name), await chat(**name)):
                assert answer.json()["usage"]["completion_tokens"] == 2 * 3
        assert (await chat(model="brief", max_tokens=2, n=1)).json()["usage"]["completion_tokens"] == 2
        assert (await chat(model="brief", max_completion_tokens=2, n=1)).json()["usage"]["completion_tokens"] == 2
        assert len((await chat(model="brief", n=None)).json()["choices"]) == 2
        assert (await chat(model="plain")).json()["usage"]["completion_tokens"] == len("Hello") + 1
        for wrong, body in (("max_tokens", {"max_tokens": 51}), ("n", {"n": 3}), ("prompt", {"prompt": "x" * 201})):
            refused = await complete(client, model="brief", **body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, wrong)
            assert (await complete(client, model="plain", **body)).status_code == 200
        said = (await chat(model="llama", messages="Hello")).json()
        assert said.keys() == {"id", "object", "created", "model", "choices"}
        assert (await chat(model="plain", messages="Hello")).status_code == 400
        for name, told in (("llama", False), ("plain", True)):
            answer = await client.post("/v1/embeddings", json={"model": name, "input": "a"})
            assert ("usage" in answer.json()) == told


@pytest.mark.parametrize(
    ("defaults", "word"),
    [
        ("{ temprature = 1 }", "'temprature' is no parameter"),
        ("{ temperature = 9 }", "'temperature'"),
        ("{ stream = true }", "'stream'"),
        ("{ tools = [{}] }", "'tools"),
        ("{ user = 'x' }", "'user' has no effect"),
    ],
)
async def test_a_default_that_is_none_is_named(defaults: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[\[models\]\] \(one\)") as error:
        async with serving(tmp_path, f'engine = "scripted"\n[[models]]\nname = "one"\ndefaults = {defaults}\n'):
            pass
    assert word in str(error.value)


async def test_an_administrator_loads_and_unloads(tmp_path: Path) -> None:
    async with serving(tmp_path, TWO) as (client, pool):
        assert (await client.post("/admin/models/two/load")).json()["state"] == "ready"
        gone = await client.post("/admin/models/gpt-4/unload")
        assert (gone.json()["id"], gone.json()["state"]) == ("one", "unloaded")
        states = {each["id"]: each["state"] for each in (await client.get("/admin/models")).json()["data"]}
        assert states == {"one": "unloaded", "two": "ready"}
        listed = (await client.get("/v1/models/one")).json()
        assert (listed["state"], listed["context_length"]) == ("unloaded", 32_768)
        assert (await complete(client, model="one")).status_code == 200
        assert (await client.post("/admin/models/three/load")).status_code == 404
        assert (await client.get("/health")).json()["status"] == "ok"
        assert sorted(model.name for model in pool.list()) == ["one", "two"]


async def test_a_model_that_cannot_be_loaded_is_that_model_s_error(tmp_path: Path) -> None:
    broken = f'\n[[models]]\nname = "broken"\nengine = "auto"\nmodel = "{tmp_path}/nowhere"\n'
    async with serving(tmp_path, TWO + broken) as (client, _):
        answer = await complete(client, model="broken")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_load_error")
        again = await complete(client, model="broken")
        for text in (answer.text, again.text):
            assert "'broken' could not be loaded: its files are missing" in text
            assert "nowhere" not in text
        residence = (await client.get("/admin/models")).json()["data"][2]
        assert (residence["state"], "nowhere" in residence["error"]) == ("failed", True)
        assert (await client.get("/health/live")).status_code == 200
        assert (await complete(client, model="one")).status_code == 200


async def test_what_is_wrong_at_the_start_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'gpt-4'"):
        async with serving(tmp_path, TWO + 'aliases = ["gpt-4"]\n'):
            pass
    with pytest.raises(ModelLoadError):
        async with serving(tmp_path, TWO + f'preload = true\nengine = "auto"\nmodel = "{tmp_path}/nowhere"\n'):
            pass


async def test_a_real_model_comes_and_goes_with_its_process(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "Tiny-Random")
    text = f'cache = "{tmp_path}/cache"\nengine = "onnx"\nmemory_budget = "1GiB"\n'  # the native one compiles
    text += f'[[models]]\nname = "tiny"\nmodel = "{directory}"\n'
    async with serving(tmp_path, text) as (client, pool):
        answer = await complete(client, model="tiny", max_tokens=3)
        assert answer.status_code == 200, answer.text
        (entry,) = pool.entries
        assert entry.model is not None
        pid = entry.model.engine.pid  # type: ignore[attr-defined]
        assert 10 * 2**20 < entry.num_bytes < 1024 * 2**20
        await client.post("/admin/models/tiny/unload")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_estimates_are_of_files(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "Tiny-Random")
    cache = tmp_path / "cache"
    weights = (directory / "model.safetensors").stat().st_size
    assert _estimate(Settings(model=str(directory), cache=cache)) > weights
    assert _estimate(Settings(model=str(tmp_path / "nowhere"), cache=cache)) == 0
    assert _estimate(Settings(engine="scripted")) == 0


async def test_a_model_of_another_server_is_neither_loaded_nor_unloaded_here(tmp_path: Path) -> None:
    text = TWO + '\n[[models]]\nname = "far/*"\nupstream = "http://127.0.0.1:1/v1"\n'
    async with serving(tmp_path, text) as (client, _):
        for word in ("load", "unload"):
            answer = await client.post(f"/admin/models/far/one/{word}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, f"not_{word}able")
            assert "computed by another server" in answer.json()["error"]["message"]
        assert (await client.post("/admin/models/near/load")).status_code == 404
        shown = (await client.get("/metrics")).text
        assert 'arriero_model_memory_bytes{model="one"} 0.0' in shown
