"""`arriero serve`: one command from a model to a server."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import shlex
import signal
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from arriero import config, config_sources
from arriero.cli import listen, log
from arriero.engine.process.spawned import discard_early
from arriero.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from arriero.pool import Pool
    from arriero.store.ledger import Ledger

logger = logging.getLogger(__name__)

_YOUNG = 10_000
"""New objects after which the garbage collector looks for cycles among them; answers make few."""


def serve(**flags: str | bool | list[str] | None) -> None:
    """Serve a model over the OpenAI API.

    Every setting is a flag, a variable and a key of the TOML file that --config names (without the dashes, _ for -).
    A flag counts more than a variable, a variable more than the file.

    Ctrl-C or SIGTERM ends the server once the running answers are finished; a second one ends it at once.
    """
    settings = config_sources.load({name: value for name, value in flags.items() if value not in (None, [])})
    log.set_up(settings.log_level, settings.log_format)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _quit)
    # Importing and loading come after the address is ours: a taken port is told at once, not after a download.
    with closing(listen.bind(settings)) as listener:
        public = listen.is_public(listener)
        try:
            with closing(_open_ledger(settings, public=public)) as ledger:
                _serve(settings, listener, ledger, closed=public and not settings.no_auth)
        finally:
            if settings.unix_socket:
                settings.unix_socket.unlink(missing_ok=True)


def _open_ledger(settings: config.Settings, *, public: bool) -> Ledger:
    """Keys and usage; raises `ConfigError` where others could come in and nobody would ask for their keys."""
    from arriero.store.ledger import Ledger

    ledger = Ledger(settings.store)
    ledger.start()
    if public and settings.no_auth:
        logger.warning("Anyone who can reach %s can use this server: it asks for no key", settings.host)
    elif public and not (ledger.keys or settings.api_key):
        ledger.close()
        raise ConfigError(
            f"others may reach {settings.host}, and there are no keys: make one with arriero keys create, "
            "or give --api-key, or --no-auth if everybody may use this server"
        )
    return ledger


def _quit(number: int, frame: object) -> None:
    """Stop loading. Not by KeyboardInterrupt, which Python may turn into a death by signal even when it is caught."""
    sys.exit(0)


def _serve(settings: config.Settings, listener: socket.socket, ledger: Ledger, *, closed: bool) -> None:
    import uvloop

    uvloop.run(_run(settings, listener, ledger, closed=closed))


async def _run(settings: config.Settings, listener: socket.socket, ledger: Ledger, *, closed: bool) -> None:
    """Listen, and load meanwhile; ends when the server does, or when the model cannot be loaded."""
    from arriero.app.pooling import open_pool
    from arriero.app.tracing import open_tracing
    from arriero.cli.progress import Bars

    tracing = open_tracing(settings)
    with Bars() as bars:
        opening = asyncio.create_task(open_pool(settings, on_download=bars.download, on_convert=bars.convert))
        opening.add_done_callback(_look)
        await asyncio.sleep(0)  # The model is loaded in another process: all else that takes long is done meanwhile.
        from arriero.app.front import Front
        from arriero.cli import server

        front = Front(settings, ledger, closed=closed, tracing=tracing)

        async def drain() -> None:
            await front.close(settings.grace)
            await _close(opening)

        serving = server.Server(front.application, settings, drain=drain)
        served = asyncio.create_task(serving.serve([listener]))
        front.start()
        for module in ("arriero.app.web", "arriero.text.sandbox"):  # the API, and what runs the models' templates
            await asyncio.to_thread(importlib.import_module, module)
        gc.enable()
        await asyncio.wait((opening, served), return_when=asyncio.FIRST_COMPLETED)
    discard_early()  # All models may be those of other servers, or wait until somebody asks for them.
    if not opening.done():
        opening.cancel()
        await asyncio.wait((opening,))
    elif opening.exception():
        serving.should_exit = True
    else:
        from arriero.app.web import open_api

        open_api(front, settings, opening.result())
        gc.freeze()  # What is here stays: looking at it again and again would take a tenth of the time.
        gc.set_threshold(_YOUNG, 10, 10)
        url = listen.url(listener, secure=settings.tls_key is not None)
        _announce(opening.result(), settings, url, keyed=front.asks_for_keys)
    await served
    await _close(opening)  # It may have been opened while the server stopped.
    if not opening.cancelled():
        opening.result()  # raises what went wrong


def _look(opening: asyncio.Task[Pool]) -> None:
    """See how it ended, lest asyncio complain that nobody did: `_quit` may end it and the loop at once."""
    if not opening.cancelled():
        opening.exception()


async def _close(opening: asyncio.Task[Pool]) -> None:
    """Close the models, if it has come to that."""
    if opening.done() and not opening.cancelled() and not opening.exception():
        await opening.result().close()


def _announce(pool: Pool, settings: config.Settings, url: str, *, keyed: bool) -> None:
    """Tell where the server is, and a command that shows that it works."""
    through = f"--unix-socket {shlex.quote(str(settings.unix_socket))} " if settings.unix_socket else ""
    where = f" through {settings.unix_socket}" if settings.unix_socket else ""
    names = ", ".join([each.name for each in pool.entries] + [each.name for each in pool.upstreams])
    print(f"Serving {names} at {url}/v1{where}{'' if keyed else f' (documentation at {url}/docs)'}")
    key = ' -H "Authorization: Bearer $ARRIERO_API_KEY"' if keyed else ""
    if not pool.entries:
        print(f"curl {through}{url}/v1/models{key}", flush=True)
        return
    name = pool.default_name
    model = next((each for each in pool.list() if each.name == name), None)
    if model and model.template is None:
        path, body = "completions", {"model": name, "prompt": "Once upon a time", "max_tokens": 32}
    else:
        path = "chat/completions"
        # A small model that is asked without a limit may ramble for minutes.
        body = {"model": name, "messages": [{"role": "user", "content": "Tell me a joke."}], "max_tokens": 128}
    headers = f"-H 'Content-Type: application/json'{key}"
    print(f"curl {through}{url}/v1/{path} {headers} -d {shlex.quote(json.dumps(body))}", flush=True)
