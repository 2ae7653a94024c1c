"""lm-evaluation-harness with its model type `local-completions`, against what transformers computes."""

import json
from collections.abc import Callable

import pytest

from arriero.config import Settings
from conftest import live_server
from references import loglikelihoods

REFERENCE = json.loads(loglikelihoods.FILE.read_text("utf-8"))
PROGRAM = """
import json, sys
import requests
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

asked = json.load(sys.stdin)


def post(path, **body):
    answer = requests.post(asked["url"] + path, json={"model": asked["model"], **body})
    answer.raise_for_status()
    return answer.json()


class Tokenizer:
    bos_token_id, eos_token_id, eos_token = asked["prefix"], asked["prefix"], None

    def encode(self, text):
        return post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]

    def batch_decode(self, lists):
        return [post("/detokenize", tokens=tokens)["prompt"] for tokens in lists]


def requests_of(kind, arguments):
    return [Instance(kind, {}, tuple(each), place) for place, each in enumerate(arguments)]


said = {}
for options in asked["options"]:
    # The harness would ask a server for its tokenizer without naming a model.
    lm = LocalCompletionsAPI(
        base_url=asked["url"] + "/v1/completions", model=asked["model"], tokenizer_backend=None, **options
    )
    lm.tokenizer, lm.tokenizer_backend = Tokenizer(), "remote"
    lm.tokenized_requests = options.get("tokenized_requests", True)
    until = {"until": asked["until"], "max_gen_toks": asked["num_tokens"]}
    said[json.dumps(options)] = {
        "loglikelihood": lm.loglikelihood(requests_of("loglikelihood", asked["pairs"])),
        "loglikelihood_rolling": lm.loglikelihood_rolling(
            requests_of("loglikelihood_rolling", [[text] for text in asked["texts"]])
        ),
        "generate_until": lm.generate_until(
            requests_of("generate_until", [[prompt, until] for prompt in asked["prompts"]])
        ),
    }
print(json.dumps(said))
"""
OPTIONS = [{}, {"batch_size": 3}, {"num_concurrent": 4}, {"tokenized_requests": False}]
"""One request at a time, several prompts a request, several requests at a time, prompts as text."""


@pytest.mark.timeout(600)
def test_its_sums_and_answers_are_those_of_transformers(lm_eval: Callable[[str, str], str]) -> None:
    with live_server(Settings(engine="onnx", weights="fp32", context=512, slots=8)) as live:
        asked = {
            "url": live.url,
            "model": live.model.name,
            "prefix": loglikelihoods.PREFIX,
            "pairs": loglikelihoods.PAIRS,
            "texts": loglikelihoods.TEXTS,
            "prompts": loglikelihoods.PROMPTS,
            "until": loglikelihoods.UNTIL,
            "num_tokens": loglikelihoods.NUM_TOKENS,
            "options": OPTIONS,
        }
        said = json.loads(lm_eval(PROGRAM, json.dumps(asked)))
    assert len(said) == len(OPTIONS)
    for options, answers in said.items():
        sums, greedy = zip(*answers["loglikelihood"], strict=True)
        expected_sums, expected_greedy = zip(*REFERENCE["loglikelihood"], strict=True)
        assert sums == pytest.approx(expected_sums, abs=1e-3), options
        assert greedy == expected_greedy, options
        assert answers["loglikelihood_rolling"] == pytest.approx(REFERENCE["loglikelihood_rolling"], abs=1e-3), options
        assert answers["generate_until"] == REFERENCE["generate_until"], options
