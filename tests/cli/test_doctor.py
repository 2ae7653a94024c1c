import json
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arriero.cli.doctor import address, caches, configuration, installation, models, store
from arriero.cli.doctor.processes import listener
from arriero.cli.doctor.running import check_server
from arriero.config import Settings
from arriero.errors import ConfigError
from arriero.models.decoders.description import describe
from arriero.models.sources import hub as hub_source
from arriero.models.sources.hub import fetch
from arriero.models.sources.repository import HubName
from arriero.store.database import open_database
from tiny_directory import write_directory

NAME = "SmolLM2-135M-Instruct"


@pytest.fixture
def tiny(tmp_path):
    return write_directory(tmp_path / "tiny")


@pytest.fixture
def settings(tmp_path):
    """Settings with a cache and a store of their own."""
    return lambda **given: Settings(**{"cache": tmp_path / "cache", "store": tmp_path / "arriero.db", **given})


def told(findings):
    """What was found, as one would read it."""
    return [f"{each.status} {each.check}: {each.found} -> {each.mend}" for each in findings]


def wrong(findings):
    return [each for each in findings if each.status != "ok"]


def only(findings):
    """The one finding that something is wrong."""
    (finding,) = wrong(findings)
    return finding


# The command


def test_a_sound_installation_with_a_sound_model(call, hub, tiny, tmp_path):
    variables = {"ARRIERO_CACHE": str(tmp_path / "cache"), "ARRIERO_STORE": str(tmp_path / "arriero.db")}
    finished = call("doctor", str(tiny), "--port", "0", "--json", **variables)
    diagnosis = json.loads(finished.stdout)
    assert (finished.status, diagnosis["status"]) == (0, "ok"), finished.stdout
    assert list(dict.fromkeys(each["check"] for each in diagnosis["findings"])) == [
        *("python", "packages", "libraries", "processor", "config", "cache", "models"),
        *("model", "engine", "tokenizer", "memory", "port", "files", "store"),
    ]
    assert not list((tmp_path / "cache").rglob("*"))  # It only looks.


def test_what_is_wrong_is_shown_with_what_mends_it(call, monkeypatch, tmp_path):
    monkeypatch.setattr("arriero.cli.doctor.command._OF_INSTALLATION", (("odd", "nowhere.check_it"),))
    file = tmp_path / "arriero.toml"
    file.write_text("slotz = 3\n")
    finished = call("doctor", "--config", str(file), "--url", "127.0.0.1:1")
    assert finished.status == 1
    assert [line.split()[:2] for line in finished.stdout.splitlines()] == [
        ["fail", "odd"],
        ["fail", "config"],
        ["${EDITOR:-vi}", str(file)],
        ["fail", "server"],
        ["arriero", "serve"],
        ["0", "ok,"],
    ]
    assert "ModuleNotFoundError" in finished.stdout
    assert "did you mean slots?" in finished.stdout
    assert finished.stdout.endswith("0 ok, 0 to look at, 3 to mend\n")


def test_a_package_that_is_missing_is_named_with_what_installs_it():
    code = "import sys; sys.modules['typer'] = None; from arriero.cli import main; main()"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith("arriero: the installation is not whole: ")
    assert finished.stderr.endswith(f"{installation.pip('typer')}\n")


def test_it_takes_the_flags_of_serve(call, monkeypatch, tmp_path):
    monkeypatch.setattr("arriero.cli.doctor.command._OF_INSTALLATION", ())
    flags = ("--engine", "scripted", "--lora", "a=b", "--store", str(tmp_path / "kept.db"), "--port", "0", "--json")
    findings = json.loads(call("doctor", *flags, ARRIERO_CACHE=str(tmp_path)).stdout)["findings"]
    found = {each["check"]: each["found"] for each in findings}
    assert found["model"] == "--engine scripted computes no model, but --lora is a"
    assert found["store"].startswith(str(tmp_path / "kept.db"))


# The installation


def test_packages_that_are_missing_or_old(monkeypatch):
    wanted = ["numpy>=99", "no-such-package>=1", "orjson>=3", "other; extra == 'x'", "another; python_version < '3'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    finding = only(installation.check_packages())
    assert finding.status == "fail"
    assert finding.found.startswith("numpy is ")
    assert finding.found.endswith(", but >=99 is needed; no-such-package is not installed")
    assert finding.mend == installation.pip("numpy>=99", "no-such-package>=1")


def test_a_python_that_is_too_old(monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.10.1")
    assert "needs Python >=3.11" in only(installation.check_python()).found


def test_libraries_that_cannot_be_loaded(monkeypatch, tmp_path):
    (tmp_path / "good_library.py").write_text("")
    (tmp_path / "bad_library.py").write_text("raise ImportError('GLIBC_9.9 not found')")
    (tmp_path / "ill_library.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(installation, "_LIBRARIES", ("good_library", "bad_library", "ill_library"))
    finding = only(installation.check_libraries())
    assert finding.found == (
        "bad_library cannot be loaded: ImportError: GLIBC_9.9 not found; "
        "ill_library cannot be loaded: it ends the process with SIGILL"
    )
    assert finding.mend == installation.pip("--force-reinstall", "bad_library", "ill_library")


@pytest.mark.parametrize(("fast", "engine"), [(True, "takes native"), (False, "takes onnx")])
def test_the_processor_decides_which_engine_is_taken(monkeypatch, fast, engine):
    monkeypatch.setattr("arriero.runners.native.is_fast", lambda: fast)
    (finding,) = installation.check_processor()
    assert engine in finding.found


# The configuration


def test_a_variable_that_is_no_setting(monkeypatch):
    monkeypatch.setenv("ARRIERO_SLOTZ", "1")
    none, finding = configuration.read_settings({})
    assert none is None
    assert (finding.status, finding.mend) == ("fail", "unset ARRIERO_SLOTZ")
    monkeypatch.delenv("ARRIERO_SLOTZ")
    monkeypatch.setenv("ARRIERO_SLOTS", "many")
    assert configuration.read_settings({})[1].mend == "unset ARRIERO_SLOTS"


@pytest.mark.parametrize(
    ("text", "found", "mend"),
    [
        ("only_cpu = true\ngpus = '0'", "--only-cpu excludes --gpus, which is 0", "${EDITOR:-vi} "),
        ("[[models]]\nname = 'a'\nslotz = 1", "'slotz' in [[models]] 1 (a) is no setting of a model", "${EDITOR:-vi} "),
        (
            "[[models]]\nname = 'a'\nmodel = 'm'\nscript = '/no'",
            "--script is /no, which is not there",
            "${EDITOR:-vi} ",
        ),
        (
            "[[models]]\nname = 'a'\nupstream = 'http://h'\nkey_env = 'NO_SUCH_KEY'",
            "the environment variable NO_SUCH_KEY holds no key",
            "export NO_SUCH_KEY=...",
        ),
    ],
)
def test_settings_that_do_not_fit_together(tmp_path, text, found, mend):
    file = tmp_path / "arriero.toml"
    file.write_text(text)
    settings, _ = configuration.read_settings({"config": str(file)})
    finding = only(configuration.check_settings(settings))
    assert found in finding.found
    assert finding.mend == (f"{mend}{file}" if mend.endswith(" ") else mend)


def test_a_file_with_a_key_that_others_may_read(tmp_path):
    file = tmp_path / "arriero.toml"
    file.write_text("api_key = 'secret'\n")
    for mode, number in ((0o644, 1), (0o600, 0)):
        file.chmod(mode)
        settings, finding = configuration.read_settings({"config": str(file)})
        assert finding.status == "ok"
        assert [each.mend for each in configuration.check_secrets(settings)] == [f"chmod 600 {file}"] * number


# The caches


def test_a_cache_that_cannot_be_written_or_is_full(settings, tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    assert only(caches.check_cache(settings())).found == f"{tmp_path / 'cache'} is no directory"
    (tmp_path / "cache").unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**6))
    finding = only(caches.check_cache(settings()))
    assert (finding.status, finding.mend) == ("warn", "export ARRIERO_CACHE=/path/with/room")
    assert "has only 5.0 MB left" in finding.found


def test_models_that_are_not_whole(settings, hub, tiny, tmp_path):
    half = tmp_path / "cache" / "models" / NAME
    half.mkdir(parents=True)
    (half / "half.gguf").write_bytes(b"1234")
    conversion = tmp_path / "cache" / "converted" / "abc"
    conversion.mkdir(parents=True)
    hub.add("org/tiny", tiny)
    blob = (fetch(HubName("org/tiny")) / "config.json").resolve()
    assert [each.mend for each in wrong(caches.check_stored_models(settings()))] == [
        f"arriero models remove {NAME} --yes && arriero models pull {NAME}",
        f"rm -r {conversion}",
    ]
    blob.unlink()
    assert wrong(caches.check_stored_models(settings()))[-1].mend == f"rm -r {tmp_path / 'hub' / 'models--org--tiny'}"


# The model


def test_a_model_that_is_whole(settings, tiny):
    findings = list(models.check_models(settings(model=str(tiny), weights="fp32")))
    assert wrong(findings) == []
    lines = told(findings)
    assert lines[0].startswith(f"ok model: {tiny}: llama, F32, ")
    assert "runs on onnx. It can" in lines[1]
    assert "a chat template" in lines[2]
    assert " as fp32 and a full context " in lines[3]


@pytest.mark.parametrize(
    ("damage", "check", "message", "mend"),
    [
        (lambda path: (path / "config.json").unlink(), "model", "has no config.json", "ls -l "),
        (lambda path: (path / "config.json").write_text("{"), "model", "config.json", "ls -l "),
        (lambda path: os.truncate(path / "model.safetensors", 1000), "model", "model.safetensors", "ls -l "),
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer", "has no tokenizer", "arriero serve "),
        (lambda path: (path / "tokenizer_config.json").unlink(), "template", "no chat template", "arriero serve "),
    ],
)
def test_a_model_that_is_damaged(settings, tiny, damage, check, message, mend):
    damage(tiny)
    finding = only(models.check_models(settings(model=str(tiny))))
    assert finding.check == check
    assert message in finding.found
    assert finding.mend.startswith(f"{mend}{tiny}")


def test_a_model_that_needs_torch(settings, tiny, monkeypatch):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"architectures": ["OddForCausalLM"], "model_type": "odd"}))
    usual = models.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else usual(name))
    finding = only(models.check_models(settings(model=str(tiny))))
    assert finding.found.endswith("The onnx engine does not know the architecture OddForCausalLM.")
    assert finding.mend == installation.pip("arriero[torch]")


def test_a_model_that_does_not_fit_into_memory(settings, tiny, monkeypatch):
    for free, status, mend in (
        (1000, "fail", f"arriero serve {tiny} --weights int4"),
        (describe(tiny).parameters + 1000, "warn", f"arriero serve {tiny} --context "),
    ):
        monkeypatch.setattr("arriero.machine.available_memory", lambda free=free: free)
        finding = only(models.check_models(settings(model=str(tiny), context=128)))
        assert (finding.check, finding.status) == ("memory", status)
        assert finding.mend.startswith(mend)


def test_names_that_mean_nothing(settings, tmp_path):
    assert only(models.check_models(settings(model="nothing"))).mend == "arriero models list"
    findings = models.check_models(settings(model="nothing", lora={"a": "neither"}))
    assert [each.check for each in findings] == ["adapter", "model"]
    script = tmp_path / "script.json"
    script.write_text("[{}]")
    assert "needs 'reply'" in only(models.check_models(settings(engine="scripted", script=script))).found
    assert wrong(models.check_models(settings(engine="scripted"))) == []
    assert "--lora is a" in only(models.check_models(settings(engine="scripted", lora={"a": "b"}))).found


def test_every_table_of_models_is_looked_at(settings, tiny):
    tables = (
        {"name": "a", "model": str(tiny)},
        {"name": "b", "model": "nothing"},
        {"name": "c", "upstream": "http://h"},
    )
    findings = list(models.check_models(settings(models=tables)))
    assert [each.check for each in findings] == ["model", "engine", "tokenizer", "memory", "model"]


def test_a_model_of_the_catalog_that_is_yet_to_be_fetched(settings, monkeypatch):
    finding = only(models.check_models(settings()))
    assert (finding.status, finding.mend) == ("warn", f"arriero models pull {NAME}")
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    assert "1.0 kB are left" in only(models.check_models(settings())).found


def test_a_model_of_the_hub_that_is_yet_to_be_fetched(settings, hub, tiny):
    hub.add("org/tiny", tiny)
    hub.add("org/gated", tiny, gated=True)
    size = sum(file.stat().st_size for file in tiny.iterdir())
    finding = only(models.check_models(settings(model="org/tiny")))
    assert (finding.status, finding.mend) == ("warn", "arriero models pull org/tiny")
    assert finding.found.endswith(f"{size / 1000:.1f} kB")
    assert only(models.check_models(settings(model="org/gated"))).mend == "hf auth login"
    assert "There is no org/none" in only(models.check_models(settings(model="org/none"))).found
    fetch(HubName("org/tiny"))
    assert wrong(models.check_models(settings(model="org/tiny"))) == []


def test_a_repository_of_several_models(settings, hub):
    hub.add("org/several", {"a.Q4_0.gguf": b"", "a.Q8_0.gguf": b""})
    finding = only(models.check_models(settings(model="org/several")))
    assert finding.mend == "arriero models pull org/several:Q4_0"


def test_a_hub_that_says_nothing(settings, hub, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(models, "_PATIENCE", 0.05)
    monkeypatch.setattr(hub_source, "size", lambda name: ended.wait(10))
    finding = only(models.check_models(settings(model="org/tiny")))
    ended.set()
    assert (finding.check, finding.status) == ("hub", "fail")


# The address


@pytest.fixture
def taken():
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_port_that_something_else_has(settings, taken, monkeypatch):
    monkeypatch.setattr("arriero.backends.upstream._CHECK_SECONDS", 0.05)
    finding = only(address.check_address(settings(port=taken)))
    assert finding.status == "fail"
    assert finding.found.startswith(f"something else listens on port {taken}")
    assert finding.mend.startswith("arriero serve --port ")
    if sys.platform == "linux":
        assert listener(taken)[0] == os.getpid()


@pytest.mark.parametrize("key", [None, "k"])
def test_a_port_that_an_arriero_has(settings, go_live, key):
    live = go_live(api_key=key)
    finding = only(address.check_address(settings(port=int(live.url.rpartition(":")[2]))))
    assert finding.status == "warn"
    assert "an Arriero listens" in finding.found
    assert re.search("and is (ready|alive)$", finding.found)


def test_a_port_that_is_for_others(settings, monkeypatch):
    def refuse(host, port):
        raise ConfigError(f"cannot listen on {host} port {port}: permission denied")

    monkeypatch.setattr("arriero.cli.listen.bind_port", refuse)
    finding = only(address.check_address(settings(port=80)))
    assert (finding.found, finding.status) == ("cannot listen on 127.0.0.1 port 80: permission denied", "fail")


@pytest.mark.parametrize(
    ("given", "status", "mend"),
    [
        ({}, "fail", "arriero keys create NAME --store"),
        ({"no_auth": True}, "warn", "arriero keys create NAME"),
        ({"api_key": "k"}, "warn", "arriero serve --tls-certificate"),
        ({"host": "127.0.0.1"}, None, None),
    ],
)
def test_an_address_that_others_can_reach(settings, given, status, mend):
    findings = wrong(address.check_address(settings(**{"host": "0.0.0.0", "port": 0, **given})))
    assert [each.status for each in findings] == ([status] if status else [])
    assert all(each.mend.startswith(mend) for each in findings)


def test_a_certificate_that_is_none(settings, tmp_path):
    file = tmp_path / "cert.pem"
    file.write_text("no certificate")
    finding = only(address.check_address(settings(port=0, tls_certificate=file, tls_key=file)))
    assert (finding.check, finding.status) == ("tls", "fail")
    finding = only(address.check_address(settings(port=0, tls_certificate=file)))
    assert finding.found == "--tls-certificate and --tls-key go together"
    assert only(address.check_address(settings(port=0, tls_key=file))).mend == finding.mend
    assert finding.mend == "arriero serve --tls-certificate cert.pem --tls-key key.pem"


def test_socket_files(settings, tmp_path):
    place = tmp_path / "s"
    assert wrong(address.check_address(settings(unix_socket=place))) == []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen()
        assert only(address.check_address(settings(unix_socket=place))).mend == f"fuser -v {place}"
    assert "the next one replaces it" in next(iter(address.check_address(settings(unix_socket=place)))).found
    assert place.exists()
    place.unlink()
    place.touch()
    assert only(address.check_address(settings(unix_socket=place))).mend == f"mv {place} {place}.old"
    missing = tmp_path / "no" / "s"
    assert only(address.check_address(settings(unix_socket=missing))).mend == f"mkdir -p {missing.parent}"


def test_too_few_open_files(settings, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
    assert only(address.check_open_files(settings())).mend == "ulimit -n 448"
    assert only(address.check_open_files(settings(models=({"upstream": "http://h"},)))).mend == "ulimit -n 768"
    assert only(address.check_open_files(settings(max_queue=10_000))).mend == "ulimit -n 4096"
    assert wrong(address.check_open_files(settings(max_queue=10))) == []


# The store


def test_a_store_that_is_yet_to_be_made_and_one_that_is_whole(settings, tmp_path):
    assert told(store.check_store(settings()))[0].startswith("ok store: ")
    assert not (tmp_path / "arriero.db").exists()
    open_database(tmp_path / "arriero.db").close()
    assert told(store.check_store(settings())) == [f"ok store: {tmp_path / 'arriero.db'} is whole, 0 keys -> None"]
    (tmp_path / "arriero.db").chmod(0o644)
    assert only(store.check_store(settings())).mend == f"chmod 600 {tmp_path / 'arriero.db'}"


def test_a_store_that_is_damaged_or_newer(settings, tmp_path):
    file = tmp_path / "arriero.db"
    file.write_bytes(b"this is no database at all" * 100)
    file.chmod(0o600)
    assert only(store.check_store(settings())).mend == "export ARRIERO_STORE=/path/to/arriero.db"
    file.unlink()
    connection = open_database(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "a newer version" in only(store.check_store(settings())).found


def test_a_store_that_another_program_keeps(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_WAIT", 0.02)
    connection = open_database(tmp_path / "arriero.db")
    connection.execute("BEGIN IMMEDIATE")
    assert only(store.check_store(settings())).mend == f"fuser -v {tmp_path / 'arriero.db'}"
    connection.close()


def test_a_store_without_room(settings, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    assert "is full: 1.0 kB are left" in only(store.check_store(settings())).found


def test_a_broken_file_counts_no_keys(tmp_path):
    sqlite3.connect(tmp_path / "empty.db").close()
    assert store.num_keys(tmp_path / "empty.db") == 0


# A server that runs


def test_a_server_that_is_well(go_live):
    live = go_live()
    assert told(check_server(live.url, None, "scripted")) == [
        "ok server: it is alive and ready -> None",
        "ok server: its models: scripted -> None",
    ]
    assert only(check_server(live.url, None, "other")).found == "it has no model 'other'; it has scripted"


def test_a_server_that_wants_a_key(go_live):
    live = go_live(api_key="k")
    finding = only(check_server(live.url, None, None))
    assert finding.mend == f"arriero doctor --url {live.url}/v1 --api-key KEY"
    assert wrong(check_server(live.url, "k", None)) == []


@contextmanager
def telling(answers):
    """A server that has an answer to some paths, a status and a JSON value, and 404 to others."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, value = answers.get(self.path, (404, {}))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


LISTED = (200, {"data": [{"id": "m"}]})


@pytest.mark.parametrize(
    ("answers", "lines"),
    [
        ({"/v1/models": LISTED}, ["ok its models: m"]),
        ({"/v1/models": (404, {})}, ["fail http URL/v1 answered 404: {}"]),
        (
            {"/health/live": (200, {"status": "ok"}), "/health/ready": (503, {"status": "loading"})},
            ["warn it is loading"],
        ),
        (
            {"/health/live": (503, {"status": "failed", "reason": "an engine failed"}), "/health/ready": (503, {})},
            ["fail it is not alive: an engine failed"],
        ),
        (
            {
                "/health/live": (200, {"status": "ok"}),
                "/health/ready": (200, {"status": "ready", "warning": "the disk is full"}),
                "/v1/models": LISTED,
            },
            ["ok it is alive and ready", "warn its store cannot be used: the disk is full", "ok its models: m"],
        ),
    ],
)
def test_servers_tell_how_they_are(answers, lines):
    with telling(answers) as url:
        findings = list(check_server(url, None, None))
    assert [f"{each.status} {each.found}".replace(url, "http URL") for each in findings] == lines
    if "not alive" in lines[0] and sys.platform == "linux":
        assert findings[0].mend == f"kill {os.getpid()}"


def test_a_model_that_is_named_with_a_url_is_the_server_s(call, monkeypatch):
    monkeypatch.setattr("arriero.cli.doctor.command._OF_INSTALLATION", ())
    monkeypatch.setattr("arriero.cli.doctor.command._OF_SETTINGS", (("model", "models.check_models"),))
    with telling({"/v1/models": LISTED}) as url:
        finished = call("doctor", "m", "--url", url, "--json", ARRIERO_ENGINE="scripted")
    assert finished.status == 0, finished.stdout


def test_a_server_that_is_not_there():
    assert only(check_server("http://127.0.0.1:1", None, "tiny")).mend == "arriero serve tiny"
