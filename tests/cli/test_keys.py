"""`arriero keys` and `arriero usage`, in this process."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arriero.cli.commands import app
from arriero.core import Meter
from arriero.errors import ArrieroError
from arriero.store.keys import hash_of
from arriero.store.ledger import Ledger


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "arriero.db"


@pytest.fixture
def run(store: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--store", str(store)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_a_key_from_its_making_to_its_end(run: Callable[..., str], store: Path) -> None:
    limits = ("--requests-per-minute", "10", "--tokens-per-minute", "1000", "--concurrent", "2", "--weight", "2")
    scope = ("--model", "smol*", "--model", "other", "--endpoint", "/v1/chat/*", "--budget", "5000/day")
    text = run("keys", "create", "alice", *limits, *scope, "--expires", "30d").strip()
    facts = json.loads(run("keys", "show", "alice", "--json"))
    assert text.startswith(f"sk-arriero-{facts['id']}-")
    assert facts["models"] == ["smol*", "other"]
    assert facts["endpoints"] == ["chat/*"]
    assert (facts["budget"], facts["weight"], facts["admin"], facts["state"]) == ("5000/day", 2.0, False, "good")
    assert text not in run("keys", "list") + run("keys", "show", "alice")
    ledger = Ledger(store)
    ledger.start()
    assert [key.hash for key in ledger.keys] == [hash_of(text.encode())]
    ledger.close()
    rotated = json.loads(run("keys", "rotate", "alice", "--json"))
    assert rotated["key"] != text
    run("keys", "revoke", facts["id"])
    assert [key["state"] for key in json.loads(run("keys", "list", "--json"))] == ["revoked"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "two\nlines"), "printable"),
        (("create", ""), "printable"),
        (("create", "a", "--budget", "lots"), "--budget"),
        (("create", "a", "--budget", "5/year"), "--budget"),
        (("create", "a", "--expires", "soon"), "--expires"),
        (("create", "a", "--expires", "2020-01-31"), "--expires is '2020-01-31', which is over"),
        (("create", "a", "--model", ""), "--model is empty"),
        (("create", "a", "--endpoint", "/"), "--endpoint is empty"),
        (("show", "nobody"), "no key 'nobody'"),
        (("revoke", "nobody"), "no key 'nobody'"),
    ],
)
def test_what_is_wrong_is_named(run: Callable[..., str], arguments: tuple[str, ...], message: str) -> None:
    run("keys", "create", "somebody")
    with pytest.raises(ArrieroError, match=message):
        run("keys", *arguments)


def test_the_list_tells_what_sets_a_key_apart(run: Callable[..., str]) -> None:
    run("keys", "create", "root", "--admin", "--expires", "2999-12-31")
    run("keys", "create", "prometheus", "--endpoint", "metrics", "--weight", "2", "--concurrent", "3")
    root, prometheus = (line.split() for line in run("keys", "list").splitlines()[3:5])
    assert root[1:] == ["root", "good", "*", "*", "admin,", "until", "2999-12-31"]
    assert prometheus[1:] == ["prometheus", "good", "*", "metrics", "3", "at", "once,", "weight", "2"]


@pytest.mark.parametrize("command", [("keys", "list"), ("keys", "show", "a"), ("keys", "revoke", "a"), ("usage",)])
def test_a_store_that_is_not_there_is_named_and_not_made(
    command: tuple[str, ...], run: Callable[..., str], store: Path
) -> None:
    with pytest.raises(ArrieroError, match=f"there is no store {store}"):
        run(*command)
    assert not store.exists()


def test_usage_as_table_csv_and_json(run: Callable[..., str], store: Path) -> None:
    run("keys", "create", "alice")
    alice = json.loads(run("keys", "show", "alice", "--json"))["id"]
    ledger = Ledger(store)
    for key in (alice, ""):
        ledger.end(ledger.begin(key, Meter(model="m", endpoint="/v1/completions", prompt_tokens=1234)))
    ledger._look()
    ledger.close()
    rows = json.loads(run("usage", "--format", "json"))
    assert [row["key"] for row in rows] == ["", alice]
    assert rows[0]["total_tokens"] == 1234
    table = csv.DictReader(io.StringIO(run("usage", "--format", "csv")))
    assert [row["prompt_tokens"] for row in table] == ["1234", "1234"]
    assert json.loads(run("usage", "--format", "json", "--key", "alice", "--since", rows[0]["day"])) == rows[1:]
    assert json.loads(run("usage", "--format", "json", "--until", "2020-01-01")) == []
    assert "2,468" in run("usage")
    with pytest.raises(ArrieroError, match="--since"):
        run("usage", "--since", "yesterday")
