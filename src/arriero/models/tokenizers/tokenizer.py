"""Text to token ids and back: the same ids as where the model was trained."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import orjson
import tokenizers
from tokenizers.models import BPE, Unigram

from arriero.errors import InvalidRequest, ModelLoadError
from arriero.models.files.sentencepiece_file import SPACE

# Unless told otherwise it hands each text to a thread of its own, and waits for that.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTROL_SHAPE = re.compile(r"<[|｜].+[|｜]>", re.DOTALL)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file or of a Hugging Face directory with tokenizer.json; raises `ModelLoadError`."""
    tokenizer = read_tokenizer(path)
    tokenizer.build()
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The same, yet to be built: its files are read, and raise `ModelLoadError` where they are damaged."""
    # Whoever is sent a tokenizer reads no files.
    from arriero.models.files.gguf_file import read_metadata
    from arriero.models.tokenizers.gguf_vocabulary import gguf_document
    from arriero.models.tokenizers.metadata import read_text_metadata
    from arriero.models.tokenizers.tokenizer_json import directory_document

    metadata = read_text_metadata(path)
    if path.is_dir():
        document = directory_document(path, metadata.special_tokens)
    else:
        document = gguf_document(path, read_metadata(path), add_bos=bool(metadata.add_bos))
    return Tokenizer(path, document, metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMetadata:
    """Read from a GGUF file's metadata or from the JSON files of a Hugging Face directory."""

    chat_template: str | None
    """Jinja source of the default template; None when the model has none."""
    special_tokens: Mapping[str, str]
    """Texts of `bos_token`, `eos_token`, ... as far as the model has them: variables of the template."""
    bos_token_id: int | None
    end_token_ids: frozenset[int]
    """Every token that ends an answer."""
    add_bos: bool | None
    """Whether a prompt starts with the first token; None when tokenizer.json's own post-processor decides."""
    context: int | None
    """Tokens that the model was made for; None when the files do not say."""


class Tokenizer:
    """A model's vocabulary. Nothing in it changes once it is built, so threads may use it at the same time.

    Its first use builds it, which takes a while: whoever only hands it on to another process does not wait for that.
    """

    special_tokens: Mapping[str, str]
    """Texts of `bos_token`, `eos_token`, `unk_token`, ... as far as the model has them."""
    bos_token: str | None
    eos_token: str | None
    end_token_ids: frozenset[int]
    """Every id that ends an answer."""

    def __init__(self, path: Path, document: dict[str, Any], metadata: TextMetadata) -> None:
        """Take the contents of a tokenizer.json, and look at them when it is built."""
        self._begin(path, _written(path, document), document.get("decoder"), metadata)

    def _begin(self, path: Path, source: bytes, decoder: Mapping[str, Any] | None, metadata: TextMetadata) -> None:
        self._path = path
        self._metadata = metadata
        self._source = source
        self._decoder = decoder
        self._bytes: dict[int, bytes] = {}
        self._texts = _Texts(self.token_bytes)
        self._shown_texts = _Texts(lambda token: b"" if token in self._special else self.token_bytes(token))
        self.special_tokens = metadata.special_tokens
        self.bos_token = self.special_tokens.get("bos_token")
        self.eos_token = self.special_tokens.get("eos_token")
        self.end_token_ids = metadata.end_token_ids

    def __reduce__(self) -> tuple[object, ...]:
        """To another process goes what it is made from."""
        return _rebuilt, (self._path, self._source, self._decoder, self._metadata, self.end_token_ids)

    def build(self) -> None:
        """Do now what the first use would; raises `ModelLoadError` for a vocabulary that is damaged or unknown."""
        _ = self._adds_bos, self._aliases, self.adds_space_prefix

    @property
    def digest(self) -> str:
        """Another one wherever a text could have other tokens."""
        return hashlib.sha256(self._source).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """Tokens, those added to the vocabulary included."""
        size: int = self._backend.get_vocab_size()
        return size

    @cached_property
    def bos_token_id(self) -> int | None:
        """The id of `bos_token`."""
        id: int | None = None if self.bos_token is None else self._backend.token_to_id(self.bos_token)
        return id

    @cached_property
    def adds_space_prefix(self) -> bool:
        """Whether the first word of a text gets a space that is no part of it, as SentencePiece does."""
        return self._decoding[1]

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """Ids by text of the tokens that steer the model and that no user may smuggle in."""
        return {token.content: id for id, token in self._added.items() if self._is_control(id)}

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of `text`; control tokens spelled out in it stay text unless `parse_special`.

        `add_special_tokens` puts beginning and end of sequence where the model wants them, but no second
        beginning before a text that brings its own. Raises `InvalidRequest` for text with half a surrogate pair.
        """
        backend = self._backend if parse_special else self._literal
        ids: list[int] = _encode(backend, text, add_special_tokens=add_special_tokens).ids
        if add_special_tokens and self._adds_bos and ids[1:2] == [self.bos_token_id]:
            del ids[0]
        return ids

    def encode_within(self, text: str, max_tokens: int, *, parse_special: bool = True) -> list[int]:
        """The ids of `text` with special tokens around it, its end cut off where it is too long for `max_tokens`.

        Raises `InvalidRequest` as `encode` does.
        """
        backend = self._backend if parse_special else self._literal
        encoding = _encode(backend, text, add_special_tokens=False)
        encoding.truncate(max(0, max_tokens - backend.num_special_tokens_to_add(is_pair=False)))
        ids: list[int] = backend.post_process(encoding).ids
        return ids

    def encode_pair(
        self, first: str, second: str, *, max_tokens: int | None = None, parse_special: bool = True
    ) -> tuple[list[int], int]:
        """The ids of two texts that a model reads together, and how many of them belong to its first segment.

        Special tokens stand around and between them as the model wants it. Beyond `max_tokens` the longer text is cut
        at its end, both where they would be equally long. Raises `InvalidRequest` as `encode` does.
        """
        backend = self._backend if parse_special else self._literal
        one, other = (_encode(backend, text, add_special_tokens=False) for text in (first, second))
        if max_tokens is not None:
            room = max(0, max_tokens - backend.num_special_tokens_to_add(is_pair=True))
            for encoding, length in zip((one, other), _shares(len(one), len(other), room), strict=True):
                encoding.truncate(length)
        whole = backend.post_process(one, other)
        return whole.ids, whole.type_ids.count(0)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """The ids of a text whose control tokens are those given as ids, whatever its strings spell.

        Cut anywhere else, without control tokens in the strings, the parts give the ids that `encode` gives the whole,
        without beginning and end of sequence added. Raises `InvalidRequest` as `encode` does.
        """
        text = "".join(part if isinstance(part, str) else self._aliases[part] for part in parts)
        return _encode(self._literal, text, add_special_tokens=False).ids

    def control_spans(self, text: str) -> list[tuple[int, int, int]]:
        """Start, end and id of the control tokens that `encode` finds in `text`, without white space around them."""
        encoding = _encode(self._backend, text, add_special_tokens=False, offsets=True)
        spans = []
        for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if id in self._aliases:
                token = self._added[id].content
                found = text.find(token, start, end)
                spans.append((start, end, id) if found < 0 else (found, found + len(token), id))
        return spans

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `tokens`, with U+FFFD for bytes that are not UTF-8."""
        kept = (token for token in tokens if not (skip_special_tokens and token in self._special))
        text = b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.adds_space_prefix else text

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for, often only part of a character; nothing for an id without a text."""
        piece = self._bytes.get(token)
        if piece is None:
            text = self._backend.id_to_token(token)
            piece = b"" if text is None else self._decoding[0](text, token in self._added)
            self._bytes[token] = piece
        return piece

    def is_special(self, token: int) -> bool:
        """Whether `token` is left out of text: beginning, end, roles and the like."""
        return token in self._special

    def token_texts(self, *, skip_special_tokens: bool = True) -> Mapping[int, str | None]:
        """By id, what a token reads when it is a text of whole characters, and None when it begins or ends inside one.

        With `skip_special_tokens` special tokens read as nothing. Looked up for every token that anybody is sent.
        """
        return self._shown_texts if skip_special_tokens else self._texts

    def _is_control(self, token: int) -> bool:
        """Fine-tunes often add `<|im_start|>` without saying that it is special."""
        looks_like_it = _CONTROL_SHAPE.fullmatch(self._added[token].content) is not None
        return token in self._special or token in self._metadata.end_token_ids or looks_like_it

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        return _build(self._path, self._source)

    @cached_property
    def _decoding(self) -> tuple[Callable[[str, bool], bytes], bool]:
        return _decoding(self._path, self._decoder)

    @cached_property
    def _added(self) -> dict[int, tokenizers.AddedToken]:
        """By id, which in the document is no more than a wish where it leaves gaps."""
        added: dict[int, tokenizers.AddedToken] = self._backend.get_added_tokens_decoder()
        return added

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(id for id, token in self._added.items() if token.special)

    @cached_property
    def _aliases(self) -> dict[int, str]:
        nonce = secrets.randbits(64)
        return {id: f"\U000f0000{nonce}.{id}\U000f0001" for id in self.control_tokens.values()}

    @cached_property
    def _adds_bos(self) -> bool:
        return self.bos_token_id is not None and self._backend.encode("").ids[:1] == [self.bos_token_id]

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """The same vocabulary with every control token spelled in a way that nobody can guess."""
        document = orjson.loads(self._source)
        aliases = {text: self._aliases[id] for text, id in self.control_tokens.items()}
        model = document["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {aliases.get(text, text): id for text, id in model["vocab"].items()}
        else:
            model["vocab"] = [[aliases.get(text, text), score] for text, score in model["vocab"]]
        if "merges" in model:
            merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
            model["merges"] = [merge for merge in merges if not aliases.keys() & {*merge, "".join(merge)}]
        if model.get("unk_token") in aliases:
            model["unk_token"] = aliases[model["unk_token"]]
        for token in document["added_tokens"]:
            token["content"] = aliases.get(token["content"], token["content"])
        return _build(self._path, _written(self._path, document))


def _rebuilt(
    path: Path,
    source: bytes,
    decoder: Mapping[str, Any] | None,
    metadata: TextMetadata,
    end_token_ids: frozenset[int],
) -> Tokenizer:
    tokenizer = Tokenizer.__new__(Tokenizer)
    tokenizer._begin(path, source, decoder, metadata)
    tokenizer.end_token_ids = end_token_ids
    return tokenizer


class _Texts(dict[int, str | None]):
    """Texts of tokens, filled as they are asked for."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__()
        self._token_bytes = token_bytes

    def __missing__(self, token: int) -> str | None:
        try:
            text: str | None = self._token_bytes(token).decode()
        except UnicodeDecodeError:
            text = None
        self[token] = text
        return text


def _written(path: Path, document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError as error:
        raise ModelLoadError(f"{path}: the tokenizer cannot be built: {error}.") from error


def _build(path: Path, source: bytes) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_buffer(source)
    except Exception as error:  # the library raises nothing more specific
        raise ModelLoadError(f"{path}: the tokenizer cannot be built: {error}.") from error
    if isinstance(backend.model, BPE | Unigram):
        # It would remember 10,000 words in each of its threads for good, where nothing cuts a text into words whole
        # texts: 80 MB a thread, for clients to fill. Without, a token takes half a microsecond longer.
        backend.model._resize_cache(0)
    return backend


def _encode(
    backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool, offsets: bool = False
) -> tokenizers.Encoding:
    """The tokens, and with `offsets` where in the text they are, which takes almost twice the time."""
    encode = backend.encode_batch if offsets else backend.encode_batch_fast  # other threads wait for a single `encode`
    try:
        return encode([text], add_special_tokens=add_special_tokens)[0]
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidRequest("The text has half a surrogate pair in it, which is no character.") from error


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept, as transformers' strategy `longest_first` has it."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    short = min(short, room // 2)
    long = room - short
    return (short, long) if first <= second else (long, short)


def _decoding(path: Path, decoder: Mapping[str, Any] | None) -> tuple[Callable[[str, bool], bytes], bool]:
    """From a token's text, and whether it is an added token, to its bytes; and whether texts start with a space."""
    decoder = decoder or {}
    steps = {step.get("type"): step for step in decoder.get("decoders", [decoder])}
    if steps.keys() <= {"ByteLevel", "Fuse"}:
        return _byte_level, False
    if steps.keys() <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        strips = "Strip" in steps or steps.get("Metaspace", {"prepend_scheme": "never"})["prepend_scheme"] != "never"
        return (_sentencepiece_bytes if "ByteFallback" in steps else _sentencepiece), strips
    if steps.keys() == {"WordPiece"}:
        return partial(_word_piece, steps["WordPiece"].get("prefix", "##")), True
    raise ModelLoadError(f"{path}: the tokenizer decodes by {', '.join(map(str, steps))}, which is not known here.")


def _byte_alphabet() -> dict[str, int]:
    """The letter that GPT-2's byte-level vocabularies write for each byte: itself where it is printable Latin-1."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _byte_level(text: str, added: bool) -> bytes:
    if added:
        return text.encode()
    try:
        return bytes(map(_BYTE_ALPHABET.__getitem__, text))
    except KeyError:
        return text.encode()


def _word_piece(prefix: str, text: str, added: bool) -> bytes:
    return text[len(prefix) :].encode() if text.startswith(prefix) and not added else f" {text}".encode()


def _sentencepiece(text: str, added: bool) -> bytes:
    return text.replace(SPACE, " ").encode()


def _sentencepiece_bytes(text: str, added: bool) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes.fromhex(byte[1]) if byte else _sentencepiece(text, added)
