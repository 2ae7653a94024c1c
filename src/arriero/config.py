"""Settings: what can be set, checked and frozen. `config_sources` reads what was given.

A field of `Settings` is the one declaration of a setting. Its flag, its variable, its TOML key, its help
text and its checks all derive from it: `model_name` is `--model-name`, `ARRIERO_MODEL_NAME` and `model_name`.
The limits of requests are `COMPLETION_MAX_...` in the environment, as LangPort documents them.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from arriero.config_description import kind
from arriero.errors import ConfigError

PORTS = {"openai": 8000, "alpaca": 19_327}
"""Where each profile listens unless told otherwise."""
ALPACA_NAME = "chinese-llama-alpaca"
"""What a model of the Alpaca profile is called unless settings say otherwise."""
TABLES = frozenset({"models"})
"""Settings that are tables of the file, and have no flag and no variable."""


def _check_path(value: object) -> object:
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("not a path")
    return value


def check_name(name: str) -> str:
    """The name of a model as it is; raises `ValueError` where nobody could read it."""
    if not name.strip() or not name.isprintable():
        raise ValueError("not a name")
    return name


def _check_key(key: str) -> str:
    if not key.isprintable() or key != key.strip():  # no header could bring it
        raise ValueError("not a key")
    return key


def _check_networks(text: str) -> str:
    for each in text.split(",") if text != "*" else ():
        ip_network(each)  # with bits beyond its mask it would be no network's name
    return text


FilePath = Annotated[Path, BeforeValidator(_check_path), AfterValidator(Path.expanduser)]


def _setting(group: str, default: object, description: str, **limits: Any) -> Any:
    """Declare a setting; `group` is the heading under which help lists it, `limits` are pydantic's."""
    extra: dict[str, Any] = {"group": group}
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=extra, **limits)
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Settings(BaseModel):
    """Everything that can be set, checked; constant once the process runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str | None = _setting(
        "Model",
        None,
        "Catalog name, GGUF file, Hugging Face directory or hub id (org/name); left out: the catalog's default.",
        min_length=1,
    )
    model_name: Annotated[str, AfterValidator(check_name)] | None = _setting(
        "Model", None, "Id that the API shows; left out: the catalog name or the file's name.", min_length=1
    )
    base_model: str | None = _setting("Model", None, "The same as MODEL, to be given instead of it.", min_length=1)
    lora_model: str | None = _setting(
        "Model", None, "LoRA adapter in PEFT's format, directory or hub id; the model is served with it.", min_length=1
    )
    tokenizer_path: FilePath | None = _setting(
        "Model", None, "Directory of the tokenizer; left out: the LoRA adapter's if it brings one, else the model's."
    )
    lora: dict[str, str] = _setting(
        "Model",
        dict,
        "NAME=ADAPTER: a LoRA adapter that answers under a name of its own beside the model; may be given often. "
        "In the environment with commas between them, in the file a table.",
        examples=["alice=path/or/hub-id"],
    )
    load_in_8bit: bool = _setting("Model", False, "The same as --weights int8.")
    weights: Literal["auto", "int8", "int4", "fp32", "bf16", "fp16"] = _setting(
        "Model",
        "auto",
        "Format of the weights in memory; auto: the fastest whose answers do not depend on the load, or with torch "
        "fp32 on the CPU and half precision on GPUs. int4 is for native and onnx, bf16 and fp16 for torch.",
    )
    cache: FilePath = _setting(
        "Model", lambda: platformdirs.user_cache_path("arriero"), "Directory of downloaded and converted models."
    )

    trust_remote_code: bool = _setting(
        "Model", False, "Run Python code that comes with the model, where the torch engine needs it; off: refuse."
    )

    profile: Literal["openai", "alpaca"] = _setting(
        "Server",
        "openai",
        "Whose habits to answer with; alpaca: templates, defaults and shapes of the Chinese-LLaMA-Alpaca server.",
    )
    host: str = _setting("Server", "127.0.0.1", "Address to listen on.", min_length=1)
    port: int = _setting(
        "Server",
        PORTS["openai"],
        f"Port to listen on; 0: a free one; left out with profile alpaca: {PORTS['alpaca']}.",
        ge=0,
        le=65_535,
    )
    unix_socket: FilePath | None = _setting("Server", None, "Socket file to listen on, instead of an address and port.")
    tls_certificate: FilePath | None = _setting(
        "Server", None, "PEM file of the certificate, with those that vouch for it; with --tls-key: serve HTTPS."
    )
    tls_key: FilePath | None = _setting("Server", None, "PEM file of the certificate's private key.")
    root_path: str | None = _setting(
        "Server",
        None,
        "Path below which a proxy shows this server.",
        pattern=r"^(/[\w.~-]+)+$",
        examples=["/llm"],
    )
    cors_origins: str | None = _setting(
        "Server",
        None,
        "Origins, with commas between them, whose web pages may use this server; *: all.",
        pattern=r"^(\*|\w+://[^\s,/]+(,\w+://[^\s,/]+)*)$",
        examples=["https://chat.example.com", "*"],
    )
    trusted_proxies: Annotated[str, AfterValidator(_check_networks)] | None = _setting(
        "Server",
        None,
        "Addresses and networks, with commas between them, whose X-Forwarded-For and -Proto count.",
        min_length=1,
        examples=["127.0.0.1,10.0.0.0/8", "*"],
    )
    head_timeout: float = _setting(
        "Server", 15.0, "Seconds in which the head of a request has to come.", ge=0.1, le=86_400
    )
    body_timeout: float = _setting(
        "Server", 120.0, "Seconds in which the body of a request has to come.", ge=0.1, le=86_400
    )
    send_timeout: float = _setting(
        "Server", 60.0, "Seconds in which a client that is behind has to take some of its answer.", ge=0.1, le=86_400
    )
    idle_timeout: int = _setting("Server", 75, "Seconds for which an idle connection is kept open.", ge=1, le=86_400)
    stall_limit: float = _setting(
        "Server",
        300.0,
        "Seconds in which an engine that has work has to make a step, lest /health/live answers 503.",
        ge=0.1,
        le=86_400,
    )
    grace: float = _setting(
        "Server", 30.0, "Seconds that running answers get to finish when the server stops.", ge=0, le=86_400
    )
    body_limit: ByteSize = _setting("Server", ByteSize(16 * 2**20), "Largest request body.", ge=1024, le=2**40)

    api_key: Annotated[str, AfterValidator(_check_key)] | None = _setting(
        "Access",
        None,
        "A key that every request must have, and that may do everything; better set in the environment.",
        min_length=1,
        max_length=256,
        repr=False,
    )
    no_auth: bool = _setting(
        "Access", False, "Ask nobody for a key, also on an address that others can reach; then nobody is an admin."
    )
    store: FilePath = _setting(
        "Access",
        lambda: platformdirs.user_data_path("arriero") / "arriero.db",
        "SQLite file of keys and usage.",
    )

    engine: Literal["auto", "native", "onnx", "torch", "scripted"] = _setting(
        "Engine",
        "auto",
        "What computes the answers; auto: native where it is fast, else onnx, torch where it must; scripted: no model.",
    )
    only_cpu: bool = _setting("Engine", False, "The same as --gpus none.")
    gpus: str | None = _setting(
        "Engine",
        None,
        "CUDA devices for the torch engine, such as 0,1; none: the CPU alone; left out: all that there are.",
        pattern=r"^(none|\d+(,\d+)*)$",
        examples=["0,1", "none"],
    )
    context: int = _setting(
        "Engine", 0, "Tokens that a prompt and its answer may have together; 0: as many as the model.", ge=0, le=2**20
    )
    slots: int = _setting("Engine", 64, "Answers that are generated at the same time.", ge=1, le=1024)
    max_queue: int = _setting("Engine", 256, "Requests that may wait; past it the answer is 503.", ge=0, le=100_000)
    token_budget: int = _setting(
        "Engine", 0, "Tokens that all running answers may hold together; 0: as memory allows.", ge=0, le=2**32
    )
    prefill_chunk: int = _setting(
        "Engine",
        512,
        "Prompt tokens that are read at most between two tokens of the running answers; fewer where they would have to "
        "wait longer than twice as long as without, but of a prompt of up to 256 tokens at least 64.",
        ge=1,
        le=2**16,
    )
    prefix_cache: int = _setting(
        "Engine",
        4096,
        "Prompt tokens of ended answers that are kept for prompts that begin like theirs; 0: none.",
        ge=0,
        le=2**32,
    )
    speculation: int | None = _setting(
        "Engine",
        None,
        "Tokens that are guessed from what was said before while one answer is written alone, and verified together: "
        "the same answer, sooner where texts are quoted or corrected, else hardly. Left out: 7 on the native engine, "
        "0 (none) on others, where they take the weights' memory again.",
        ge=0,
        le=15,
    )
    threads: int = _setting("Engine", 0, "Threads that compute; 0: one per physical core at hand.", ge=0, le=1024)

    completion_max_prompt: int = _setting(
        "Requests", 0, "Tokens that a prompt may have; 0: as many as the context.", ge=0, le=2**20
    )
    completion_max_tokens: int = _setting(
        "Requests", 0, "Tokens that an answer may be asked for; 0: as many as the context.", ge=0, le=2**20
    )
    completion_max_n: int = _setting("Requests", 128, "Answers to one prompt.", ge=1, le=1024)
    completion_max_logprobs: int = _setting(
        "Requests", 20, "Alternatives to each token, with their probabilities.", ge=0, le=1024
    )

    script: FilePath | None = _setting("Scripted engine", None, "File of replies; left out: echo the prompt.")
    pace: float = _setting("Scripted engine", 0.0, "Tokens a second of each answer; 0: no limit.", ge=0, le=1_000_000)

    models: tuple[dict[str, Any], ...] = _setting(
        "Models",
        (),
        "Tables `[[models]]` of the file: several models behind one address (docs/many-models.md), "
        "those of other servers too (docs/upstreams.md).",
    )
    memory_budget: ByteSize | None = _setting(
        "Models",
        None,
        "Memory that all loaded models may take together, such as 8GiB; past it those that were not used for longest "
        "are unloaded. Left out: no bound.",
        ge=1024,
        le=2**50,
    )
    ttl: float = _setting(
        "Models", 0.0, "Seconds without requests after which a model of [[models]] is unloaded; 0: never.", ge=0, le=1e9
    )
    load_wait: float = _setting(
        "Models",
        30.0,
        "Seconds that a request waits for its model to be loaded; past it the answer is 503.",
        ge=0.01,
        le=86_400,
    )

    config: FilePath | None = _setting("General", None, "TOML file with any of these settings.")
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "General", "info", "Least severe log line to show."
    )
    log_format: Literal["text", "json"] = _setting(
        "General", "text", "Log lines for people, or one JSON object each; every request has one at level info."
    )
    trace_endpoint: str | None = _setting(
        "General",
        None,
        "Address of the OTLP receiver to which OpenTelemetry traces are sent over HTTP; needs the extra otel.",
        pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$",
        examples=["http://127.0.0.1:4318"],
    )
    trace_share: float = _setting(
        "General",
        1.0,
        "Of the traces that begin here, the part that is sent; 0: only those that others began.",
        ge=0,
        le=1,
    )
    log_prompts: bool = _setting(
        "General", False, "Add what clients send, their prompts included, to the log lines of requests."
    )

    @model_validator(mode="before")
    @classmethod
    def _choose_port(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"port": PORTS.get(str(given.get("profile", "openai")), 0), **given}

    @field_validator("*", mode="before")
    @classmethod
    def _reject_truth_values(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and kind(field) is not bool:  # TOML's `slots = true` would pass for 1.
            raise ValueError("not a truth value")
        return value

    @field_validator("lora", mode="before")
    @classmethod
    def _read_pairs(cls, value: object) -> object:
        """From flags come several texts NAME=ADAPTER, from the environment one with commas between them."""
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, list | tuple):
            return value
        pairs = [str(pair).partition("=") for pair in value]
        names = [name for name, _, _ in pairs]
        if not all(name and place for name, _, place in pairs) or len(set(names)) < len(names):
            raise ValueError("not pairs with different names")
        return {name: place for name, _, place in pairs}

    def in_plain_words(self) -> Settings:
        """The same without settings that are other words for others.

        Raises `ConfigError` for those that contradict each other.
        """
        if self.base_model and self.model:
            raise ConfigError(f"give the model once: MODEL is {self.model!r}, --base-model {self.base_model!r}")
        if self.lora_model and not (self.base_model or self.model):
            raise ConfigError("--lora-model needs the base model that it is for: --base-model")
        if self.only_cpu and self.gpus not in (None, "none"):
            raise ConfigError(f"--only-cpu excludes --gpus, which is {self.gpus}")
        if self.no_auth and self.api_key:
            raise ConfigError("--no-auth excludes --api-key")
        if self.load_in_8bit and self.weights not in ("auto", "int8"):
            raise ConfigError(f"--load-in-8bit excludes --weights {self.weights}")
        return self.model_copy(
            update={
                "model": self.base_model or self.model,
                "base_model": None,
                "gpus": "none" if self.only_cpu else self.gpus,
                "only_cpu": False,
                "model_name": ALPACA_NAME if self.profile == "alpaca" and not self.model_name else self.model_name,
                "weights": "int8" if self.load_in_8bit else self.weights,
                "load_in_8bit": False,
            }
        )


def in_one_word() -> dict[str, FieldInfo]:
    """The settings that have a flag and a variable."""
    return {name: field for name, field in Settings.model_fields.items() if name not in TABLES}
