"""Encoders whose weights are pickled."""

import numpy as np
import torch
from safetensors.torch import load_file

from app.test_encoder import post, serving, vectors, write


async def test_they_give_the_vectors_of_their_safetensors(tmp_path):
    path = write(tmp_path / "bert")
    found = []
    for _ in range(2):
        async with serving(path, tmp_path) as (_model, client):
            found.append(vectors(await post(client, "/v1/embeddings", input=["w1 w2", "w3"])))
        weights = path / "model.safetensors"
        if weights.exists():
            torch.save(load_file(weights), path / "pytorch_model.bin")
            weights.unlink()
    np.testing.assert_array_equal(found[0], found[1])
