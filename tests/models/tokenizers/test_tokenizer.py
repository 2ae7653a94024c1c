import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.errors import InvalidRequest, ModelLoadError
from arriero.models.tokenizers.tokenizer import Tokenizer, load_tokenizer
from references.token_ids import PRE_TOKENIZER_STRINGS, read
from references.tokenizer_strings import strings
from references.vocabularies import PRE_TOKENIZERS, write_gguf

STRINGS = strings()
IDS = read()
DIRECTORIES = ("smollm-like", "llama3-like", "qwen2", "llama", "llama-legacy", "llama-odd", "unigram")
GGUF_FILES = ("byte-level-gguf", "sentencepiece-gguf", "sentencepiece-no-prefix-gguf")


@pytest.fixture(scope="session")
def tokenizers(vocabularies: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: load_tokenizer(path) for name, path in vocabularies.items()}


def once(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The ids with one beginning of sequence where transformers puts one before another."""
    bos = tokenizer.bos_token_id
    return ids[1:] if ids[:2] == [bos, bos] else ids


@pytest.mark.parametrize("name", DIRECTORIES)
def test_ids_of_a_directory_are_those_of_transformers(name, tokenizers):
    tokenizer = tokenizers[name]
    for text, ids in zip(STRINGS, IDS[name]["parsed"], strict=True):
        assert tokenizer.encode(text) == once(tokenizer, ids), text


# transformers lets a unigram model find control tokens in text that is to be taken literally; here they stay text.
@pytest.mark.parametrize("name", [name for name in DIRECTORIES if name != "unigram"])
def test_ids_of_literal_text_are_those_of_transformers(name, tokenizers):
    for text, ids in zip(STRINGS, IDS[name]["literal"], strict=True):
        assert tokenizers[name].encode(text, parse_special=False) == ids, text


@pytest.mark.parametrize("name", GGUF_FILES)
@pytest.mark.parametrize("way", ["parsed", "literal"])
def test_ids_of_a_gguf_file_are_those_of_llama_cpp(name, way, tokenizers):
    for text, ids in zip(STRINGS, IDS[name][way], strict=True):
        assert tokenizers[name].encode(text, add_special_tokens=False, parse_special=way == "parsed") == ids, text


def same_in_llama_cpp(pre: str, text: str) -> bool:
    """Whether llama.cpp cuts `text` as the tokenizer.json of that kind of model does.

    It leaves combining marks out of two expressions, and ideographic space has two readings in a third.
    """
    if pre in ("tekken", "gpt-4o"):
        return not any(unicodedata.category(character).startswith("M") for character in text)
    return pre != "deepseek-llm" or "\u3000" not in text


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_words_are_cut_as_in_llama_cpp(pre, tokenizers):
    cases = zip(STRINGS[PRE_TOKENIZER_STRINGS], IDS[f"pre-{pre}"]["parsed"], strict=True)
    compared = [(text, ids) for text, ids in cases if same_in_llama_cpp(pre, text)]
    assert len(compared) > 190
    for text, ids in compared:
        assert tokenizers[f"pre-{pre}"].encode(text, add_special_tokens=False) == ids, text


@pytest.mark.parametrize("way", ["parsed", "literal"])
def test_ids_of_the_real_model_are_those_of_llama_cpp(way, smollm2_path):
    tokenizer = load_tokenizer(smollm2_path)
    for text, ids in zip(STRINGS, IDS["smollm2"][way], strict=True):
        assert tokenizer.encode(text, parse_special=way == "parsed") == ids, text


def test_facts_of_the_real_model(smollm2_path):
    tokenizer = load_tokenizer(smollm2_path)
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert tokenizer.eos_token == "<|im_end|>"
    assert 2 in tokenizer.end_token_ids
    assert tokenizer.is_special(2)
    assert not tokenizer.is_special(100)


@pytest.mark.parametrize("name", [*DIRECTORIES, *GGUF_FILES])
def test_text_comes_back(name, tokenizers):
    for text in STRINGS:
        if name == "unigram" and text == "<0x41>":
            continue  # nothing keeps this kind of model from reading it as the byte
        written = unicodedata.normalize("NFC", text) if name == "qwen2" else text
        if name.startswith(("llama-", "sentencepiece")) or name in ("llama", "unigram"):
            written = written.replace("▁", " ")  # the vocabulary's own way to write a space
        if name in ("llama", "unigram"):
            written = written.removeprefix(" ")  # they put a space in front only where there is none
        ids = tokenizers[name].encode(text, add_special_tokens=False, parse_special=False)
        assert tokenizers[name].decode(ids) == written


def test_a_prompt_gets_one_beginning(tokenizers):
    for name in ("llama3-like", "llama", "llama-legacy", "sentencepiece-gguf"):
        tokenizer = tokenizers[name]
        assert tokenizer.encode("a")[0] == 1
        assert tokenizer.encode("a")[1] != 1
        assert tokenizer.encode("<s>a").count(1) == 1
        assert tokenizer.encode("<s><s>a", add_special_tokens=False).count(1) == 2
        assert tokenizer.encode("")[0] == 1
    assert tokenizers["llama-legacy"].encode("a")[-1] == 2
    assert tokenizers["sentencepiece-no-prefix-gguf"].encode("<s>a")[-1] == 2
    assert tokenizers["smollm-like"].encode("") == []


def test_special_tokens_are_left_out_of_text(tokenizers):
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode("<|im_start|><think>", add_special_tokens=False)
        assert ids[-1:] == [tokenizer.control_tokens.get("<think>", ids[-1])]
        assert tokenizer.is_special(ids[0])
        assert not tokenizer.is_special(ids[-1])
        assert tokenizer.decode(ids).strip() == "<think>"
        assert tokenizer.decode(ids, skip_special_tokens=False).strip() == "<|im_start|><think>"


def test_bytes_of_single_tokens(tokenizers):
    for name in ("llama", "sentencepiece-gguf"):
        tokenizer = tokenizers[name]
        assert tokenizer.token_bytes(6 + 0xE4) == b"\xe4"
        assert tokenizer.token_bytes(1) == b"<s>"
    for name in ("smollm-like", "byte-level-gguf", "sentencepiece-gguf", "unigram"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode("I'm 你 🤷‍♀️", add_special_tokens=False)
        joined = b"".join(tokenizer.token_bytes(id) for id in ids)
        assert joined.removeprefix(b" ").decode() == "I'm 你 🤷‍♀️"
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.decode([10**6]) == ""


def test_ids_that_end_an_answer(tokenizers):
    assert tokenizers["llama"].end_token_ids == {2}
    assert tokenizers["byte-level-gguf"].end_token_ids == {2, 4}


def test_half_a_surrogate_pair_is_refused(tokenizers):
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizers["llama"].encode("a\ud800")
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizers["llama"].encode_parts(["a\udfff", 1])


CONTROL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
texts = st.lists(
    st.one_of(st.sampled_from((*CONTROL, "<|im_", "<", "s>", " ", "  ", "a", "▁", "<think>", "\n", "é")), st.text())
).map("".join)


@given(texts)
def test_literal_text_holds_no_control_token(tokenizers, text):
    for name in (*DIRECTORIES, *GGUF_FILES):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        # A character outside the vocabulary is unknown, and no control token typed by the user.
        assert not set(ids) & {
            tokenizer.control_tokens[token] for token in CONTROL[1:] if token in tokenizer.control_tokens
        }


@given(st.lists(st.one_of(texts.filter(lambda text: "<" not in text), st.integers(1, 4))))
def test_parts_are_encoded_like_the_whole(tokenizers, parts):
    for name in (*DIRECTORIES, *GGUF_FILES):
        tokenizer = tokenizers[name]
        spelled = {id: text for text, id in tokenizer.control_tokens.items()}
        if name == "llama-odd" or not {1, 2, 3, 4} <= spelled.keys():
            continue
        whole = "".join(part if isinstance(part, str) else spelled[part] for part in parts)
        assert tokenizer.encode_parts(parts) == tokenizer.encode(whole, add_special_tokens=False)


def damaged(change: Callable[[dict], object], vocabularies: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a directory with another tokenizer.json."""
    document = json.loads((vocabularies["llama"] / "tokenizer.json").read_text("utf-8"))
    change(document)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda document: document.pop("model"), "tokenizer.json"),
        (lambda document: document.update(model={"type": "Abacus"}), "cannot be built"),
        (lambda document: document.update(added_tokens=[{"id": 1}]), "tokenizer.json"),
        (lambda document: document.update(decoder={"type": "BPEDecoder", "suffix": "</w>"}), "BPEDecoder"),
    ],
)
def test_a_damaged_tokenizer_file_is_named(change, complaint, vocabularies, tmp_path):
    with pytest.raises(ModelLoadError, match=complaint) as caught:
        load_tokenizer(damaged(change, vocabularies, tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_directory_without_tokenizer_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_truncation_and_padding_of_the_file_are_not_applied(vocabularies, tmp_path):
    def shorten(document: dict) -> None:
        document["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}

    assert len(load_tokenizer(damaged(shorten, vocabularies, tmp_path)).encode("one two three four five six")) > 3


def test_added_tokens_have_the_ids_that_the_library_gives_them(vocabularies, tmp_path):
    def leave_a_gap(document: dict) -> None:
        document["added_tokens"].append(document["added_tokens"][1] | {"id": 9999, "content": "<|late|>"})

    tokenizer = load_tokenizer(damaged(leave_a_gap, vocabularies, tmp_path))
    late = tokenizer.encode("<|late|>", add_special_tokens=False)
    assert late == [tokenizer.control_tokens["<|late|>"]] == tokenizer.encode_parts(late)
    assert tokenizer.is_special(late[0])
    assert tokenizer.decode(late, skip_special_tokens=False) == "<|late|>"
    assert not set(late) & set(tokenizer.encode("<|late|>", parse_special=False))


TOKENS = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab"]
FIELDS = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -3.0, -2.0, -2.0, -1.0],
}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "moonshine"}, "moonshine"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["x y"]}, "cannot be built"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], "a"]}, "twice"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 entries for 7 tokens"),
        ({"tokenizer.ggml.scores": [1.0]}, "1 entries for 7 tokens"),
        ({"tokenizer.ggml.scores": ["1"] * 7}, "scores"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokens"),
    ],
)
def test_a_damaged_gguf_vocabulary_is_named(fields, complaint, tmp_path):
    write_gguf(tmp_path / "model.gguf", FIELDS | fields)
    with pytest.raises(ModelLoadError, match=complaint):
        load_tokenizer(tmp_path / "model.gguf")


def test_a_gguf_vocabulary_of_the_least(tmp_path):
    write_gguf(tmp_path / "model.gguf", FIELDS)
    tokenizer = load_tokenizer(tmp_path / "model.gguf")
    assert tokenizer.encode("ab a") == [1, 3, 6, 3, 4]
    assert tokenizer.decode([1, 3, 6, 3, 4]) == "ab a"


GROWTH = """
import sys
from pathlib import Path
from arriero.models.tokenizers.tokenizer import load_tokenizer

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

tokenizer = load_tokenizer(Path(sys.argv[1]))
tokenizer.encode("a text")
before = pages()
for number in range(4000):
    tokenizer.encode(f"{number:06}" + "abcdefghijklmnopqrstuvwxyz" * 9)
print(pages() - before)
"""


@pytest.mark.parametrize("name", ["llama", "unigram"])
def test_texts_are_not_remembered(name, vocabularies):
    """The library would keep 8 kB and more of each of these; memory is told in pages of 4 kB."""
    command = [sys.executable, "-c", GROWTH, str(vocabularies[name])]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 1000
