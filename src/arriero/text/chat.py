"""Chat messages to prompt tokens, by the template that comes with the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from arriero.errors import InvalidRequest, ModelLoadError
from arriero.models.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from arriero.text.sandbox import Program


class ChatTemplate:
    """A model's chat template: what the model was trained to read for a conversation. Its first use compiles it."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self.knows_developers = "developer" in source
        """Whether it has a place for messages of the role `developer`, which is younger than most templates."""

    def __reduce__(self) -> tuple[object, ...]:
        """To another process goes what it is made from."""
        return type(self), (self._source, self._tokenizer)

    def build(self) -> None:
        """Compile it now; raises `ModelLoadError` when it is not valid Jinja."""
        _ = self._program, self._disguise

    @cached_property
    def _program(self) -> Program:
        # Who computes a model, and never runs its template, imports none of this.
        import jinja2

        from arriero.text.sandbox import Program

        try:
            return Program(self._source)
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"The model's chat template is not valid: {error}.") from error

    @cached_property
    def _disguise(self) -> _Disguise:
        return _Disguise(self._tokenizer.control_tokens, self._source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The conversation as text; `variables` (`tools`, `documents`, ...) are the template's own.

        `continue_final_message` ends it with the last message's content, to be gone on with. Raises
        `InvalidRequest(param="messages")` when the template cannot put these messages into words, or
        does not come to an end.
        """
        messages = _open_ended(messages) if continue_final_message else messages
        try:
            plain = _with_texts(_given(messages, add_generation_prompt, variables), str.__str__)
        except RecursionError as error:
            raise _too_deep() from error
        return _cut(self._run(plain)) if continue_final_message else self._run(plain)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The ids of the conversation; control tokens count where the template writes them, and not in messages.

        Nothing is added around it: a template that wants a beginning of sequence writes one. Otherwise as `render`.
        """
        messages = _open_ended(messages) if continue_final_message else messages
        try:
            disguised, unmask = self._disguise.apply(_given(messages, add_generation_prompt, variables))
        except RecursionError as error:
            raise _too_deep() from error
        text = _cut(self._run(disguised)) if continue_final_message else self._run(disguised)
        if not unmask:
            return self._tokenizer.encode(text, add_special_tokens=False)
        parts: list[str | int] = []
        position = 0
        for start, end, id in self._tokenizer.control_spans(text):
            parts += [text[position:start].translate(unmask), id]
            position = end
        return self._tokenizer.encode_parts([*parts, text[position:].translate(unmask)])

    def _run(self, variables: Mapping[str, Any]) -> str:
        defaults = {"tools": None, "documents": None, **self._tokenizer.special_tokens}
        try:
            return self._program.run({**defaults, **variables})
        except Exception as error:  # a program that is not ours can raise anything
            raise InvalidRequest(
                f"The model's chat template cannot render these messages: {error or type(error).__name__}",
                param="messages",
            ) from error


def plain_template(tokenizer: Tokenizer) -> ChatTemplate:
    """For an encoder-decoder that comes without a template: the messages' texts, one a line.

    Roles are not told, for the model has never seen any; nothing is left out, so an instruction in a system message
    reaches it. Around it stand the tokens that the tokenizer puts around every text.
    """
    bare = tokenizer.encode("a", add_special_tokens=False)
    around = tokenizer.encode("a")
    start = next(place for place in range(len(around)) if around[place : place + len(bare)] == bare)
    before, after = around[:start], around[start + len(bare) :]
    opening, closing = (tokenizer.decode(ids, skip_special_tokens=False) for ids in (before, after))
    texts = "messages | map(attribute='content') | join('\\n')"
    return ChatTemplate(f"{{{{ {opening!r} ~ ({texts}) ~ {closing!r} }}}}", tokenizer)


def _given(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]) -> Any:
    """The variables of a run. A field that is null is left out, as in transformers: templates ask if it is there."""
    if not messages:
        raise InvalidRequest("A chat needs at least one message.", param="messages")
    filled = [{name: value for name, value in message.items() if value is not None} for message in messages]
    return {**variables, "messages": filled, "add_generation_prompt": add_generation_prompt}


_END = "\U0010fffd"
"""Marks where the final message ends; the last character for private use, which no tokenizer knows."""


def _open_ended(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages with a mark behind the last one's content."""
    if not messages:
        return messages
    return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}{_END} "}]


def _cut(text: str) -> str:
    """What stands before the mark. A template that trims contents, as its missing space tells, trims this one too."""
    before, mark, after = text.rpartition(_END)
    if not mark:
        raise InvalidRequest(
            "The model's chat template does not show the final message, which so cannot be continued.",
            param="continue_final_message",
        )
    return before if after.startswith(" ") else before.rstrip()


def _too_deep() -> InvalidRequest:
    return InvalidRequest("The messages are nested too deeply.", param="messages")


class _Disguise:
    """Replaces the first character of control tokens that a user typed, so that only the template's are found."""

    def __init__(self, control_tokens: Iterable[str], source: str) -> None:
        tokens = sorted(control_tokens)
        self._first_characters = sorted({token[0] for token in tokens})
        self._source = source
        self._starts = re.compile(
            "|".join(
                f"{re.escape(first)}(?={_any_of([token[1:] for token in tokens if token[0] == first])})"
                for first in self._first_characters
            )
            or "(?!)"
        )
        self._beginnings = {token[:size] for token in tokens for size in range(1, len(token))}
        self._longest = max(map(len, self._beginnings), default=0)

    def apply(self, variables: Any) -> tuple[Any, dict[int, str]]:
        """The variables in disguise, and the table for `str.translate` that lifts it: empty if nothing needed one."""
        texts = _texts(variables)
        # Most have not even a first character, which is quick to see.
        if not any(map("".join(texts).__contains__, self._first_characters)) or not any(map(self._found, texts)):
            return _with_texts(variables, str.__str__), {}
        used = set(self._source).union(*texts)
        unused = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
        masks = dict(zip(self._first_characters, unused, strict=False))
        if len(masks) < len(self._first_characters):
            raise InvalidRequest("The messages use up Unicode's private characters.", param="messages")

        def masked(text: str) -> str:
            characters = list(text)
            for start in self._found(text):
                characters[start] = masks[characters[start]]
            return "".join(characters)

        return _with_texts(variables, masked), {ord(mask): first for first, mask in masks.items()}

    def _found(self, text: str) -> set[int]:
        """Where control tokens begin, and where the text ends with what another text may complete to one."""
        if not any(map(text.__contains__, self._first_characters)):
            return set()  # most texts, and looking for one character is quick
        found = {match.start() for match in self._starts.finditer(text)}
        for tail in (text, text.rstrip()):
            sizes = range(1, min(self._longest, len(tail)) + 1)
            found.update(len(tail) - size for size in sizes if tail[-size:] in self._beginnings)
        return found


def _any_of(words: Sequence[str]) -> str:
    """An expression that matches where one of the words begins, without trying them one after the other."""
    if "" in words:
        return ""
    branches = {first: [word[1:] for word in words if word[0] == first] for first in sorted({w[0] for w in words})}
    alternatives = [re.escape(first) + _any_of(rest) for first, rest in branches.items()]
    return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"


_OTHERS = frozenset({bool, int, float, type(None)})
"""Types of JSON values without texts; asking whether one is a `Mapping` takes longer than all else here."""


def _texts(value: Any) -> list[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    if type(value) not in _OTHERS and isinstance(value, (dict, Mapping)):
        return [*map(str, value), *[text for item in value.values() for text in _texts(item)]]
    return []


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every string changed; of plain types only, which have no methods to abuse."""
    if isinstance(value, str):
        return change(value)
    if type(value) in _OTHERS:
        return value
    if isinstance(value, (list, tuple)):
        return [_with_texts(item, change) for item in value]
    if isinstance(value, (dict, Mapping)):
        return {_with_texts(key, change): _with_texts(item, change) for key, item in value.items()}
    raise TypeError(f"A chat template takes JSON values, not {type(value).__name__}.")
