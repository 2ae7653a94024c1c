import json
import os
import re
import subprocess
import sys

import pytest

from arriero import __version__, config, config_description


async def test_the_version(run):
    finished = await run("--version")
    assert (finished.status, finished.stdout, finished.stderr) == (0, f"arriero {__version__}\n", "")


def test_the_version_needs_nothing_big():
    code = (
        "import sys; sys.argv = ['arriero', '--version']; import arriero.cli; arriero.cli.main(); print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "pydantic", "typer", "fastapi", "onnxruntime"}.isdisjoint(modules)


def test_the_commands_need_nothing_that_only_some_of_them_use():
    code = "import sys; import arriero.cli.commands; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "numpy",
        "fastapi",
        "uvicorn",
        "uvloop",
        "onnxruntime",
        "numba",
        "huggingface_hub",
        "tokenizers",
        "sqlite3",
    }
    assert heavy.isdisjoint(modules)


def test_help_names_the_commands(call):
    finished = call("--help")
    assert finished.status == 0
    assert "serve" in finished.stdout
    assert "bench" in finished.stdout


def test_help_of_serve_shows_every_setting_in_all_its_forms(call):
    finished = call("serve", "--help")
    assert finished.status == 0
    shown = re.sub(r"[│\s]", "", finished.stdout)  # Long words, such as paths, are broken.
    for name, field in config.in_one_word().items():
        assert config_description.flag(name) in finished.stdout
        assert config_description.variable(name) in finished.stdout
        assert re.sub(r"\s", "", config_description.default(field)) in shown
    assert "auto|int8|int4|fp32" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "70000"), "arriero: --port is '70000', expected a whole number from 0 to 65535\n"),
        (
            ("--weights", "int9"),
            "arriero: --weights is 'int9', expected one of auto, int8, int4, fp32, bf16, fp16 (did you mean int8?)\n",
        ),
        (("--config", "/nowhere.toml"), "arriero: cannot read the configuration file /nowhere.toml: No such file"),
    ],
)
def test_a_wrong_setting_is_one_sentence(call, arguments, message):
    finished = call("serve", *arguments)
    assert finished.status == 1
    assert finished.stderr.startswith(message)
    assert finished.stderr.count("\n") == 1
    assert finished.stdout == ""


def test_a_switch_is_set_by_its_name_alone(call, tmp_path):
    file = tmp_path / "nothing.gguf"
    assert "no model" in call("serve", str(file), "--trust-remote-code", "--port", "0").stderr
    finished = call("serve", str(file), "--port", "0", ARRIERO_TRUST_REMOTE_CODE="perhaps")
    assert "ARRIERO_TRUST_REMOTE_CODE is 'perhaps', expected true or false" in finished.stderr


async def test_an_address_that_is_none_is_one_sentence(run):
    finished = await run("serve", "--host", "not.a.host.invalid")
    assert (finished.status, finished.stdout) == (1, "")
    assert finished.stderr.startswith("arriero: cannot listen on not.a.host.invalid: ")


def test_a_wrong_variable_is_one_sentence(call):
    finished = call("serve", ARRIERO_SLOTZ="1")
    assert (finished.status, finished.stdout) == (1, "")
    assert finished.stderr == "arriero: ARRIERO_SLOTZ in the environment is no setting (did you mean ARRIERO_SLOTS?)\n"


def test_an_unknown_flag_is_a_usage_error(call):
    finished = call("serve", "--slotz", "1")
    assert finished.status == 2
    assert "--slotz" in finished.stderr


def test_the_readme_has_every_setting():
    usual = {name: value for name, value in os.environ.items() if name != "XDG_DATA_HOME"}  # defaults lie at home
    subprocess.run([sys.executable, "scripts/settings_table.py", "--check"], check=True, env=usual)


async def test_bench_shows_a_table_and_writes_json(run, serve, tmp_path):
    file = tmp_path / "figures.json"
    async with serve() as server:
        finished = await run(
            "bench",
            server.url,
            "--clients",
            "1,2",
            "--requests",
            "4",
            "--max-tokens",
            "8",
            "--prompt-tokens",
            "20",
            "--json",
            str(file),
        )
    assert (finished.status, finished.stderr) == (0, "")
    assert "2 clients" in finished.stdout
    runs = json.loads(file.read_text())["runs"]
    assert [run["load"]["clients"] for run in runs] == [1, 2]
    for each in runs:
        assert each["errors"] == {}
        assert each["output_tokens"] == 4 * 8  # It echoes the prompt, which is longer.
        assert each["output_tokens_from_usage"]
        assert each["finish_reasons"] == {"length": 4}
    assert runs[0]["load"]["seed"] != runs[1]["load"]["seed"]


async def test_bench_writes_json_alone_to_stdout(run, serve):
    async with serve() as server:
        finished = await run(
            "bench",
            server.url,
            "--rate",
            "50",
            "--requests",
            "3",
            "--endpoint",
            "completions",
            "--no-stream",
            "--json",
            "-",
        )
    assert json.loads(finished.stdout)["runs"][0]["answered"] == 3
    assert "50 requests/s" in finished.stderr


async def test_bench_of_this_machine_shows_choices_and_speeds(run, tmp_path):
    file = tmp_path / "survey.json"
    variables = {"ARRIERO_ENGINE": "scripted", "ARRIERO_CONTEXT": "512", "ARRIERO_SLOTS": "4"}
    finished = await run("bench", "--self", "--json", str(file), **variables)
    assert (finished.status, finished.stderr) == (0, "")
    assert "The settings ask for it." in finished.stdout
    assert "4 answers at once" in finished.stdout
    figures = json.loads(file.read_text())
    assert figures["model"]["engine"] == "scripted"
    assert [each["name"] for each in figures["choices"]] == ["engine", "weights", "threads", "slots", "token budget"]
    assert set(figures["survey"]["decode"]) == {"1", "4"}


@pytest.mark.parametrize("arguments", [(), ("--self", "http://127.0.0.1:1")])
async def test_bench_takes_either_a_url_or_this_machine(run, arguments):
    finished = await run("bench", *arguments)
    assert finished.status == 2
    assert "--self" in finished.stderr


async def test_bench_of_nobody_is_one_sentence(run):
    finished = await run("bench", "http://127.0.0.1:1")
    assert (finished.status, finished.stdout) == (1, "")
    assert finished.stderr == "arriero: http://127.0.0.1:1 cannot be reached: connection refused\n"


async def test_bench_without_an_answer_fails(run):
    finished = await run("bench", "http://127.0.0.1:1", "--model", "any", "--clients", "1")
    assert finished.status == 1
    assert "8 failed: connection refused" in finished.stdout


@pytest.mark.parametrize(
    "arguments",
    [("--clients", "0"), ("--clients", "many"), ("--extra-body", "[]"), ("--extra-body", "{"), ("--rate", "0")],
)
def test_bench_refuses_what_makes_no_sense(call, arguments):
    finished = call("bench", "http://127.0.0.1:1", *arguments)
    assert finished.status == 2
