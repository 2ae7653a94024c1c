"""Write docs/parameters.md from the declarations of the parameters; with --check, only tell if it is up to date."""

import json
import sys
from pathlib import Path
from typing import Any

from arriero.api.encoding_parameters import ENDPOINTS, encoding_table
from arriero.api.limits import LIMITED
from arriero.api.objects import effect
from arriero.api.parameters import ChatParameters, CompletionParameters, Parameter, StreamOptions, table
from arriero.api.profile import ALPACA, OPENAI, Profile
from arriero.config_description import variable

PAGE = Path(__file__).parents[1] / "docs" / "parameters.md"
PLURALS = {
    "string": "strings",
    "integer": "integers",
    "object": "objects",
    "array of integers": "arrays of integers",
}
MODELS = {"chat/completions": ChatParameters, "completions": CompletionParameters, **ENDPOINTS}

HEAD = """\
# Parameters of requests

Made from the code by `make parameters`. Every parameter of the OpenAI reference is here, and extensions that vLLM,
LangPort and transformers have.

- **Honoured**: does what its row says, alone or with others, streamed or not, the same alone or in a crowd.
- **Refused**: 400 with the parameter's name in `error.param`, but for null and the values in its row.
- **Without effect**: tolerated, and named in the response header `x-arriero-ignored`, as are keys that nobody knows.

Null means the same as leaving a parameter out. A value out of range is 400 with `error.param`. Where a range ends at
a name in capitals, that is a setting of the server's (a variable, or a flag, or a key of the TOML file).

The logits of the next token go through repetition_penalty, no_repeat_ngram_size, presence_penalty and
frequency_penalty, logit_bias, min_tokens; then temperature, top_k, top_p, min_p, typical_p. Log-probabilities are
those of the model itself, before all that. An answer of `best_of` without any token counts as the worst. `suffix`
leaves out the Alpaca profile's instruction template. With `logprobs` an Alpaca answer keeps the white space around it.

`usage.prompt_tokens` counts each prompt once, however many answers it has. `prompt_tokens_details.cached_tokens` are
those of them that were not computed for this request, because an earlier one or another of its prompts began alike;
that its answers share a prompt makes none. `completion_tokens` count every answer that was generated, also those that
`best_of` leaves out, each with the end of sequence that it ended with.

"""


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        return "object"
    if "anyOf" in schema:
        kinds = [type_of(each) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        inner = type_of(schema.get("items", {}))
        most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"array of {PLURALS[inner]}{most}" if inner in PLURALS else "array"
    return str(schema.get("type", "any value"))


def range_of(name: str, schema: dict[str, Any]) -> str:
    """The bounds of a number, or nothing."""
    numbers = [each for each in schema.get("anyOf", [schema]) if each.get("type") in ("integer", "number")]
    if not numbers:
        return ""
    bounds = numbers[0]
    low = f"above {bounds['exclusiveMinimum']}" if "exclusiveMinimum" in bounds else f"from {bounds.get('minimum')}"
    high = f"`{variable(LIMITED[name])}`" if name in LIMITED else bounds.get("maximum")
    if "maximum" in bounds and name in LIMITED:
        high = f"{bounds['maximum']} and {high}"
    return f", {low}" if high is None else f", {low} to {high}"


def default_of(parameter: Parameter, profile: Profile) -> str:
    """What leaving it out means, by endpoint where they differ."""
    values = {}
    for endpoint in parameter.endpoints:
        chat = endpoint == "chat/completions"
        others = profile.chat_defaults if chat else profile.completion_defaults
        value = others.get(parameter.name, parameter.field.get_default(call_default_factory=True))
        if parameter.name == "max_tokens":
            value = profile.chat_tokens if chat else profile.completion_tokens
        if parameter.field.is_required():
            value = None
        values[endpoint] = "" if value is None else f"`{json.dumps(value)}`"
    if parameter.name == "model":
        return "the server's" if profile.alpaca or set(parameter.endpoints) <= ENDPOINTS.keys() else "required"
    if parameter.field.is_required():
        return "required"
    if len(set(values.values())) == 1:
        return values.popitem()[1]
    return ", ".join(f"{endpoint}: {value}" for endpoint, value in values.items())


def row(parameter: Parameter) -> str:
    name = parameter.name
    model = MODELS[parameter.endpoints[0]]
    schema = model.model_json_schema()["properties"][name]
    kind = type_of(schema) + range_of(name, schema)
    where = "both" if len(parameter.endpoints) == 2 else parameter.endpoints[0]
    status = "Honoured."
    if parameter.mark:
        status = effect(parameter.mark)
    cells = [
        f"`{name}`",
        where,
        kind,
        default_of(parameter, OPENAI),
        default_of(parameter, ALPACA),
        parameter.field.description or "",
        status,
    ]
    if parameter.endpoints[0] in ENDPOINTS:
        cells = [cells[0], cells[2], cells[3], *cells[5:]]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    rows = [
        "| Parameter | Endpoints | Type and range | Default | In profile alpaca | Meaning | Here |",
        "|" + "---|" * 7,
    ]
    rows += [row(parameter) for parameter in table()]
    encodings = []
    for endpoint in ENDPOINTS:
        encodings += [f"\n## `POST /v1/{endpoint}`\n", "| Parameter | Type and range | Default | Meaning | Here |"]
        encodings += ["|" + "---|" * 5, *(row(parameter) for parameter in encoding_table(endpoint))]
    options = [f"- `{name}`: {field.description}" for name, field in StreamOptions.model_fields.items()]
    options[1] += " Refused unless it is null, false."
    return HEAD + "\n".join(rows) + "\n\n## `stream_options`\n\n" + "\n".join([*options, *encodings]) + "\n"


def main() -> None:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != page():
        sys.exit("docs/parameters.md is not up to date: make parameters")


if __name__ == "__main__":
    main()
