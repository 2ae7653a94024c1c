"""A server that runs: whether it is alive and ready, and has the model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

from arriero.cli.doctor.finding import Finding, command, fail, ok, warn
from arriero.cli.doctor.processes import listener
from arriero.cli.remote import Nobody, Refused, Remote
from arriero.errors import UpstreamError


def check_server(url: str, key: str | None, model: str | None) -> Iterator[Finding]:
    """What the server at `url` tells of itself."""
    remote = Remote(url, key=key)
    yield from asyncio.run(_look(remote, model))


async def _look(remote: Remote, model: str | None) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings += await _health(remote)
        if not findings or findings[0].status == "ok":  # Another would only let us wait.
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
    live = await remote.health("live")
    if not live:
        return []
    ready = await remote.health("ready")
    findings = []
    if live.get("status") == "failed":
        findings.append(fail("server", f"it is not alive: {live.get('reason')}", _restart(remote.url)))
    if (state := ready.get("status")) == "ready":
        findings.append(ok("server", "it is alive and ready" if live.get("status") == "ok" else "it lets requests in"))
    elif state:
        findings.append(
            warn("server", f"it is {state}", command("curl", "-i", f"{remote.url.removesuffix('/v1')}/health/ready"))
        )
    if warning := ready.get("warning"):
        findings.append(warn("server", f"its store cannot be used: {warning}", "arriero doctor"))
    return findings


def _restart(url: str) -> str:
    """What ends a server of this machine, or starts a service of another anew."""
    parts = urlsplit(url)
    here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    process = listener(parts.port or 80) if here else None
    return command("kill", process[0]) if process else "systemctl restart arriero"


async def _models(remote: Remote, model: str | None) -> Finding:
    names = await remote.models()
    listed = ", ".join(names) or "none"
    if model and model not in names:
        return fail(
            "server", f"it has no model '{model}'; it has {listed}", command("arriero", "chat", "--url", remote.url)
        )
    return ok("server", f"its models: {listed}")
