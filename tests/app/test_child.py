"""A model in a process of its own is the model itself."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from arriero.app import load
from arriero.app.child import open_model
from arriero.config import Settings
from arriero.core import GenerationRequest
from arriero.errors import ConfigError, ModelLoadError
from arriero.pool import ServedModel
from directories import write_model, write_tokenizer
from references import lora
from tiny_directory import write_directory

CONVERSATION = [{"role": "user", "content": "Was ist ein <end>? 你好"}]


def settings(model: Path, **others: object) -> Settings:
    return Settings(model=str(model), cache=model.parent / "cache", slots=4, threads=1, **others)


async def answer(model: ServedModel, prompt: str = "Once upon") -> list[object]:
    request = GenerationRequest(
        id="r", prompts=(tuple(model.tokenizer.encode(prompt)),), max_tokens=6, logprobs=2, adapter=model.adapter
    )
    return [event async for events in model.engine.generate(request) for event in events]


async def test_it_answers_as_in_this_process(tmp_path: Path) -> None:
    chosen = settings(write_directory(tmp_path / "Tiny-Random"), weights="fp32")
    converted: list[tuple[int, int]] = []
    there = await open_model(chosen, on_convert=lambda done, total: converted.append((done, total)))
    here = load(chosen)
    await here.engine.start()
    try:
        assert await answer(there) == await answer(here)
        assert converted[-1][0] == converted[-1][1] > 0
        assert (there.card, there.fingerprint, there.vectors) == (here.card, here.fingerprint, here.vectors)
        assert there.engine.context == here.engine.context
        assert here.template is not None
        assert there.template is not None
        assert there.template.encode(CONVERSATION) == here.template.encode(CONVERSATION)
        assert there.tokenizer.end_token_ids == here.tokenizer.end_token_ids
        assert there.tokenizer.control_tokens == here.tokenizer.control_tokens
    finally:
        await there.engine.close()
        await here.engine.close()


async def test_adapters_share_the_process(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", lora.CASES["plain"].checkpoint)
    write_tokenizer(base, lora.CASES["plain"].checkpoint.vocab_size, "{{ messages[0].content }}")
    adapter = lora.write_adapter("all_linear", tmp_path / "adapter")
    chosen = settings(base, lora={"other": str(adapter)})
    there, here = await open_model(chosen), load(chosen)
    await here.engine.start()
    try:
        (variant,) = there.variants
        assert (variant.name, variant.parent) == ("other", "base")
        assert variant.engine is there.engine
        assert variant.tokenizer is there.tokenizer
        assert variant.fingerprint == here.variants[0].fingerprint
        assert await answer(variant) == await answer(here.variants[0])
    finally:
        await there.engine.close()
        await here.engine.close()


async def test_what_is_wrong_with_a_model_is_said_as_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        await open_model(settings(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="--context is 4096"):
        await open_model(settings(write_directory(tmp_path / "Tiny-Random"), context=4096))


async def test_a_scripted_model_needs_no_process() -> None:
    model = await open_model(Settings(engine="scripted"))
    assert type(model.engine) is type(load(Settings(engine="scripted")).engine)
    assert replace(model, created=0).name == "scripted"
    await model.engine.close()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("arriero.app.opening, arriero.app.loading, arriero.runners.onnx.load", "fastapi starlette uvicorn typer"),
        ("arriero.app.opening, arriero.app.loading, arriero.runners.native", "numba llvmlite onnx onnxruntime"),
        ("arriero.app.child, arriero.app.web, arriero.cli.serve", "onnxruntime onnx numba fastapi"),
        ("arriero.app.tracing, arriero.app.web, arriero.cli.serve", "opentelemetry.sdk opentelemetry.exporter"),
    ],
)
def test_neither_half_imports_what_is_the_other_s(ours: str, theirs: str) -> None:
    program = f"import sys, {ours}\nassert not sys.modules.keys() & set({theirs!r}.split())"
    subprocess.run([sys.executable, "-c", program], check=True)
