from pathlib import Path

import pytest

from arriero import config, config_sources
from arriero.config_description import expected, group
from arriero.errors import ConfigError


def toml(directory: Path, text: str) -> str:
    path = directory / "arriero.toml"
    path.write_text(text)
    return str(path)


def test_every_setting_has_a_default():
    settings = config_sources.load({}, {})
    assert settings.host == "127.0.0.1"
    assert settings.port == 8000
    assert settings.model is None
    assert settings.cache.name == "arriero"


def test_flags_over_variables_over_file_over_default(tmp_path):
    file = toml(tmp_path, "slots = 1\nport = 1\nmax_queue = 1\n")
    settings = config_sources.load({"config": file, "slots": "3"}, {"ARRIERO_SLOTS": "2", "ARRIERO_PORT": "2"})
    assert (settings.slots, settings.port, settings.max_queue, settings.threads) == (3, 2, 1, 0)
    assert str(settings.config) == file


def test_the_file_can_be_named_by_a_variable(tmp_path):
    assert config_sources.load({}, {"ARRIERO_CONFIG": toml(tmp_path, 'weights = "fp32"')}).weights == "fp32"


def test_a_flag_names_another_file_than_the_variable(tmp_path):
    file = toml(tmp_path, "slots = 5")
    assert config_sources.load({"config": file}, {"ARRIERO_CONFIG": "/nowhere.toml"}).slots == 5


def test_a_variable_set_to_nothing_is_not_set():
    assert config_sources.load({}, {"ARRIERO_MODEL_NAME": ""}).model_name is None


def test_settings_are_frozen():
    settings = config_sources.load({}, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_home_and_sizes_are_understood():
    settings = config_sources.load({"cache": "~/models", "body_limit": "2MiB"}, {})
    assert settings.cache == Path.home() / "models"
    assert settings.body_limit == 2 * 2**20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "70000"}, "--port is '70000', expected a whole number from 0 to 65535"),
        ({"port": "http"}, "--port is 'http', expected a whole number from 0 to 65535"),
        ({"grace": "nan"}, "--grace is 'nan', expected a number from 0 to 86400"),
        ({"weights": "int9"}, "expected one of auto, int8, int4, fp32, bf16, fp16 (did you mean int8?)"),
        ({"gpus": "cuda"}, "--gpus is 'cuda', expected a text such as 0,1 or none"),
        ({"model_name": " "}, "--model-name is ' ', expected a text that is not empty"),
        ({"model_name": "a\nb"}, "--model-name is 'a\\nb', expected a text that is not empty, of printable characters"),
        ({"trusted_proxies": "x,10.0.0.0/8"}, "--trusted-proxies is 'x,10.0.0.0/8', expected a text such as 127.0.0.1"),
        ({"trusted_proxies": "10.0.0.0/99"}, "--trusted-proxies is '10.0.0.0/99'"),
        ({"trusted_proxies": "10.0.0.1/8"}, "--trusted-proxies is '10.0.0.1/8'"),
        ({"api_key": "a\0b"}, "--api-key is not a text of 1 to 256 printable characters"),
        ({"host": ""}, "--host is '', expected a text that is not empty"),
        ({"model": ""}, "MODEL is '', expected a text that is not empty"),
        ({"body_limit": "lots"}, "--body-limit is 'lots', expected a size such as 16MiB, at least 1KiB"),
        ({"config": "/nowhere.toml"}, "cannot read the configuration file /nowhere.toml: No such file"),
    ],
)
def test_an_impossible_flag_is_named(flags, message):
    with pytest.raises(ConfigError) as error:
        config_sources.load(flags, {})
    assert message in str(error.value)


def test_every_impossible_value_is_named_at_once():
    with pytest.raises(ConfigError, match=r"--port is .*; ARRIERO_SLOTS is '0', expected a whole number from 1"):
        config_sources.load({"port": "-1"}, {"ARRIERO_SLOTS": "0"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slotz = 3", "'slotz' in {} is no setting (did you mean slots?)"),
        ("max-queue = 3", "'max-queue' in {} is no setting (did you mean max_queue?)"),
        ("config = 'other.toml'", "'config' in {} is no setting"),
        ("slots = true", "'slots' in {} is True, expected a whole number"),
        ("slots = 1.5", "'slots' in {} is 1.5, expected a whole number"),
        ("host = 5", "'host' in {} is 5, expected a text that is not empty"),
        ("[server]\nport = 1", "'server' in {} is no setting"),
        ("slots = ", "the configuration file {} is not TOML"),
    ],
)
def test_an_impossible_file_is_named(tmp_path, text, message):
    file = toml(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        config_sources.load({"config": file}, {})
    assert message.format(file) in str(error.value)


def test_an_unknown_variable_is_named():
    with pytest.raises(
        ConfigError, match=r"ARRIERO_SLOTZ in the environment is no setting \(did you mean ARRIERO_SLOTS"
    ):
        config_sources.load({}, {"ARRIERO_SLOTZ": "3", "PATH": "/bin"})


@pytest.mark.parametrize("name", config.Settings.model_fields)
def test_every_declaration_is_complete(name):
    field = config.Settings.model_fields[name]
    assert field.description
    assert field.description.endswith(".")
    assert group(field)
    assert name in config.TABLES or expected(field)


LIMITS = {"prompt": 0, "tokens": 0, "n": 128, "logprobs": 20}


@pytest.mark.parametrize(("name", "default"), LIMITS.items())
def test_the_limits_of_requests_have_langports_names(tmp_path, name, default):
    key = f"completion_max_{name}"
    assert getattr(config_sources.load({}, {}), key) == default
    assert getattr(config_sources.load({}, {f"COMPLETION_MAX_{name.upper()}": "7"}), key) == 7
    assert getattr(config_sources.load({"config": toml(tmp_path, f"{key} = 8")}, {}), key) == 8
    assert getattr(config_sources.load({key: "9"}, {f"COMPLETION_MAX_{name.upper()}": "7"}), key) == 9
    with pytest.raises(ConfigError, match=f"COMPLETION_MAX_{name.upper()} is 'x', expected a whole number"):
        config_sources.load({}, {f"COMPLETION_MAX_{name.upper()}": "x"})


def test_a_limit_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"COMPLETION_MAX_TOKEN in .* \(did you mean COMPLETION_MAX_TOKENS\?\)"):
        config_sources.load({}, {"COMPLETION_MAX_TOKEN": "3"})


def test_a_profile_brings_its_port():
    assert config_sources.load({"profile": "alpaca"}, {}).port == 19327
    assert config_sources.load({"profile": "alpaca", "port": "0"}, {}).port == 0
    assert config_sources.load({}, {"ARRIERO_PROFILE": "alpaca"}).host == "127.0.0.1"
    with pytest.raises(ConfigError, match="did you mean alpaca"):
        config_sources.load({"profile": "alpaka"}, {})


def test_adapters_come_as_flags_a_variable_or_a_table(tmp_path):
    wanted = {"alice": "a/b", "bob": "c=d"}
    assert config_sources.load({"lora": ["alice=a/b", "bob=c=d"]}, {}).lora == wanted
    assert config_sources.load({}, {"ARRIERO_LORA": "alice=a/b,bob=c=d"}).lora == wanted
    file = toml(tmp_path, "[lora]\nalice = 'a/b'\nbob = 'c=d'\n")
    assert config_sources.load({"config": file}, {}).lora == wanted
    assert config_sources.load({}, {}).lora == {}


@pytest.mark.parametrize("given", [["alice"], ["=a"], ["alice="], ["alice=a", "alice=b"]], ids=str)
def test_adapters_without_a_name_or_place_are_named(given):
    with pytest.raises(ConfigError, match=r"--lora is .* expected pairs such as alice="):
        config_sources.load({"lora": given}, {})


def test_tables_stand_in_the_file_alone(tmp_path):
    file = toml(tmp_path, "[[models]]\nname = 'a'\nupstream = 'http://a'\n")
    assert config_sources.load({"config": file}, {}).models == ({"name": "a", "upstream": "http://a"},)
    with pytest.raises(ConfigError, match="ARRIERO_MODELS in the environment is no setting"):
        config_sources.load({}, {"ARRIERO_MODELS": "a"})
    file = toml(tmp_path, "models = 'sk-secret'")
    with pytest.raises(ConfigError, match=r"'models' in .* is no list of tables: write \[\[models\]\] before each$"):
        config_sources.load({"config": file}, {})


@pytest.mark.parametrize("text", ["*", "127.0.0.1", "::1,10.0.0.0/8,fd00::/8"])
def test_proxies_are_addresses_and_networks(text):
    assert config_sources.load({"trusted_proxies": text}, {}).trusted_proxies == text
