"""Runs chat templates: Jinja programs from a model's files, which may be hostile.

Jinja's immutable sandbox, set up as transformers does, so that templates give the same text:
https://huggingface.co/docs/transformers/chat_templating_writing. On top of it loops, output, repetition and
time are bounded; a single filter on a big value is not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_MOST_STEPS = 300_000
_MOST_CHARACTERS = 1 << 26
_MOST_SECONDS = 5.0
_MOST_EXPONENT = 1_000
_Value = TypeVar("_Value")
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*[0-9]{6}")


class Program:
    """A compiled template; raises `jinja2.TemplateError` when it is not one."""

    def __init__(self, source: str) -> None:
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_write
        )
        tree: nodes.Template = _Metered().visit(environment.parse(source))
        self._template = environment.from_string(tree)
        # Each run copies them, which is slow from the chain of maps that they are.
        self._template.globals = dict(self._template.globals)

    def run(self, variables: Mapping[str, Any]) -> str:
        """The text it writes; raises whatever the program raises, and `SecurityError` when it does too much."""
        previous = _allowance.set(_Allowance())
        try:
            return self._template.render(variables)
        finally:
            _allowance.reset(previous)


class _Allowance:
    """What is left of one run's steps, characters and time."""

    def __init__(self) -> None:
        self._steps = _MOST_STEPS
        self._characters = _MOST_CHARACTERS
        self._deadline = time.monotonic() + _MOST_SECONDS

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise SecurityError("the template does not come to an end")

    def write(self, num_characters: int) -> None:
        self._characters -= num_characters
        if self._characters < 0:
            raise SecurityError("the template writes too much")


_allowance: ContextVar[_Allowance] = ContextVar("_allowance")


# With a context these are called at run time only, never to fold constants.


@jinja2.pass_context
def _write(context: Context, value: Any) -> Any:
    """Whatever `{{ }}` puts out."""
    _allowance.get().write(len(value) if isinstance(value, str) else 1)
    return value


@jinja2.pass_context
def _step(context: Context, num_characters: int) -> bool:
    """One more turn of a loop or call of a macro, which writes this much fixed text."""
    _allowance.get().step()
    _allowance.get().write(num_characters)
    return True


@jinja2.pass_context
def _concatenate(context: Context, values: Iterable[Any]) -> str:
    """`a ~ b`."""
    return _sized("".join(map(str, values)))


_METERS = {"meter step": _step, "meter concatenate": _concatenate}
"""Filters, which are the cheapest to call, by names that no template can spell."""


class _Metered(NodeTransformer):
    """Makes loops, macros and `~` of a template call the meters."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (named after the node)
        if node.test is not None:
            node.test = nodes.And(_call("meter step", nodes.Const(0)), node.test)
        return self._visit_body(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._visit_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._visit_body(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("meter concatenate", nodes.List(node.nodes))

    def _visit_body(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        fixed = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("meter step", nodes.Const(fixed)), lineno=node.lineno))
        return node


def _call(meter: str, argument: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(argument, meter, [], [], None, None)


class _Generation(Extension):
    """`{% generation %}`, which marks an answer for training, is only its body here."""

    tags = {"generation"}  # noqa: RUF012 (as the base class has it)

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag as a block of its own scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Callable[[], str]) -> str:
        """What stands inside."""
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """The names and limits that every chat template finds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters |= {"tojson": _to_json, **_METERS}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Sums, repetitions, powers and formats of a sensible size only."""
        if operator == "+":
            return _sized(left + right)
        if operator == "**" and not abs(right) <= _MOST_EXPONENT:
            raise SecurityError("the template computes too large a power")
        if operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and len(value) * count > _MOST_CHARACTERS:
                    raise SecurityError("the template repeats too much")
        if operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise SecurityError("the template writes too wide a field")
        return _sized(super().call_binop(context, operator, left, right))


def _sized(value: _Value) -> _Value:
    if isinstance(value, str | list | tuple) and len(value) > _MOST_CHARACTERS:
        raise SecurityError("the template makes too large a value")
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models do not expect."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Dict:
    """`dict(...)` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """`namespace(...)` that keeps to names which the sandbox lets templates read."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a key
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")
