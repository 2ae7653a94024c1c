"""The engine with a real runner against transformers' `generate`: the same tokens under every kind of search."""

import asyncio
import json

import pytest

from arriero.core import Finished, Token
from arriero.engine.local import LocalEngine
from arriero.runners.onnx import load_runner
from references import generations, tiny_models

REFERENCE = json.loads(generations.FILE.read_text())


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Those of all requests of all settings, asked all at once."""

    def runner():
        return load_runner(
            tiny_models.random_checkpoint(generations.CONFIG),
            weights="fp32",
            slots=16,
            context=generations.CONFIG.context,
            threads=1,
            cache=tmp_path_factory.mktemp("conversion"),
        )

    async def ask_all():
        engine = LocalEngine(runner, constraints=lambda _: None, max_queue=10_000, chunk=50)
        await engine.start()
        try:
            names = {name: generations.requests(settings) for name, settings in generations.SETTINGS.items()}
            asked = [(name, answer(engine, request)) for name, requests in names.items() for request in requests]
            got = await asyncio.gather(*(answering for _, answering in asked))
        finally:
            await engine.close()
        answers = {name: [] for name in names}
        for (name, _), events in zip(asked, got, strict=True):
            answers[name].append(events)
        return answers

    return asyncio.run(ask_all())


async def answer(engine, request):
    return [event async for events in engine.generate(request) for event in events]


@pytest.mark.parametrize("name", generations.SETTINGS)
def test_answers_are_those_of_transformers(name, answers):
    requests = generations.requests(generations.SETTINGS[name])
    for request, events, expected in zip(requests, answers[name], REFERENCE[name], strict=True):
        for index, tokens in enumerate(expected):
            own = [event for event in events if event.index == index]
            taken = [Token(index, token) for token in tokens]
            ending = taken.pop() if tokens[-1] in request.end_token_ids else None
            assert own == [*taken, Finished(index, "stop" if ending else "length", len(tokens), ending=ending)]


def test_the_reference_shows_what_it_is_for():
    """Answers that end by themselves and that do not, and settings that change them."""
    ended = [
        answers[0][-1] in request.end_token_ids
        for name, settings in generations.SETTINGS.items()
        for request, answers in zip(generations.requests(settings), REFERENCE[name], strict=True)
    ]
    assert 50 < sum(ended) < 500
    kinds = [json.dumps(REFERENCE[name]) for name in generations.SETTINGS]
    assert len(set(kinds)) >= len(kinds) - 1  # never to stop early makes no difference to these answers
