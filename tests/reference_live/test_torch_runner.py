"""Logits of the torch runner against transformers' own forward, family by family."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from arriero.compute import Row, Want
from arriero.errors import ConfigError, ModelLoadError, UnsupportedModel
from arriero.runners.torch import load_runner
from reference_live.torch_models import DECODERS, ENCODER_DECODERS, VOCABULARY, save

TOLERANCE = 1e-5


def random_tokens(count, seed):
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()


def load(directory, **settings):
    return load_runner(directory, **{"slots": 8, "threads": 1, **settings})


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    model = save(request.param, directory)
    loaded = load(directory)
    yield model, loaded
    loaded.runner.close()


@torch.inference_mode()
def own_logits(model, tokens, source=None):
    if source is None:
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([tokens])}
    return model(**inputs, use_cache=False).logits[0].numpy()


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * max(1.0, np.abs(expected).max()))


def test_all_models_with_keys_and_values_are_batched(decoder):
    model, loaded = decoder
    assert loaded.batched == (model.config.model_type not in ("mamba", "lfm2"))
    assert loaded.runner.info.invariant != loaded.batched


def test_a_crowd_of_different_lengths_has_the_models_own_logits(decoder):
    """Prompts in chunks, decoding together, somebody leaves, somebody comes, long beside short."""
    model, loaded = decoder
    runner = loaded.runner
    prompts = {slot: random_tokens(length, slot) for slot, length in enumerate((5, 1, 30, 12))}
    answers = {slot: random_tokens(6, 100 + slot) for slot in (0, 1, 2, 3, 4)}
    runner.step([Row(2, prompts[2][:11], 0, Want.NOTHING)])
    runner.step([Row(0, prompts[0], 0), Row(2, prompts[2][11:], 11, Want.NOTHING), Row(1, prompts[1], 0)])
    close(runner.step([Row(3, prompts[3], 0, Want.ALL)]), own_logits(model, prompts[3]))
    held = dict(prompts)

    def decode(slots, place):
        rows = [Row(slot, [answers[slot][place]], len(held[slot])) for slot in slots]
        for slot in slots:
            held[slot] = [*held[slot], answers[slot][place]]
        for slot, logits in zip(slots, runner.step(rows), strict=True):
            close(logits, own_logits(model, held[slot])[-1])

    decode([0, 1, 2, 3], 0)
    decode([3, 1, 0, 2], 1)
    runner.free(1)
    runner.copy([(0, 2), (2, 0), (2, 4)])
    held = {0: held[2], 2: held[0], 3: held[3], 4: held[2]}
    decode([0, 2, 3, 4], 2)
    decode([0, 3], 3)
    runner.truncate(2, 3)
    held[2] = held[2][:3]
    decode([4, 2], 4)
    for slot in range(8):
        runner.free(slot)


def test_long_and_short_answers_have_packs_of_their_own(tmp_path):
    """Padding never takes more than the tokens do, and nobody's logits change when a row outgrows its pack."""
    model = save("bloom", tmp_path)
    runner = load(tmp_path).runner
    held = {slot: random_tokens(length, slot) for slot, length in enumerate((5, 254, 600, 300))}
    for slot, tokens in held.items():
        runner.step([Row(slot, tokens, 0, Want.NOTHING)])
    for place in range(4):
        rows = [Row(slot, [20 + place], len(tokens)) for slot, tokens in held.items()]
        held = {slot: [*tokens, 20 + place] for slot, tokens in held.items()}
        for tokens, logits in zip(held.values(), runner.step(rows), strict=True):
            close(logits, own_logits(model, tokens)[-1])


def test_long_and_short_sources_have_packs_of_their_own(tmp_path):
    model = save("t5", tmp_path)
    runner = load(tmp_path).runner
    sources = {slot: random_tokens(length, slot) for slot, length in enumerate((5, 300, 7, 520))}
    held = {slot: [0] for slot in sources}
    for slot, source in sources.items():
        runner.encode(slot, source)
        runner.step([Row(slot, [0], 0)])
    decode(runner, model, sources, held, list(held), 5)
    decode(runner, model, sources, held, [3, 0, 2, 1], 6)


CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

class OddConfig(PreTrainedConfig):
    model_type = "odd"
    def __init__(self, vocab_size=120, hidden_size=32, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)

class OddForCausalLM(PreTrainedModel):
    config_class = OddConfig
    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()
    def get_input_embeddings(self):
        return self.table
    def forward(self, input_ids, **kwargs):
        return CausalLMOutput(logits=torch.tanh(self.table(input_ids).cumsum(1)) @ self.table.weight.T)
"""


def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(tmp_path):
    """A model without any cache, whose answers are read from their beginning for every token."""
    (tmp_path / "odd.py").write_text(CODE)
    names = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
    config = {"model_type": "odd", "architectures": ["OddForCausalLM"], "auto_map": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(VOCABULARY, 32)).astype(np.float32))
    save_file({"table.weight": table}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModel, match="--trust-remote-code"):
        load(tmp_path)
    loaded = load(tmp_path, trust_remote_code=True)
    assert not loaded.batched
    tokens = random_tokens(7, 3)
    loaded.runner.step([Row(0, tokens[:5], 0), Row(1, tokens[::-1], 0)])
    logits = loaded.runner.step([Row(0, tokens[5:], 5, Want.ALL), Row(1, [4], 7)])
    expected = (torch.tanh(table[tokens].cumsum(0)) @ table.T).numpy()
    np.testing.assert_allclose(logits[:2], expected[5:], rtol=0, atol=1e-4)


def test_hidden_states_are_those_behind_the_last_norm(decoder):
    model, loaded = decoder
    tokens = random_tokens(9, 1)
    with torch.inference_mode():
        expected = model.base_model(torch.tensor([tokens])).last_hidden_state[0]
    states = np.concatenate([loaded.runner.states(Row(0, tokens[:4], 0)), loaded.runner.states(Row(0, tokens[4:], 4))])
    assert states.shape == (9, loaded.runner.info.hidden_size)
    assert_close(torch.from_numpy(states), expected, rtol=0, atol=TOLERANCE * 10)
    loaded.runner.free(0)


@pytest.mark.parametrize("weights", ["bf16", "fp16", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_other_formats_are_near(name, weights, tmp_path):
    model = save(name, tmp_path)
    runner = load(tmp_path, weights=weights).runner
    tokens, source = random_tokens(9, 1), random_tokens(7, 2) if name == "t5" else None
    if source:
        runner.encode(0, source)
    actual, expected = runner.step([Row(0, tokens, 0, Want.ALL)]), own_logits(model, tokens, source)
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()
    assert np.abs(actual - expected).max() > 0


@pytest.fixture(scope="module", params=ENCODER_DECODERS)
def encoder_decoder(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    model = save(request.param, directory)
    loaded = load(directory)
    assert loaded.batched == (request.param != "led")
    yield model, loaded.runner
    loaded.runner.close()


def test_answers_to_sources_of_different_lengths_are_decoded_together(encoder_decoder):
    model, runner = encoder_decoder
    sources = {slot: random_tokens(length, slot) for slot, length in enumerate((4, 17, 9))}
    held = {slot: list(runner.info.decoder_start) for slot in sources}
    for slot, source in sources.items():
        runner.encode(slot, source)
    for slot in (2, 0, 1):  # at different times, so that they have different lengths
        logits = runner.step([Row(slot, held[slot], 0)])
        close(logits[0], own_logits(model, held[slot], sources[slot])[-1])
        together = [other for other in held if len(held[other]) > 1]
        decode(runner, model, sources, held, [*together, slot], 50 + slot)
    runner.copy([(0, 3), (1, 0)])
    held |= {3: held[0], 0: held[1]}
    sources |= {3: sources[0], 0: sources[1]}
    decode(runner, model, sources, held, [3, 1, 2, 0], 60)
    runner.truncate(2, 1)
    held[2] = held[2][:1]
    decode(runner, model, sources, held, [2, 3], 70)
    for slot in range(8):
        runner.free(slot)


def decode(runner, model, sources, held, slots, seed):
    tokens = random_tokens(len(slots), seed)
    rows = [Row(slot, [token], len(held[slot])) for slot, token in zip(slots, tokens, strict=True)]
    for slot, token in zip(slots, tokens, strict=True):
        held[slot] = [*held[slot], token]
    for slot, logits in zip(slots, runner.step(rows), strict=True):
        close(logits, own_logits(model, held[slot], sources[slot])[-1])


def test_a_copied_source_can_be_answered_twice(encoder_decoder):
    """As `n` does with a prompt that was only encoded."""
    model, runner = encoder_decoder
    source, start = random_tokens(6, 9), list(runner.info.decoder_start)
    runner.encode(0, source)
    runner.copy([(0, 5)])
    runner.free(0)
    close(runner.step([Row(5, start, 0)])[0], own_logits(model, start, source)[-1])
    runner.free(5)


@pytest.mark.parametrize("in_file", ["config.json", "generation_config.json"])
def test_generation_settings_say_how_answers_begin_and_what_they_never_say(in_file, tmp_path):
    """Older repositories have them in config.json, as those of Marian models."""
    save("marian", tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    given = {"decoder_start_token_id": 1, "forced_bos_token_id": 7, "bad_words_ids": [[9], [1, 2]]}
    file = tmp_path / in_file
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | given))
    loaded = load(tmp_path)
    assert loaded.runner.info.decoder_start == (1, 7)
    loaded.runner.encode(0, random_tokens(5, 1))
    logits = loaded.runner.step([Row(0, [1, 7], 0)])[0]
    assert logits[9] == logits.min() < -1000
    assert (logits < -1000).sum() == 1


def test_a_tensor_that_is_missing_is_refused(tmp_path):
    save("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"1 tensors are missing, among them transformer\.h\.1\.mlp\.c_fc\.weight"):
        load(tmp_path)


def test_a_file_that_was_cut_is_refused(tmp_path):
    save("gpt2", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="transformers cannot load it"):
        load(tmp_path)


def test_pickled_weights_are_read_without_running_them(tmp_path):
    model = save("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    tokens = random_tokens(5, 1)
    close(load(tmp_path).runner.step([Row(0, tokens, 0)])[0], own_logits(model, tokens)[-1])
    torch.save({"transformer.wte.weight": pytest.raises}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="transformers cannot load it"):
        load(tmp_path)


def test_gpus_that_are_not_there_are_refused(tmp_path, monkeypatch):
    save("gpt2", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="--gpus is 7,8, but PyTorch finds"):
        load(tmp_path, gpus="7,8")


def test_settings_that_do_not_fit_are_refused(tmp_path):
    save("gpt2", tmp_path)
    with pytest.raises(ConfigError, match="--context is 1000, but the model was made for 128"):
        load(tmp_path, context=1000)
    with pytest.raises(ConfigError, match="--weights is int4"):
        load(tmp_path, weights="int4")
