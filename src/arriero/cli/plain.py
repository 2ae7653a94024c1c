"""Command lines that can mean one thing only, read without the parser of all others, which takes a while to import."""

from __future__ import annotations

from collections.abc import Sequence

from arriero.config import in_one_word
from arriero.config_description import flag as flag_of
from arriero.config_description import kind


def plain_flags(words: Sequence[str]) -> dict[str, str | bool] | None:
    """What `arriero serve` is given, by the settings' names, as its command would get it.

    None for words that are not whole flags known to the settings, each once with its value, and at most one model:
    that is for the command's own parser to read, to help with, or to refuse.
    """
    fields = in_one_word()
    names = {flag_of(name): name for name in fields}
    given: dict[str, str | bool] = {}
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=") if word.startswith("-") else ("MODEL", "=", word)
        name = names.get(flag)
        if name is None or name in given or kind(fields[name]) is dict:
            return None
        if kind(fields[name]) is bool:
            if equals:
                return None
            given[name] = True
            continue
        if not equals:
            value = next(rest, "-")
            if value.startswith("-"):
                return None
        given[name] = value
    return given
