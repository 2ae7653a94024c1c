import asyncio
import json
import signal

import httpx
import pytest

from arriero.app import load
from arriero.config import Settings
from arriero.models.sources.catalog import catalog
from tiny_directory import write_directory

NAME = "SmolLM2-135M-Instruct"


@pytest.fixture
def tiny(tmp_path):
    return write_directory(tmp_path / "Tiny-Random")


@pytest.fixture
def models(call, hub, tmp_path):
    """Run `arriero models` with caches of its own."""
    return lambda *arguments: call("models", *arguments, "--cache", str(tmp_path / "cache"))


def convert(model, tmp_path):
    load(Settings(model=str(model), cache=tmp_path / "cache", slots=1, threads=1))


def listed(models):
    return {row["name"]: row for row in json.loads(models("list", "--json").stdout)}


def test_the_catalog_is_listed_before_anything_is_there(models):
    assert set(listed(models)) == set(catalog)
    assert listed(models)[NAME] == {
        "name": NAME,
        "origin": "catalog",
        "path": None,
        "downloaded_bytes": 0,
        "converted_bytes": 0,
    }
    lines = [line.split() for line in models("list").stdout.splitlines()]
    assert ["Model", "From", "Downloaded", "Converted"] in lines
    assert [NAME, "catalog", "-", "-"] in lines


def test_a_model_of_the_hub_is_pulled_listed_shown_and_removed(models, hub, tiny, tmp_path):
    hub.add("org/tiny", tiny)
    pulled = models("pull", "org/tiny")
    assert pulled.status == 0
    assert pulled.stdout.startswith("org/tiny is at ")
    convert(json.loads(models("pull", "org/tiny", "--json").stdout)["path"], tmp_path)
    row = listed(models)["org/tiny"]
    assert row["origin"] == "hub"
    assert row["downloaded_bytes"] == sum(file.stat().st_size for file in tiny.iterdir())
    assert row["converted_bytes"] > 0
    shown = json.loads(models("show", "org/tiny", "--json").stdout)
    assert shown.items() >= {**row, "family": "llama", "context": 128}.items()
    assert shown["engine"] in ("native", "onnx")
    assert shown["chat_template"] is True
    assert shown["tasks"] == ["completion", "chat", "embedding", "rerank", "score"]
    assert shown["memory_weights"]["fp32"] == 4 * shown["parameters"]
    assert shown["memory_per_token"] == 2 * 2 * 16 * 4


def test_what_is_not_downloaded_says_how_to(models):
    finished = models("show", "org/tiny")
    assert finished.status == 0
    assert "arriero models pull org/tiny" in finished.stdout


def test_removing_asks_for_a_yes(models, hub, tiny, monkeypatch):
    hub.add("org/tiny", tiny)
    models("pull", "org/tiny")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    finished = models("remove", "org/tiny")
    assert finished.status == 1
    assert finished.stderr == "arriero: removing org/tiny takes a yes: nobody is there to be asked, so give --yes\n"
    assert "org/tiny" in listed(models)


def test_removing_takes_only_what_is_in_the_caches(models, hub, tiny):
    hub.add("org/tiny", tiny)
    hub.add("org/other", {"config.json": b"{}", "model.safetensors": b"x"})
    models("pull", "org/tiny")
    models("pull", "org/other")
    finished = models("remove", "org/tiny", "--yes")
    assert finished.stdout.startswith("Removed ")
    assert set(listed(models)) == {*catalog, "org/other"}
    finished = models("remove", "org/tiny", "--yes")
    assert finished.stdout == "Nothing of org/tiny is in the caches\n"
    finished = models("remove", str(tiny), "--yes")
    assert finished.stdout == f"Nothing of {tiny} is in the caches\n"
    assert (tiny / "model.safetensors").exists()


async def test_conversions_of_a_path_are_removed_and_the_path_stays(models, tiny, tmp_path, launch):
    options = ("--cache", str(tmp_path / "cache"), "--engine", "onnx", "--port", "0", "--slots", "1", "--threads", "1")
    async with launch("serve", str(tiny), *options) as process:  # this process would hold the conversion in use
        await process.stdout.readline()
    assert json.loads(models("remove", str(tiny), "--yes", "--json").stdout)["bytes"] > 0
    assert (tiny / "model.safetensors").exists()
    assert json.loads(models("show", str(tiny), "--json").stdout)["converted_bytes"] == 0


def test_a_conversion_in_use_is_not_removed(models, tiny, tmp_path):
    convert(tiny, tmp_path)
    finished = models("remove", str(tiny), "--yes")
    assert finished.status == 1
    assert finished.stderr.startswith(f"arriero: {tiny} is in use: end the server that serves it first")


def test_an_entry_of_the_catalog_is_removed(models, tmp_path, monkeypatch):
    directory = tmp_path / "cache" / "models" / NAME
    directory.mkdir(parents=True)
    (directory / "half.gguf").write_bytes(b"1234")
    (directory / "download.lock").touch()
    row = listed(models)[NAME]
    assert (row["downloaded_bytes"], row["path"]) == (4, None)
    assert "part, 4 B" in models("list").stdout
    assert json.loads(models("remove", NAME.lower(), "--yes", "--json").stdout) == {"name": NAME, "bytes": 4}
    assert [path.name for path in directory.iterdir()] == ["download.lock"]


@pytest.mark.parametrize("command", ["show", "remove", "pull"])
def test_a_name_that_cannot_be_one_is_one_sentence(models, command):
    finished = models(command, "nothing")
    assert finished.status == 1
    assert finished.stderr.startswith("arriero: There is no model 'nothing'")
    assert finished.stderr.count("\n") == 1


def variables(hub, tmp_path):
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}


async def test_a_hub_id_is_served_from_the_first_byte_to_the_answer(launch, hub, tiny, tmp_path):
    hub.add("org/tiny", tiny)
    options = ("--cache", str(tmp_path / "cache"), "--engine", "onnx", "--port", "0", "--slots", "2", "--threads", "1")
    async with launch("serve", "org/tiny", *options, **variables(hub, tmp_path)) as process:
        ready = (await process.stdout.readline()).decode()
        assert ready.startswith("Serving org/tiny at "), (await process.stderr.read()).decode()
        url = ready.split()[3]
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            body = {"model": "org/tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
            answer = (await client.post("chat/completions", json=body)).json()
            card = (await client.get("models/org/tiny")).json()
        process.send_signal(signal.SIGTERM)
        await process.wait()
    assert answer["usage"]["completion_tokens"] <= 3
    assert card["id"] == "org/tiny"
    assert (tmp_path / "hf" / "hub" / "models--org--tiny").is_dir()


async def test_the_hub_s_variables_count(run, hub, tiny, tmp_path):
    hub.add("org/gated", tiny, gated=True)
    finished = await run("models", "pull", "org/gated", **variables(hub, tmp_path))
    assert finished.status == 1
    assert "arriero: org/gated is gated: ask for access at" in finished.stderr
    assert "Traceback" not in finished.stderr
    finished = await run("models", "pull", "org/gated", **variables(hub, tmp_path) | {"HF_TOKEN": "hf_good"})
    assert finished.status == 0
    assert finished.stderr.endswith(" INFO Downloading the model\n")
    assert finished.stderr.count("\n") == 1
    finished = await run("models", "pull", "org/gated", **variables(hub, tmp_path), HF_HUB_OFFLINE="1")
    assert (finished.status, finished.stderr) == (0, "")
    assert finished.stdout.startswith("org/gated is at ")


async def test_a_hub_out_of_reach_is_one_warning_where_the_files_are_here(run, hub, tiny, tmp_path):
    hub.add("org/tiny", tiny)
    await run("models", "pull", "org/tiny", **variables(hub, tmp_path))
    finished = await run(
        "models", "pull", "org/tiny", **variables(hub, tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:1"}
    )
    assert finished.status == 0
    assert "WARNING Could not reach the Hub" in finished.stderr
    assert finished.stderr.count("\n") == 1


async def test_a_signal_ends_a_download(launch, hub, tmp_path):
    hub.add("org/big", {"config.json": b"{}", "model.safetensors": bytes(30_000_000)})
    hub.pause = 0.1
    async with launch("models", "pull", "org/big", **variables(hub, tmp_path)) as process:
        while not any("GET" in each and "safetensors" in each for each in hub.requests):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = await process.communicate()
    assert process.returncode != 0
    assert stdout == b""
    assert b"Traceback" not in stderr
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
