from __future__ import annotations

from arriero.models.architecture import DecoderConfig
from arriero.models.card import decoder_tasks, num_parameters


def test_parameters_of_a_known_model() -> None:
    """SmolLM2-135M: 134,515,008 weights, as its publisher's safetensors file lists them."""
    config = DecoderConfig(
        family="llama",
        num_layers=30,
        hidden_size=576,
        intermediate_size=1536,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        context=8192,
        norm_epsilon=1e-5,
        rope_theta=100000.0,
        tie_embeddings=True,
    )
    assert num_parameters(config) == 134_515_008


def test_a_decoder_can_be_asked_for_what_it_has() -> None:
    assert decoder_tasks(chats=True, embeds=True) == ("completion", "chat", "embedding", "rerank", "score")
    assert decoder_tasks(chats=False, embeds=True) == ("completion", "embedding", "rerank", "score")
    assert decoder_tasks(chats=False, embeds=False) == ("completion",)
