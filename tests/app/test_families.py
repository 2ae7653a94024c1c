"""Another family than LLaMA in service: what is said of it, and that its answers are the same alone and in a crowd."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from arriero.app import load
from arriero.app.web import create_app
from arriero.config import Settings
from references import tiny_families
from tiny_directory import write_directory

VOCABULARY = 257


@pytest.fixture(params=["gemma3/with_images", "qwen3/window", "phi3/window"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of the family with the tokenizer of the tiny LLaMA."""
    path = write_directory(tmp_path / "Tiny-Family")
    changes: dict[str, object] = {"vocab_size": VOCABULARY}
    if text := tiny_families.CASES[request.param].get("text_config"):
        changes["text_config"] = text | changes
    return tiny_families.write(request.param, path, **changes)


async def test_it_is_served(directory: Path) -> None:
    settings = Settings(model=str(directory), cache=directory.parent / "cache", slots=8, threads=1)
    model = load(settings)
    await model.engine.start()
    transport = httpx.ASGITransport(create_app(settings, model))
    async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:

        async def answer(length: int) -> str:
            body = {
                "model": "Tiny-Family",
                "prompt": "abcdefgh" * length + chr(length + 97),
                "max_tokens": 8,
                "temperature": 2,
                "seed": length,
            }
            answered = await client.post("/v1/completions", json=body)
            assert answered.status_code == 200, answered.text
            return str(answered.json()["choices"][0]["text"])

        alone = [await answer(length) for length in range(1, 8)]
        together = await asyncio.gather(*map(answer, range(1, 8)))
        card = (await client.get("/v1/models/Tiny-Family")).json()["card"]
    await model.engine.close()
    assert together == alone
    assert len(set(alone)) > 1
    assert card["engine"] in ("native", "onnx")
    assert card["context"] == 256
