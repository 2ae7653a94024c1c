import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from arriero.api.objects import Refused
from arriero.api.parameters import table


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


async def test_the_document_describes_every_endpoint(served: Any) -> None:
    document = (await served.client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/tokenize",
        "/detokenize",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/usage",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/admin/models",
        "/admin/models/{model}/load",
        "/admin/models/{model}/unload",
    }
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatParameters")
    assert chat["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert {"400", "401", "403", "404", "413", "415", "429", "500", "503", "504"} <= chat["responses"].keys()
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_the_examples_work(served: Any) -> None:
    document = (await served.client.get("/openapi.json")).json()
    posts = [path for path, methods in document["paths"].items() if "requestBody" in methods.get("post", {})]
    assert len(posts) == 7
    for path in posts:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert (await served.client.post(path, json=body)).status_code == 200


async def test_every_reference_in_the_document_leads_somewhere(served: Any) -> None:
    document = (await served.client.get("/openapi.json")).json()
    targets = set(references(document))
    assert targets
    for target in targets:
        place = document
        for part in target.removeprefix("#/").split("/"):
            place = place[part]
    assert (await served.client.get("/openapi.json")).json() == document


async def test_every_parameter_is_described(served: Any) -> None:
    schemas = (await served.client.get("/openapi.json")).json()["components"]["schemas"]
    for parameter in table():
        name = "ChatParameters" if "chat/completions" in parameter.endpoints else "CompletionParameters"
        description = schemas[name]["properties"][parameter.name]["description"]
        assert description.startswith(parameter.field.description)
        assert ("Refused" in description) == isinstance(parameter.mark, Refused)


async def test_the_page_takes_nothing_from_elsewhere(served: Any) -> None:
    page = await served.client.get("/docs")
    assert page.status_code == 200
    assert "http" not in re.sub(r"https?://arriero", "", page.text)
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        asset = await served.client.get(f"/{link}")
        assert asset.status_code == 200, link
        assert len(asset.content) > 500
    assert "openapi.json" in page.text


def test_the_page_of_parameters_is_up_to_date() -> None:
    subprocess.run([sys.executable, "scripts/parameters_page.py", "--check"], check=True)
