import asyncio
import os
import sys

import pytest


@pytest.fixture
def complete(call, tmp_path, monkeypatch):
    """What is offered for the last word of a line, in bash."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def offered(*words):
        position = str(len(words))
        variables = {"_ARRIERO_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("arriero", *words))}
        finished = call(COMP_CWORD=position, **variables)
        assert finished.stderr == ""
        return finished.stdout.split()

    return offered


def test_commands_and_flags_are_offered(complete):
    assert {"serve", "chat", "doctor", "models", "completion"} <= set(complete(""))
    assert complete("models", "p") == ["pull"]
    assert complete("serve", "--tls-") == ["--tls-certificate", "--tls-key"]


def test_models_at_hand_are_offered_where_one_is_meant(complete, tmp_path):
    (tmp_path / "hub" / "models--org--tiny--name" / "snapshots").mkdir(parents=True)
    (tmp_path / "hub" / "models--org--damaged").mkdir()
    (tmp_path / "hub" / "datasets--org--data" / "snapshots").mkdir(parents=True)
    for command in (["serve"], ["models", "show"], ["chat"], ["doctor"], ["serve", "--base-model"]):
        assert complete(*command, "Sm") == ["SmolLM2-135M-Instruct"]
        assert complete(*command, "org/") == ["org/tiny/name"]
        assert complete(*command, "./") == []  # The shell knows files.


def test_files_and_values_are_offered(complete, tmp_path):
    (tmp_path / "deploy").mkdir()
    for name in ("arriero.toml", "other.txt", "deploy/all.toml"):
        (tmp_path / name).touch()
    assert complete("serve", "--config", "") == ["arriero.toml"]
    assert complete("doctor", "--config", "deploy/") == ["deploy/all.toml"]
    assert complete("serve", "--config", "no/such/") == []
    assert complete("serve", "--weights", "int") == ["int8", "int4"]
    assert complete("serve", "--port", "") == []


async def test_bash_completes_with_the_script_that_is_printed(run, tmp_path):
    (tmp_path / "arriero").write_text(f'#!/bin/sh\nexec {sys.executable} -m arriero "$@"\n')
    (tmp_path / "arriero").chmod(0o755)
    script = (await run("completion", "bash")).stdout
    ask = 'COMP_WORDS=(arriero serve Sm); COMP_CWORD=2; _arriero_completion arriero; echo "${COMPREPLY[@]}"'
    process = await asyncio.create_subprocess_exec(
        *("bash", "--norc", "-c", f"{script}\n{ask}"),
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert (await process.communicate())[0] == b"SmolLM2-135M-Instruct\n"


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "#compdef arriero"), ("fish", "complete --command arriero")])
def test_other_shells_have_scripts_of_their_own(call, shell, mark):
    finished = call("completion", shell)
    assert finished.stdout.startswith(mark)
    assert "_ARRIERO_COMPLETE=complete_" in finished.stdout


def test_a_shell_that_is_not_known_is_a_usage_error(call):
    assert call("completion", "tcsh").status == 2
