from dataclasses import replace

import pytest

from arriero.app import load, survey
from arriero.config import Settings
from arriero.errors import ConfigError
from arriero.machine import physical_cores


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(survey, "SECONDS", 0.05)


async def surveyed(**settings):
    given = Settings(engine="scripted", **settings)
    model = load(given)
    await model.engine.start()
    try:
        found = await survey.survey(model)
        return found, {each.name: each for each in survey.choices(given, model)}, model.engine.stats()
    finally:
        await model.engine.close()


async def test_speeds_are_measured_with_the_rows_that_there_are(quick):
    found, _, stats = await surveyed(slots=4, pace=2000)
    assert list(found.decode) == [1, 4]
    assert 0 < found.decode[1] < 2000  # Its pace is what the script allows.
    assert found.decode[1] < found.decode[4] < 8000
    assert found.prefill > 0
    assert found.prompt_tokens == survey.LONG
    assert stats.running == stats.waiting == 0
    assert found.bandwidth > 0
    assert (found.weight_bytes, found.bound) == (0, None)


async def test_a_small_context_gives_a_short_prompt(quick):
    found, _, _ = await surveyed(context=40, slots=2)
    assert found.prompt_tokens == 38
    assert found.decode[1] > 0


async def test_choices_tell_why(quick):
    _, chosen, _ = await surveyed(context=100)
    assert (chosen["engine"].value, chosen["engine"].reason) == ("scripted", "The settings ask for it.")
    assert chosen["threads"].value == str(physical_cores())
    assert chosen["slots"].reason.startswith("The default")
    assert (chosen["token budget"].value, chosen["token budget"].reason) == ("6,400", "All slots may be full.")


async def test_choices_tell_what_was_asked_for(quick):
    _, chosen, _ = await surveyed(slots=3, threads=1, token_budget=5000)
    values = {name: each.value for name, each in chosen.items()}
    assert (values["slots"], values["threads"], values["token budget"]) == ("3", "1", "5,000")
    assert {chosen[name].reason for name in ("slots", "threads", "token budget")} == {"The settings ask for it."}


async def test_memory_bounds_one_answer():
    found = survey.Survey(
        cores=2, free_memory=1, bandwidth=20e9, prompt_tokens=1, prefill=1.0, decode={}, weight_bytes=100_000_000
    )
    assert found.bound == 200


async def test_a_model_that_writes_no_text_is_refused():
    model = load(Settings(engine="scripted"))
    with pytest.raises(ConfigError, match="writes no text"):
        await survey.survey(replace(model, card=replace(model.card, tasks=("embedding",))))
