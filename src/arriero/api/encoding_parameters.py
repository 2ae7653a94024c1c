"""Parameters of the requests for vectors and scores, declared as `arriero.api.parameters` does for answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from arriero.api.objects import JSONObject, ignored, marks
from arriero.api.parameters import Deadline, Parameter, Priority, TextsOrTokens, one_fault


class EncodingParameters(JSONObject):
    """What the bodies have in common."""

    model: str = Field(description="Id of the model. Left out: the server's first.")
    truncate: bool = Field(
        False, description="Cut what is longer than the model's context. Left out: refuse it. An extension."
    )
    user: Annotated[str | None, ignored("")] = Field(None, description="Any name for the end user.")
    priority: Priority = 0
    deadline: Deadline = Field(
        None,
        description="Seconds in which the answer must be complete. After them it is given up, and the error is 504 "
        "`deadline_exceeded`. An extension.",
    )


class EmbeddingParameters(EncodingParameters):
    """The body of `POST /v1/embeddings`."""

    input: Annotated[TextsOrTokens, one_fault("input")] = Field(
        description="One input or up to 2048, each as text or as token ids."
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Vectors as arrays of numbers, or as little-endian float32 in base64."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="Give only so many elements of each vector, divided by their length; at most the model's width.",
    )
    prompt_name: str | None = Field(
        None, description="Put the model's prompt of this name before each text. An extension."
    )
    input_type: Literal["query", "document", "passage"] | None = Field(
        None, description="Put the model's prompt for such texts before each, if it has one. An extension."
    )


class TextDocument(JSONObject):
    """A document of a rerank request."""

    text: str = Field(description="What it says.")


class RerankParameters(EncodingParameters):
    """The body of `POST /v1/rerank`."""

    query: str = Field(min_length=1, description="What the documents are compared with.")
    documents: Annotated[list[str | TextDocument], Field(fail_fast=True)] = Field(
        min_length=1, max_length=2048, description='Texts, or objects with a "text".'
    )
    top_n: int | None = Field(None, ge=1, description="Return only so many of the most relevant; left out: all.")
    return_documents: bool = Field(False, description="Give the texts back beside their scores.")


Texts = str | Annotated[list[str], Field(min_length=1, max_length=2048, fail_fast=True)]


class ScoreParameters(EncodingParameters):
    """The body of `POST /v1/score`, as in vLLM."""

    text_1: Texts = Field(description="A text, or as many as `text_2` has.")
    text_2: Texts = Field(description="A text, or several, each compared with its counterpart or with the one.")


ENDPOINTS: Mapping[str, type[JSONObject]] = {
    "embeddings": EmbeddingParameters,
    "rerank": RerankParameters,
    "score": ScoreParameters,
}


def encoding_table(endpoint: str) -> Iterator[Parameter]:
    """Every parameter of one of `ENDPOINTS`, in the order of its declaration."""
    model = ENDPOINTS[endpoint]
    for name, field in model.model_fields.items():
        yield Parameter(name, (endpoint,), field, marks(model).get(name))
