from typing import Any

import pytest


async def tokenize(served: Any, **body: Any) -> Any:
    answer = await served.post("/tokenize", **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_text_has_tokens(served: Any) -> None:
    tokens = served.model.tokenizer.encode("Hé")
    assert await tokenize(served, prompt="Hé") == {
        "count": 3,
        "max_model_len": 32_768,
        "tokens": tokens,
        "token_strs": None,
    }
    assert (await tokenize(served, prompt="Hé", return_token_strs=True))["token_strs"] == ["H", "\ufffd", "\ufffd"]
    assert (await tokenize(served, prompt=""))["tokens"] == []


async def test_a_conversation_has_those_that_chat_sends(served: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert (await tokenize(served, messages=messages))["count"] == 21
    left_out = await tokenize(served, messages=messages, add_generation_prompt=False)
    text = served.model.tokenizer.decode(left_out["tokens"], skip_special_tokens=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"
    goes_on = await tokenize(served, messages=messages, continue_final_message=True)
    assert served.model.tokenizer.decode(goes_on["tokens"]) == "user\nHi"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"self": 1}},
            "chat_tem",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
async def test_what_cannot_be_told_is_refused_by_name(served: Any, path: str, body: Any, param: str) -> None:
    answer = await served.post(path, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


async def test_tokens_have_a_text(served: Any) -> None:
    tokens = served.model.tokenizer.encode("<|im_start|>Hé")
    assert (await served.post("/detokenize", tokens=tokens)).json() == {"prompt": "<|im_start|>Hé"}
    assert (await served.post("/detokenize", tokens=[])).json() == {"prompt": ""}


async def test_unknown_keys_and_models_are_treated_as_elsewhere(served: Any) -> None:
    answer = await served.post("/tokenize", prompt="a", truncate=5)
    assert answer.headers["x-arriero-ignored"] == "truncate"
    assert (await served.post("/detokenize", tokens=[1], model="gpt-9")).status_code == 404


async def test_the_alpaca_profile_needs_no_model(serve: Any) -> None:
    served = await serve(profile="alpaca")
    answer = await served.client.post("/tokenize", json={"messages": "Hi"})
    text = served.model.tokenizer.decode(answer.json()["tokens"])
    assert text.endswith("### Instruction:\nHi\n\n### Response: ")
