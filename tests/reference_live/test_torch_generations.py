"""Encoder-decoders behind the engine against transformers' `generate`: the same sequences, asked all at once."""

import asyncio
from functools import partial

import numpy as np
import pytest
import torch

from arriero.core import Beams, GenerationRequest, Sampling, Token
from arriero.engine.local import LocalEngine
from arriero.runners.torch import load_runner
from reference_live.torch_models import VOCABULARY, save

MAX_TOKENS = 9
SETTINGS = {
    "greedy": {},
    "repetition penalty": {"repetition_penalty": 1.5},
    "no repeated pair": {"no_repeat_ngram_size": 2, "repetition_penalty": 0.7},
    "at least six": {"min_new_tokens": 6},
    "beams": {"num_beams": 4},
    "beams, length 2": {"num_beams": 4, "length_penalty": 2.0},
    "beams, early, penalty": {"num_beams": 4, "early_stopping": True, "repetition_penalty": 1.4},
    "beams, no repeated token": {"num_beams": 3, "no_repeat_ngram_size": 1, "length_penalty": 0.6},
}
CASES = {"t5": {}, "bart": {}, "marian": {}, "m2m_100": {"forced_bos_token_id": 7}}
"""Families, and what their generation settings say."""
_BEAMS = ("num_beams", "length_penalty", "early_stopping")


def prompts():
    generator = np.random.default_rng(5)
    return [generator.integers(3, VOCABULARY, length).tolist() for length in (1, 4, 9, 25, 6, 13)]


def ends(prompt):
    """A fourth of the vocabulary, so that answers end by themselves."""
    return [prompt[0], *range(20, 50)]


def request_of(prompt, settings):
    beams = {name: settings[name] for name in _BEAMS if name in settings}
    sampling = {name: settings[name] for name in settings if name not in (*_BEAMS, "min_new_tokens")}
    return GenerationRequest(
        id="r",
        prompts=(tuple(prompt),),
        max_tokens=MAX_TOKENS,
        min_tokens=settings.get("min_new_tokens", 0),
        num_choices=2 if beams else 1,
        sampling=Sampling(temperature=0.0, **sampling),
        end_token_ids=frozenset(ends(prompt)),
        beams=Beams(**beams) if beams else None,
    )


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model, and the engine's answers to every request of every setting."""
    directory = tmp_path_factory.mktemp(request.param)
    model = save(request.param, directory, spread=0.4)
    for name, value in CASES[request.param].items():
        setattr(model.generation_config, name, value)
    model.generation_config.save_pretrained(directory)
    runner = load_runner(directory, slots=24, threads=1).runner

    async def ask_all():
        engine = LocalEngine(lambda: runner, constraints=lambda _: None, max_queue=1000)
        await engine.start()
        asked = [(name, prompt) for name in SETTINGS for prompt in prompts()]
        try:
            answers = await asyncio.gather(*(answer(engine, request_of(p, SETTINGS[name])) for name, p in asked))
        finally:
            await engine.close()
        by_name = {name: [] for name in SETTINGS}
        for (name, _), events in zip(asked, answers, strict=True):
            by_name[name].append(events)
        return by_name

    return model, asyncio.run(ask_all())


async def answer(engine, request):
    return [event async for events in engine.generate(request) for event in events]


@torch.inference_mode()
def expected(model, prompt, settings):
    """`generate`'s answers without what they begin with, their end tokens and padding."""
    num_forced = int(model.generation_config.forced_bos_token_id is not None)
    num_answers = 2 if "num_beams" in settings else 1
    if "min_new_tokens" in settings:
        settings = {**settings, "min_new_tokens": settings["min_new_tokens"] + num_forced}
    generated = model.generate(
        torch.tensor([prompt]),
        **settings,
        do_sample=False,
        eos_token_id=ends(prompt),
        pad_token_id=0,
        max_new_tokens=MAX_TOKENS + num_forced,
        num_return_sequences=num_answers,
    )
    answers = []
    for row in generated.tolist():
        tokens = row[1 + num_forced :]
        ended = next((place for place, token in enumerate(tokens) if token in ends(prompt)), len(tokens))
        answers.append(tokens[:ended])
    return answers


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_transformers(case, name):
    model, answers = case
    for prompt, events in zip(prompts(), answers[name], strict=True):
        wanted = expected(model, prompt, SETTINGS[name])
        own = partial(tokens_of, events)
        assert [own(index) for index in range(len(wanted))] == wanted


def tokens_of(events, index):
    return [event.id for event in events if isinstance(event, Token) and event.index == index]


def test_answers_differ_and_some_end_by_themselves(case):
    _, answers = case
    lengths = {len(tokens_of(events, 0)) for some in answers.values() for events in some}
    assert len(lengths) > 1
    assert len({str(answers[name]) for name in SETTINGS}) >= len(SETTINGS) - 1
