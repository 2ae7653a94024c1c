from typing import Any


async def test_a_server_at_work_is_well_and_counts(served: Any) -> None:
    await served.complete("Hi")
    answer = await served.client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    counts = answer.json()["models"]["scripted"]
    assert counts["prompt_tokens"] == 2
    assert counts["generated_tokens"] == 3
    assert counts["steps"] >= 3
    assert (counts["running"], counts["waiting"], counts["reserved_tokens"]) == (0, 0, 0)
    assert counts["num_slots"] == 64


async def test_an_engine_that_died_makes_the_server_ill(served: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("arriero.runners.scripted.ScriptedRunner.step", None)
    assert (await served.complete("Hi")).status_code == 500
    answer = await served.client.get("/health")
    assert answer.status_code == 503
    assert answer.json() == {"status": "failed", "models": {"scripted": None}}
