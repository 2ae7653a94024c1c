"""`arriero chat`: the command and its flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arriero.cli.completion import complete_model
from arriero.cli.options import ModelOption, one_model
from arriero.config_description import variable

if TYPE_CHECKING:
    from asyncio import Runner

    from arriero.cli.chat.conversation import Conversation
    from arriero.cli.remote import Remote

_KEY = variable("api_key")


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Model to ask; left out: the first of /v1/models.", autocompletion=complete_model
        ),
    ] = None,
    model_option: ModelOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Address of any OpenAI-compatible endpoint; left out: the server of this machine's settings."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--api-key", "--key", envvar=_KEY, help="Bearer key.", show_default=False)
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Variable that holds the key, such as OPENAI_API_KEY.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass that tokens are drawn from.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer at most.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the same answer twice, where the server can.")] = None,
    load: Annotated[Path | None, typer.Option(metavar="FILE", help="Go on with a conversation that was saved.")] = None,
) -> None:
    """Talk to a model of any OpenAI-compatible endpoint.

    Answers appear as they are written. Ctrl-C stops one, Ctrl-D leaves, /help lists the commands.

    Where input or output is no terminal, all input is one question, and its answer alone is printed.
    """
    import asyncio
    import sys

    from arriero.cli.chat.conversation import Conversation
    from arriero.cli.remote import Remote

    asked = one_model(model, model_option)
    remote = Remote(url or _settings_url(), key=None if key_env else key, key_env=key_env)
    given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    talk = Conversation(asked or "")
    if load is not None:
        talk.load(load)
    talk.parameters |= {name: value for name, value in given.items() if value is not None}
    if system is not None:
        talk.system = system
    with asyncio.Runner() as runner:
        try:
            talk.model = runner.run(choose(remote, talk.model))
            if sys.stdin.isatty() and sys.stdout.isatty():
                from arriero.cli.chat.terminal import Terminal

                Terminal(remote, talk, runner).run()
            else:
                _answer_pipe(remote, talk, runner)
        finally:
            runner.run(remote.close())


def _answer_pipe(remote: Remote, talk: Conversation, runner: Runner) -> None:
    import os
    import sys

    from arriero.cli.chat.answering import Screen, ask, without_effect
    from arriero.errors import ConfigError, UpstreamError

    question = sys.stdin.buffer.read().decode("utf-8", "replace").rstrip("\n")
    if not question.strip():
        raise ConfigError("there is no question: nothing came from standard input")
    talk.ask(question)
    try:
        answer = runner.run(ask(remote, talk, Screen(terminal=False)))
    except BrokenPipeError:  # Whoever read has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    if answer.ignored:
        print(without_effect(answer.ignored), file=sys.stderr)
    if answer.stopped:
        raise typer.Exit(130)
    if answer.failure:
        raise UpstreamError(answer.failure)


async def choose(remote: Remote, model: str) -> str:
    """The model to ask, after a look whether anybody is there."""
    from arriero.cli.remote import Nobody, Refused
    from arriero.errors import UpstreamError

    try:
        await _until_loaded(remote)
        names = await remote.models("chat")
    except Nobody as error:
        raise Nobody(
            f"{error}: start one with arriero serve{f' {model}' if model else ''}, or name another with --url"
        ) from None
    except Refused as error:
        if model and error.status in (404, 405, 501):  # It has no list, which is no reason not to ask it.
            return model
        raise
    if not (model or names):
        raise UpstreamError(f"{remote.url} has no model to chat with; name one with --model")
    return model or names[0]


async def _until_loaded(remote: Remote) -> None:
    """Wait for an Arriero that has just been started."""
    import asyncio
    import sys

    told = False
    while (await remote.health("ready")).get("status") == "loading":
        if not told:
            print(f"{remote.url} is loading its model.", file=sys.stderr)
            told = True
        await asyncio.sleep(0.2)


def _settings_url() -> str:
    """Where `arriero serve` listens with the settings of this environment."""
    from arriero import config_sources
    from arriero.cli.url import own_url

    settings = config_sources.load({})
    return own_url(settings.host, settings.port, secure=settings.tls_certificate is not None)
