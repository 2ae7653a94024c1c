"""openai-python before 1.0, which much old code still uses."""

import json
from collections.abc import Callable
from typing import Any

LANGPORTS_DOCUMENTATION = """\
import openai
openai.api_key = "EMPTY" # Not support yet
openai.api_base = "http://localhost:8000/v1"

model = "vicuna-7b-v1.1"
prompt = "Once upon a time"

# create a completion
completion = openai.Completion.create(model=model, prompt=prompt, max_tokens=64)
# print the completion
print(prompt + completion.choices[0].text)

# create a chat completion
completion = openai.ChatCompletion.create(
  model=model,
  messages=[{"role": "user", "content": "Hello! What is your name?"}]
)
# print the completion
print(completion.choices[0].message.content)
"""


def test_the_program_of_langports_documentation(live: Any, old_openai: Callable[[str], str]) -> None:
    """As printed there, with this server's address and model."""
    program = LANGPORTS_DOCUMENTATION.replace("http://localhost:8000", live.url).replace("vicuna-7b-v1.1", "scripted")
    assert old_openai(program) == "Once upon a time, there was a mule.\nI am Arriero. 🦙\n"


def test_streams_models_and_errors(live: Any, old_openai: Callable[[str], str]) -> None:
    program = f"""
import json, openai
openai.api_key, openai.api_base = "EMPTY", "{live.url}/v1"
messages = [{{"role": "user", "content": "What is your name?"}}]
chat = openai.ChatCompletion.create(model="scripted", messages=messages, stream=True)
text = openai.Completion.create(model="scripted", prompt="Once upon a time", stream=True)
said = {{
    "chat": "".join(chunk.choices[0].delta.get("content", "") for chunk in chat),
    "text": "".join(chunk.choices[0].text for chunk in text),
    "models": [model.id for model in openai.Model.list().data],
    "model": openai.Model.retrieve("scripted").id,
}}
for name, wrong in (("unknown", {{"model": "gpt-9"}}), ("refused", {{"model": "scripted", "functions": [{{}}]}})):
    try:
        openai.ChatCompletion.create(messages=messages, **wrong)
    except openai.error.InvalidRequestError as error:
        said[name] = error.param
print(json.dumps(said))
"""
    assert json.loads(old_openai(program)) == {
        "chat": "I am Arriero. 🦙",
        "text": ", there was a mule.",
        "models": ["scripted"],
        "model": "scripted",
        "unknown": "model",
        "refused": "functions",
    }
