"""The files of deploy/ name only what there is."""

import configparser
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from arriero.config_sources import load
from arriero.core import EngineStats, Meter
from arriero.gateway.entrance import Exchange
from arriero.gateway.metrics import Metrics, ModelState, ServerState, UpstreamState

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/arriero.json").read_text())


def samples() -> dict[str, set[str]]:
    """Every sample's name that `/metrics` shows, with its labels, after one request of each kind."""
    stats = EngineStats()
    state = ServerState(
        ready=True,
        num_running=0,
        lag=0,
        num_tasks=1,
        models=[ModelState(name="a", state="ready", stats=stats, num_bytes=1)],
        upstreams=[UpstreamState(model="b", server="c", circuit="closed", running=0, requests=0, failures=0)],
    )
    metrics = Metrics(lambda: state)
    meter = Meter(
        endpoint="/v1/completions",
        model="a",
        completion_tokens=2,
        first_token_at=1.0,
        queue_seconds=1.0,
        error="EngineDied",
    )
    metrics.count(Exchange("id", {}, meter, 0.0, 2.0, 200, complete=True))
    families: Iterator[Metric] = text_string_to_metric_families(metrics.render("")[0].decode())
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions(value: Any) -> Iterator[str]:
    """Every query of the dashboard."""
    if isinstance(value, dict):
        yield from (each for name in ("expr", "query") if isinstance(each := value.get(name), str))
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from expressions(each)


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    known, used = samples(), set()
    for expression in expressions(DASHBOARD):
        for name, labels in re.findall(r"\b((?:arriero|process)_\w+)(?:\{([^}]*)\})?", expression):
            assert name in known, expression
            used.add(name)
            given = set(re.findall(r"(\w+)\s*=", labels)) - {"job", "instance"}
            assert given <= known[name], expression
        for by in re.findall(r"by \(([^)]*)\)", expression):
            assert set(by.split(", ")) <= {"le", "status", "endpoint", "error", "model", "server", "state"}
    hidden = {
        each for each in known if each.startswith("arriero") and not each.endswith(("_sum", "_count", "_created"))
    }
    assert hidden - used == {"arriero_build_info"}


def test_the_dashboard_is_one() -> None:
    panels = DASHBOARD["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    places = {(x, y) for each in panels for x, y in cells(each["gridPos"])}
    assert len(places) == sum(each["gridPos"]["w"] * each["gridPos"]["h"] for each in panels), "two panels overlap"


def cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            assert x < 24
            yield x, y


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "arriero.service"])
def test_settings_that_are_given_there_are(name: str) -> None:
    text = (DEPLOY / name).read_text()
    pairs = dict(re.findall(r"\b(ARRIERO_[A-Z_]+)(?:=|: )\"?([^\s\"\\]+)", text))
    pairs.pop("ARRIERO_CONFIG", None)
    assert len(pairs) > 1
    load({}, pairs)


def test_the_unit_is_well_formed() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "arriero.service")
    assert unit.sections() == ["Unit", "Service", "Install"]
    assert float(unit["Service"]["TimeoutStopSec"]) > load({}, {}).grace
    assert unit["Service"]["KillMode"] == "mixed"


def test_the_image_takes_what_the_package_needs_and_no_more() -> None:
    wanted = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M))
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M))
    assert wanted == {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in wanted)


# Compose


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SCRAPE = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """What is mounted, by where it is seen."""
    return {place: source for source, place in (each.split(":")[:2] for each in service.get("volumes", []))}


def test_what_services_use_is_declared_and_what_is_declared_is_used() -> None:
    services = COMPOSE["services"].values()
    named = {source for each in services for source in mounts(each).values() if not source.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    assert {each["source"] for service in services for each in service.get("configs", [])} == set(COMPOSE["configs"])
    assert {each for service in services for each in service.get("secrets", [])} == set(COMPOSE["secrets"])
    assert all(set(each.get("depends_on", [])) <= set(COMPOSE["services"]) for each in services)
    files = [source for each in services for source in mounts(each).values() if source.startswith(".")]
    files += [each["file"] for each in COMPOSE["configs"].values()]
    assert all((DEPLOY / each).exists() for each in files)
    build = COMPOSE["services"]["arriero"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_nothing_is_published_but_to_the_machine_itself() -> None:
    ports = [port for each in COMPOSE["services"].values() for port in each["ports"]]
    assert len(ports) == len(set(ports)) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_running_answers_may_finish_before_the_container_is_killed() -> None:
    service = COMPOSE["services"]["arriero"]
    assert float(service["stop_grace_period"].removesuffix("s")) > float(service["environment"]["ARRIERO_GRACE"])


def test_prometheus_shows_the_key_that_the_server_was_given() -> None:
    arriero, prometheus = COMPOSE["services"]["arriero"], COMPOSE["services"]["prometheus"]
    (secret,) = prometheus["secrets"]
    assert SCRAPE["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    assert COMPOSE["secrets"][secret]["environment"] in arriero["environment"]
    (config,) = prometheus["configs"]
    assert f"--config.file={config['target']}" in prometheus["command"]
    assert SCRAPE["static_configs"][0]["targets"] == [f"arriero:{arriero['ports'][0].split(':')[-1]}"]
    assert SCRAPE.get("metrics_path", "/metrics") == "/metrics"


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    grafana, places = COMPOSE["services"]["grafana"], mounts(COMPOSE["services"]["grafana"])
    provisioning = DEPLOY / places["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    port = COMPOSE["services"]["prometheus"]["ports"][0].split(":")[-1]
    assert source["url"] == f"http://prometheus:{port}"
    (provider,) = yaml.safe_load((provisioning / "dashboards/arriero.yml").read_text())["providers"]
    dashboards = places[provider["options"]["path"]]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (DEPLOY / dashboards / home.name).exists()


def test_a_server_with_a_key_is_found_alive_and_measured(go_live: Callable[..., Any]) -> None:
    """By the image's own command, and as Prometheus is told to ask."""
    live = go_live(api_key="sk-42")
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)
    program, *arguments = json.loads(command.replace("http://127.0.0.1:8000", live.url))
    assert program == "python"
    checked = subprocess.run([sys.executable, *arguments], env=os.environ | {"NO_PROXY": "127.0.0.1"})
    assert checked.returncode == 0
    for headers, status in (({}, 401), ({"authorization": "Bearer sk-42"}, 200)):
        assert httpx.get(f"{live.url}/metrics", headers=headers).status_code == status
        assert httpx.get(f"{live.url}/health/ready", headers=headers).status_code == status
