import pytest

from arriero import config_sources
from arriero.errors import ConfigError
from arriero.model_tables import PER_MODEL, model_tables


def read(tmp_path, text, **flags):
    file = tmp_path / "arriero.toml"
    file.write_text(text)
    return model_tables(config_sources.load({"config": str(file), **flags}, {}))


def test_a_table_is_over_what_holds_for_all(tmp_path):
    first, second = read(
        tmp_path,
        """
        slots = 3
        ttl = 60
        weights = "int8"

        [[models]]
        name = "small"
        model = "smollm2-135m-instruct"
        aliases = ["gpt-4o", "gpt-*"]
        default = true
        preload = true

        [[models]]
        name = "other"
        model = "~/model"
        weights = "fp32"
        context = 512
        ttl = 0
        profile = "alpaca"
        lora = {alice = "place"}
        """,
        threads="2",
    )
    assert (first.name, first.aliases, first.default, first.preload) == ("small", ("gpt-4o", "gpt-*"), True, True)
    assert (first.ttl, second.ttl) == (60, 0)
    assert (first.settings.model_name, first.settings.model) == ("small", "smollm2-135m-instruct")
    assert (first.settings.slots, first.settings.weights, first.settings.threads) == (3, "int8", 2)
    assert (second.settings.slots, second.settings.weights, second.settings.context) == (3, "fp32", 512)
    assert second.settings.lora == {"alice": "place"}
    assert (second.settings.profile, first.settings.profile) == ("alpaca", "openai")
    assert second.settings.models == ()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('name = "a"\nweight = "int8"', ["'weight' in [[models]] 1 (a)", "did you mean weights?"]),
        ('name = "a"\nport = 1', ["'port' in [[models]] 1 (a) is no setting of a model"]),
        ('name = "a"\nslots = 0', ["'slots' in [[models]] 1 (a) is 0", "from 1 to 1024"]),
        ('name = "a"\nslots = true', ["'slots' in [[models]] 1 (a) is True"]),
        ('name = "a"\nweights = "int9"', ["is 'int9'", "did you mean int8?"]),
        ('name = "a"\nttl = true', ["'ttl' in [[models]] 1 (a) is True", "a number from 0"]),
        ('name = "a"\nttl = -1', ["'ttl' in [[models]] 1 (a) is -1", "a number from 0"]),
        ('name = "a"\npreload = 1', ["'preload'", "true or false"]),
        ('name = "a"\naliases = "b"', ["'aliases'", "a list of texts"]),
        ('name = "a"\ndefaults = 3', ["'defaults'", "a table of parameters"]),
        ('model = "a"', ["'name' in [[models]] 1 is None"]),
        ('name = ""', ["'name' in [[models]] 1 () is ''"]),
        ('name = "a*"', ["'name'", "is 'a*'", "without *"]),
        ('name = "a\\nb"', ["'name'", "printable"]),
        ('name = "a"\naliases = ["b", ""]', ["'aliases'", "a list of texts"]),
        ('name = "a"\naliases = ["b*c"]', ["'aliases'", "* only at their end"]),
        ('name = "a"\nprofile = []', ["'profile' in [[models]] 1 (a) is []", "openai"]),
        ('name = "a"\nscript = "\\u0000"', ["'script' in [[models]] 1 (a)", "a path"]),
        ('name = "a"\n[[models]]\nname = "a"', ["two [[models]] have the name or alias 'a'"]),
        ('name = "a"\naliases = ["b"]\n[[models]]\nname = "b"\nupstream = "http://b"', ["or alias 'b'"]),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, table, words):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, f"[[models]]\n{table}\n")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_short_form_and_tables_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="MODEL is for a server of one model"):
        read(tmp_path, '[[models]]\nname = "a"\n', model="b")
    with pytest.raises(ConfigError, match="--memory-budget is for several models"):
        read(tmp_path, 'memory_budget = "1GiB"\n')
    with pytest.raises(ConfigError, match="default, not a and b"):
        read(tmp_path, '[[models]]\nname = "a"\ndefault = true\n[[models]]\nname = "b"\ndefault = true\n')
    with pytest.raises(ConfigError, match="no list of tables"):
        read(tmp_path, 'models = "a"\n')


def test_tables_have_no_variable(tmp_path):
    with pytest.raises(ConfigError, match="ARRIERO_MODELS"):
        config_sources.load({}, {"ARRIERO_MODELS": "a"})


def test_no_model_has_settings_of_the_server():
    assert {"model", "slots", "weights", "profile", "pace"} <= PER_MODEL
    assert not PER_MODEL & {"port", "cache", "models", "grace", "config", "memory_budget"}


def test_without_tables_there_are_none():
    assert model_tables(config_sources.load({}, {})) == []
