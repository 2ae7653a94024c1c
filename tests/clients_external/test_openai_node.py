"""npm's `openai`."""

import json
from collections.abc import Callable
from typing import Any


def test_chat_completions_models_streams_and_errors(live: Any, node_openai: Callable[[str], str]) -> None:
    program = f"""
import OpenAI from "openai";
const client = new OpenAI({{ baseURL: "{live.url}/v1", apiKey: "EMPTY", maxRetries: 0 }});
const messages = [{{ role: "user", content: "What is your name?" }}];
const said = {{}};

const chat = await client.chat.completions.create({{ model: "scripted", messages }});
said.chat = chat.choices[0].message.content;
said.total = chat.usage.total_tokens - chat.usage.prompt_tokens - chat.usage.completion_tokens;
said.id = chat._request_id.slice(0, 4);

said.streamed = "";
const wish = {{ stream: true, stream_options: {{ include_usage: true }} }};
const stream = await client.chat.completions.create({{ model: "scripted", messages, ...wish }});
for await (const chunk of stream) {{
  said.streamed += chunk.choices[0]?.delta?.content ?? "";
  said.usage = chunk.usage !== null;
}}
const gathered = client.chat.completions.stream({{ model: "scripted", messages }});
said.gathered = await gathered.finalContent();

const text = await client.completions.create({{ model: "scripted", prompt: "Once upon a time", n: 2 }});
said.text = text.choices.map((choice) => choice.text);
said.models = (await client.models.list()).data.map((model) => model.id);
said.model = (await client.models.retrieve("scripted")).id;

for (const [name, wrong] of [["unknown", {{ model: "gpt-9" }}], ["refused", {{ model: "scripted", tools: [{{}}] }}]]) {{
  try {{
    await client.chat.completions.create({{ messages, ...wrong }});
  }} catch (error) {{
    said[name] = [error.constructor.name, error.code, error.param];
  }}
}}

const left = await client.chat.completions.create({{ model: "scripted", messages, stream: true }});
for await (const chunk of left) break;
console.log(JSON.stringify(said));
"""
    assert json.loads(node_openai(program)) == {
        "chat": "I am Arriero. 🦙",
        "total": 0,
        "id": "req_",
        "streamed": "I am Arriero. 🦙",
        "usage": True,
        "gathered": "I am Arriero. 🦙",
        "text": [", there was a mule."] * 2,
        "models": ["scripted"],
        "model": "scripted",
        "unknown": ["NotFoundError", "model_not_found", "model"],
        "refused": ["BadRequestError", "unsupported_parameter", "tools"],
    }
