"""What may stand in a table of the configuration that names other servers."""

import tomllib

import pytest

from arriero.app.upstreams import has_own_model
from arriero.config import Settings
from arriero.errors import ConfigError
from arriero.upstream_tables import upstream_tables


def read(text):
    return upstream_tables(tomllib.loads(text)["models"])


def test_a_table_has_one_address_or_several():
    first, second = read(
        """
        [[models]]
        name = "gpt"
        upstream = "https://api.openai.com"
        key_env = "OPENAI_API_KEY"
        [[models]]
        name = "local"
        model = "of another kind"
        [[models]]
        name = "here/*"
        key = "sk-1"
        upstream = [{url = "http://127.0.0.1:1/v1", weight = 2}, {url = "http://[::1]:2/a/v1/", key = "sk-2"}]
        """
    )
    assert [(each.url, each.key_env) for each in first.upstream] == [("https://api.openai.com/v1", "OPENAI_API_KEY")]
    assert [(each.url, each.key, each.weight) for each in second.upstream] == [
        ("http://127.0.0.1:1/v1", "sk-1", 2),
        ("http://[::1]:2/a/v1", "sk-2", 1),
    ]
    assert "sk-" not in repr((first, second))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("upstream = 'http://a'", "name: it has to be there"),
        ("name = 'a'\nupstream = 'ftp://a'", "upstream.0.url: not an http:// or https:// address"),
        ("name = 'a'\nupstream = 'http://user:sk-secret@a/v1'", "upstream.0.url: a key in the address; use key"),
        ("name = 'a'\nupstream = 'http://a/v1?key=sk-secret'", "upstream.0.url: an address with more than"),
        ("name = 'a'\nupstream = 'http://a:b/v1'", "upstream.0.url: no address"),
        ("name = 'a'\nupstream = []", "upstream: expected an address such as"),
        ("name = 'a'\nupstream = 'http://a'\nkey = 'sk secret'", "key: no key: expected printable ASCII"),
        ("name = 'a'\nupstream = 'http://a'\nkey = 'sk-secret'\nkey_env = 'B'", "upstream.0: key and key_env exclude"),
        ("name = 'a'\nupstream = 'http://a'\nkey = 'sk-secret'\nforward_key = true", "forward_key excludes key"),
        ("name = 'a b'\nupstream = 'http://a'", "name is 'a b': expected a name without spaces"),
        ("name = 'a*b'\nupstream = 'http://a'", "name is 'a*b'"),
        ("name = 'a/*'\nmodel = 'b'\nupstream = 'http://a'", "name and model must both end with *"),
        ("name = 'a'\nupstream = 'http://a'\nforward = true", "forward: no such setting"),
        ("name = 'a'\nupstream = 3", "upstream: expected an address such as"),
        ("name = 'a'\nupstream = [3]", "upstream.0: expected an address such as"),
        ("name = 'a'\nupstream = 'http://a'\nforward_key = 'x'", "forward_key: expected true or false"),
    ],
)
def test_a_table_that_is_wrong_is_named_without_its_keys(lines, message):
    with pytest.raises(ConfigError) as error:
        read(f"[[models]]\nname = 'fine'\nupstream = 'http://a'\n[[models]]\n{lines}\n")
    assert str(error.value).startswith(f"[[models]] 2: {message}")
    assert "secret" not in str(error.value)


def test_one_address_may_be_a_table():
    (table,) = read("[[models]]\nname = 'a'\nkey = 'sk-1'\nupstream = {url = 'http://a', weight = 2}\n")
    assert [(each.url, each.weight, each.key) for each in table.upstream] == [("http://a/v1", 2, "sk-1")]


def test_a_name_stands_once():
    with pytest.raises(ConfigError, match=r"two .* have the name 'a'"):
        read("[[models]]\nname = 'a'\nupstream = 'http://a'\n" * 2)


def test_a_server_has_a_model_of_its_own_if_one_is_named_or_nobody_else_answers():
    other = ({"name": "a", "upstream": "http://a"},)
    assert has_own_model(Settings())
    assert has_own_model(Settings(model="b", models=other))
    assert has_own_model(Settings(engine="scripted", models=other))
    assert not has_own_model(Settings(models=other))
