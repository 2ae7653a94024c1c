"""`arriero bench`: put load on an OpenAI endpoint and show what its callers felt."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from arriero.bench.load import Load, Result

_LOAD = "Load"
_REQUEST = "Requests"
_OUTPUT = "Output"


def _positive_numbers(text: str) -> list[int]:
    numbers = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise typer.BadParameter(f"'{text}' is no list of whole numbers above 0, such as 1,4,16")
    return numbers


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("not a JSON object")
    return value


def bench(
    url: Annotated[
        str | None, typer.Argument(help="Address of any OpenAI endpoint, with or without /v1.", metavar="URL")
    ] = None,
    self_: Annotated[
        bool,
        typer.Option(
            "--self",
            help="Measure this machine with a model instead of an endpoint: the one of --model, or the catalog's "
            "default. Of the other options --json alone counts; settings come from the environment.",
        ),
    ] = False,
    clients: Annotated[
        str,
        typer.Option(
            help="Clients at once, each waiting for its answer; a list makes one run each.", rich_help_panel=_LOAD
        ),
    ] = "1,4,16",
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Requests a second at random moments (Poisson), instead of clients.", rich_help_panel=_LOAD
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="Requests a run; left out: 4 a client, at least 8, or by time.", rich_help_panel=_LOAD
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds in which a run sends requests.", rich_help_panel=_LOAD)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Makes the prompts; left out: a new one, so that no cache knows them.", rich_help_panel=_LOAD
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to ask; left out: the first of /v1/models, or with --self the catalog's default.",
            rich_help_panel=_REQUEST,
        ),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Bearer key.", rich_help_panel=_REQUEST)] = None,
    endpoint: Annotated[
        Literal["chat", "completions"], typer.Option(help="Which kind of request.", rich_help_panel=_REQUEST)
    ] = "chat",
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Words of a prompt, about one token each.", rich_help_panel=_REQUEST)
    ] = 100,
    system_tokens: Annotated[
        int,
        typer.Option(
            min=0, help="Words of a system prompt that all requests of a run share.", rich_help_panel=_REQUEST
        ),
    ] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.", rich_help_panel=_REQUEST)] = 64,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Ask for answers of exactly that length.", rich_help_panel=_REQUEST)
    ] = False,
    stream: Annotated[bool, typer.Option(help="Ask for the answer as it is made.", rich_help_panel=_REQUEST)] = True,
    extra_body: Annotated[
        str, typer.Option(metavar="JSON", help="Object laid over each request's body.", rich_help_panel=_REQUEST)
    ] = "{}",
    new_connection: Annotated[
        bool,
        typer.Option(
            "--new-connection",
            help="A connection for each request, for servers that drop idle ones.",
            rich_help_panel=_REQUEST,
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a request has failed.", rich_help_panel=_REQUEST)
    ] = 600.0,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the figures there, - is stdout.", rich_help_panel=_OUTPUT),
    ] = None,
) -> None:
    """Put load on an OpenAI endpoint, and show times, throughput and errors; or measure this machine (--self).

    Prompts are random English words, other ones for every request.

    Tokens are those of the server's own usage figures; tokens/s is all output of a run over all its time.

    Exit status 1 when no request was answered.
    """
    if self_:
        if url is not None:
            raise typer.BadParameter("--self measures this machine and takes no URL")
        from arriero.cli.survey import survey

        survey(model, json_file)
        return
    if url is None:
        raise typer.BadParameter("give the URL of an endpoint, or --self for this machine")

    from dataclasses import replace

    from arriero.bench import words
    from arriero.bench.load import Load

    counts = _positive_numbers(clients)
    seed = secrets.randbelow(2**31) if seed is None else seed
    load = Load(
        url=url,
        model=model,
        rate=rate,
        requests=requests,
        duration=duration,
        prompt_tokens=prompt_tokens,
        system=words.prompt(system_tokens, seed, index=-1),
        max_tokens=max_tokens,
        endpoint=endpoint,
        stream=stream,
        extra_body=({"ignore_eos": True} if ignore_eos else {}) | _json_object(extra_body),
        new_connection=new_connection,
        api_key=api_key,
        seed=seed,
        timeout=timeout,
    )
    shapes = [1] if rate is not None else counts
    # Every run has its own prompts, or the second would find the first's in the server's caches.
    loads = [replace(load, clients=number, seed=load.seed + run) for run, number in enumerate(shapes)]
    results = [_run(each) for each in loads]
    _show(results, json_file)
    if not any(result.answered for result in results):
        raise typer.Exit(1)


def _run(load: Load) -> Result:
    """One run with a line on a terminal that tells how far it is."""
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from arriero.bench.load import run
    from arriero.bench.report import shape

    if load.requests is None and load.duration is None:
        load = replace(load, requests=max(8, 4 * load.clients))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal, refresh_per_second=2) as progress:
        task = progress.add_task(shape(load), total=load.requests)
        return run(load, lambda _: progress.advance(task))


def _show(results: Iterable[Result], json_file: str | None) -> None:
    from rich.console import Console

    from arriero.bench import report

    results = list(results)
    if json_file is not None:
        text = json.dumps({"machine": report.machine(), "runs": [report.data(each) for each in results]}, indent=2)
        if json_file == "-":
            print(text)
        else:
            Path(json_file).write_text(text + "\n")
    Console(stderr=json_file == "-").print(report.table(results))
