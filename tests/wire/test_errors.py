import orjson
import pytest

from arriero.errors import (
    ArrieroError,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    EngineClosed,
    EngineDied,
    Forbidden,
    InvalidKey,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    RateLimited,
    StoreError,
    UnknownModel,
    UnsupportedModel,
)
from arriero.wire.errors import TABLE, BodyTooLarge, UnsupportedMediaType, error_answer


def leaves(kind: type[ArrieroError]) -> set[type[ArrieroError]]:
    # Classes that tests define, or commands for themselves, go over no wire.
    modules = {each: each.__module__ for each in kind.__subclasses__()}
    children = [each for each, name in modules.items() if name.startswith("arriero.") and ".cli." not in name]
    return set().union(*map(leaves, children)) if children else {kind}


def test_every_leaf_of_the_error_tree_has_its_row() -> None:
    assert leaves(ArrieroError) <= TABLE.keys()


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (InvalidRequest("no", param="messages.0.role"), 400, "invalid_request_error", "messages.0.role", None),
        (InvalidRequest("no", param="n", code="invalid_type"), 400, "invalid_request_error", "n", "invalid_type"),
        (UnknownModel("gpt-9"), 404, "invalid_request_error", "model", "model_not_found"),
        (ContextOverflow("no", param="prompt"), 400, "invalid_request_error", "prompt", "context_length_exceeded"),
        (BodyTooLarge(10), 413, "invalid_request_error", None, "body_too_large"),
        (UnsupportedMediaType("no"), 415, "invalid_request_error", None, "unsupported_media_type"),
        (Overloaded("no", retry_after=2.5), 503, "server_error", None, "overloaded"),
        (InvalidKey("no"), 401, "invalid_request_error", None, "invalid_api_key"),
        (Forbidden("no"), 403, "invalid_request_error", None, "insufficient_permissions"),
        (RateLimited("no", retry_after=1, kind="tokens"), 429, "tokens", None, "rate_limit_exceeded"),
        (
            RateLimited("no", retry_after=1, kind="insufficient_quota"),
            429,
            "insufficient_quota",
            None,
            "insufficient_quota",
        ),
        (DeadlineExceeded("no"), 504, "server_error", None, "deadline_exceeded"),
        (StoreError("no"), 500, "server_error", None, "store_error"),
        (EngineClosed(), 503, "server_error", None, "overloaded"),
        (EngineDied("no"), 500, "server_error", None, "engine_died"),
        (ModelLoadError("no"), 500, "server_error", None, "model_load_error"),
        (UnsupportedModel("no"), 500, "server_error", None, "unsupported_model"),
        (ConfigError("no"), 500, "server_error", None, "config_error"),
    ],
)
def test_an_error_has_the_status_and_the_fields_of_the_reference(
    error: ArrieroError, status: int, kind: str, param: str | None, code: str | None
) -> None:
    answer = error_answer(error)
    assert answer.status == status
    assert orjson.loads(answer.body) == {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (2.1, "3")])
def test_overload_says_when_to_come_back_in_whole_seconds(seconds: float, header: str) -> None:
    assert error_answer(Overloaded("full", retry_after=seconds)).headers == {"retry-after": header}


def test_a_child_without_a_row_goes_by_its_parent() -> None:
    class Peculiar(UnknownModel):
        pass

    assert error_answer(Peculiar("x")).status == 404


def test_an_error_that_nobody_raised_on_purpose_tells_no_details() -> None:
    answer = error_answer(RuntimeError("password"))
    assert answer.status == 500
    assert b"password" not in answer.body
    assert orjson.loads(answer.body)["error"]["type"] == "server_error"
