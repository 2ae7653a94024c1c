"""Make token_ids.json.gz: the ids that transformers and llama.cpp give to two thousand strings.

    python tests/references/token_ids.py PYTHON MODEL

PYTHON is an interpreter with the `xllamacpp` package, MODEL the GGUF file of SmolLM2-135M-Instruct. Needs
transformers; the tests that read the file do not.

The strings are those of tokenizer_strings.py. llama.cpp's ids are of the GGUF files of vocabularies.py and of the real
model, transformers' of the directories of vocabularies.py.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from references.tokenizer_strings import strings
from references.vocabularies import PRE_TOKENIZERS, unpack

FILE = Path(__file__).with_suffix(".json.gz")

PRE_TOKENIZER_STRINGS = slice(0, None, 8)
"""Which of the strings the many pre-tokenizers are held against."""

_ASK_LLAMA_CPP = """
import http.client, json, os, sys
import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.warmup = sys.argv[1], 64, 1, False
server = xllamacpp.Server(parameters)
connection = http.client.HTTPConnection(server.listening_address.split("//")[1], timeout=60)

def ids(text, special):
    body = json.dumps({"content": text, "add_special": False, "parse_special": special})
    connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
    return json.loads(connection.getresponse().read())["tokens"]

texts = json.load(sys.stdin)
answers = {"parsed": [ids(text, True) for text in texts], "literal": [ids(text, False) for text in texts]}
json.dump(answers, open(sys.argv[2], "w"))
os._exit(0)
"""


def read() -> dict[str, dict[str, list[list[int]]]]:
    """For each vocabulary the ids of every string, `parsed` with control tokens, `literal` with them as text."""
    made: dict[str, dict[str, Any]] = json.loads(gzip.decompress(FILE.read_bytes()))
    for ids in made.values():
        if "literal" in ids:
            ids["literal"] = [one or other for one, other in zip(ids["literal"], ids["parsed"], strict=True)]
    return made


def transformers_ids(directory: Path) -> dict[str, list[list[int]]]:
    """The ids of a directory's tokenizer, with beginning and end of sequence added where it wants them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    return {
        "parsed": [tokenizer(text)["input_ids"] for text in strings()],
        "literal": [tokenizer(text, split_special_tokens=True)["input_ids"] for text in strings()],
    }


def _llama_cpp_ids(python: str, model: Path, texts: list[str]) -> Any:
    with tempfile.NamedTemporaryFile() as answers:
        command = [python, "-c", _ASK_LLAMA_CPP, str(model), answers.name]
        subprocess.run(command, input=json.dumps(texts), text=True, check=True, capture_output=True)
        return json.loads(Path(answers.name).read_text())


def make(python: str, model: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        paths = unpack(Path(directory), tensors=True)
        made = {name: transformers_ids(path) for name, path in paths.items() if path.is_dir()}
        for name, path in paths.items():
            if path.is_file() and not name.startswith("pre-"):
                made[name] = _llama_cpp_ids(python, path, strings())
        for pre in PRE_TOKENIZERS:
            made[f"pre-{pre}"] = _llama_cpp_ids(python, paths[f"pre-{pre}"], strings()[PRE_TOKENIZER_STRINGS])
            del made[f"pre-{pre}"]["literal"]
        made["smollm2"] = _llama_cpp_ids(python, model, strings())
    for ids in made.values():
        if "literal" in ids:  # only where it makes a difference
            pairs = zip(ids["literal"], ids["parsed"], strict=True)
            ids["literal"] = [[] if one == other else one for one, other in pairs]
    return made


if __name__ == "__main__":
    content = json.dumps(make(sys.argv[1], Path(sys.argv[2])), separators=(",", ":"), sort_keys=True)
    FILE.write_bytes(gzip.compress(content.encode(), mtime=0))
