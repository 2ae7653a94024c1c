"""A server that runs: whether it is alive and ready, and has the model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import orjson

from arriero.cli.doctor.finding import Finding, command, fail, ok, warn
from arriero.cli.remote import Nobody, Refused, Remote
from arriero.errors import UpstreamError


def check_server(url: str, key: str | None, model: str | None) -> Iterator[Finding]:
    """What the server at `url` tells of itself."""
    remote = Remote(url, key=key)
    yield from asyncio.run(_look(remote, model))


async def _look(remote: Remote, model: str | None) -> list[Finding]:
    findings = []
    try:
        findings += await _health(remote)
        findings.append(await _models(remote, model))
    except Nobody as error:
        findings.append(fail("server", str(error), command("arriero", "serve", *([model] if model else []))))
    except Refused as error:
        mend = command("arriero", "doctor", "--url", remote.url, "--api-key", "KEY") if error.status == 401 else None
        findings.append(fail("server", str(error), mend))
    except UpstreamError as error:
        findings.append(fail("server", str(error), command("curl", "-i", f"{remote.url}/models")))
    finally:
        await remote.close()
    return findings


async def _health(remote: Remote) -> list[Finding]:
    """Nothing for a server of another kind, which has no such routes."""
    status, body = await remote.get("/health/live")
    if status not in (200, 503):
        return []
    live = _object(body)
    _, body = await remote.get("/health/ready")
    ready = _object(body)
    findings = []
    if live.get("status") == "failed":
        findings.append(fail("server", f"it is not alive: {live.get('reason')}", "kill -TERM PID && arriero serve"))
    if (state := ready.get("status")) == "ready":
        findings.append(ok("server", "it is alive and ready" if status == 200 else "it lets requests in"))
    elif state:
        findings.append(
            warn("server", f"it is {state}", command("curl", "-i", f"{remote.url.removesuffix('/v1')}/health/ready"))
        )
    if warning := ready.get("warning"):
        findings.append(warn("server", f"its store cannot be used: {warning}", "arriero doctor"))
    return findings


async def _models(remote: Remote, model: str | None) -> Finding:
    names = await remote.models()
    listed = ", ".join(names) or "none"
    if model and model not in names:
        return fail(
            "server", f"it has no model '{model}'; it has {listed}", command("arriero", "chat", "--url", remote.url)
        )
    return ok("server", f"its models: {listed}")


def status_of(body: bytes) -> object:
    """What a route of health says that the server is."""
    return _object(body).get("status")


def _object(body: bytes) -> dict[str, object]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
