import logging
from typing import Any

import pytest

from arriero.core import Caller, Meter
from arriero.gateway.access import log_access
from arriero.gateway.entrance import Exchange
from arriero.wire.scope import set_caller


def logged(caplog: Any, path: bytes = b"/v1/models", endpoint: str = "/v1/models", caller: str = "") -> dict[str, Any]:
    scope: dict[str, Any] = {"method": "GET", "raw_path": path, "client": ("192.0.2.1", 1234)}
    set_caller(scope, Caller(id=caller))
    with caplog.at_level(logging.DEBUG, "arriero.access"):
        log_access(Exchange("req_1", scope, Meter(endpoint=endpoint), 1.0, 1.5, 200, complete=True))
    fields: dict[str, Any] = caplog.records[-1].fields
    return fields


def test_a_line_names_the_key_by_its_public_id(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, caller="k_42") == {
        "id": "req_1",
        "method": "GET",
        "route": "/v1/models",
        "status": 200,
        "ms": 500.0,
        "key": "k_42",
        "client": "192.0.2.1",
    }
    assert "key" not in logged(caplog)


def test_a_path_that_is_no_route_is_cut_and_cannot_break_the_line(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, b"/\xff" + b"x" * 1000, "")["route"] == "/\\xff" + "x" * 198


def test_probes_are_shown_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    logged(caplog, endpoint="/health/live")
    assert caplog.records[-1].levelno == logging.DEBUG
