"""What sentence-transformers and transformers make of texts with the catalog's all-MiniLM-L6-v2, in minilm.npz.

python tests/references/minilm.py MODEL      makes minilm.npz; MODEL is the directory, needs sentence-transformers

vectors    float16 [texts, 384]    of `texts()`, length 1
ids        uint16 [ids]            of `tokenizer_strings.strings()`, behind each other, special tokens included
lengths    uint16 [strings]        ids of each
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from references.tokenizer_strings import strings

FILE = Path(__file__).with_suffix(".npz")


def texts() -> list[str]:
    """Two hundred texts of many languages and lengths, some empty, some far too long for the model."""
    draw = random.Random(20261122)
    pool = strings()
    made = ["", " ", "\n\t", "word " * 600, "\u4f60\u597d" * 400, "a" * 5000]
    made += draw.sample(pool, 94)
    made += [" ".join(draw.sample(pool, draw.randint(2, 30))) for _ in range(200 - len(made))]
    return made


def make(model: Path) -> dict[str, NDArray[np.generic]]:
    """The file's contents."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu")
    ids = [encoder.tokenizer(text)["input_ids"] for text in strings()]
    return {
        "vectors": encoder.encode(texts()).astype(np.float16),
        "ids": np.concatenate(ids).astype(np.uint16),
        "lengths": np.array([len(each) for each in ids], np.uint16),
    }


if __name__ == "__main__":
    np.savez_compressed(FILE, **make(Path(sys.argv[1])))
