"""What LoRA adapters cost the ONNX engine: tokens a second of decoding steps, with none, one and several over one base.

    python benchmarks/adapters.py [--weights int8] [--threads 1]

Adapters are random, of a rank for all or some linear layers of the catalog's default model; rows take turns with them
and with the base. Time is the process's own processor time, so that other work on the machine counts little; with
one thread that is what a step takes. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from arriero.compute import Row, Runner, Want
from arriero.config_sources import load
from arriero.models.adapters.lora import Adapter
from arriero.models.architecture import Checkpoint
from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.layout import tensor_shapes
from arriero.models.sources.resolve import resolve
from arriero.runners.onnx import load_runner

ATTENTION = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, list[tuple[int, list[str]]]] = {
    "no adapter": [],
    "1 of rank 8, queries and values": [(8, ATTENTION)],
    "1 of rank 16, all linear layers": [(16, ALL)],
    "4 of rank 16, all linear layers": [(16, ALL)] * 4,
}
ROWS = (1, 4, 16)
PROMPT, STEPS, REPETITIONS = 100, 24, 3


def make_adapter(directory: Path, checkpoint: Checkpoint, rank: int, targets: list[str], seed: int) -> Adapter:
    """A random adapter of a rank for these layers."""
    random = np.random.default_rng(seed)
    directory.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, shape in tensor_shapes(checkpoint.config):
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            prefix = f"base_model.model.{module}"
            tensors[f"{prefix}.lora_A.weight"] = random.standard_normal((rank, shape[1]), dtype=np.float32) / 100
            tensors[f"{prefix}.lora_B.weight"] = random.standard_normal((shape[0], rank), dtype=np.float32) / 100
    save_file(tensors, directory / "adapter_model.safetensors")
    return Adapter(directory, checkpoint)


def speed(runner: Runner, num_rows: int) -> float:
    """Tokens a second of processor time, the best of a few runs."""
    adapters = [row % (runner.info.num_adapters + 1) for row in range(num_rows)]
    for row, adapter in enumerate(adapters):
        runner.step([Row(row, list(range(100, 100 + PROMPT)), 0, Want.NOTHING, adapter)])
    best = 0.0
    for first in range(PROMPT, PROMPT + REPETITIONS * STEPS, STEPS):
        start = time.process_time()
        for position in range(first, first + STEPS):
            runner.step([Row(row, [300], position, Want.LAST, adapter) for row, adapter in enumerate(adapters)])
        best = max(best, num_rows * STEPS / (time.process_time() - start))
    for row in range(num_rows):
        runner.free(row)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=("int8", "int4", "fp32"), default="int8")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    settings = load({})
    checkpoint = open_checkpoint(resolve(None, settings.cache).path)
    print(f"| {options.weights}, tokens a processor second | " + " | ".join(f"{n} rows" for n in ROWS) + " |")
    print("|---" * (len(ROWS) + 1) + "|")
    with tempfile.TemporaryDirectory() as directory:
        for case, wanted in CASES.items():
            adapters = [
                make_adapter(Path(directory) / f"{case} {number}", checkpoint, rank, targets, number)
                for number, (rank, targets) in enumerate(wanted)
            ]
            runner = load_runner(
                checkpoint,
                weights=options.weights,
                slots=max(ROWS),
                context=256,
                threads=options.threads,
                cache=Path(directory),
                adapters=adapters,
            )
            print(f"| {case} | " + " | ".join(f"{speed(runner, rows):.0f}" for rows in ROWS) + " |", flush=True)
            runner.close()


if __name__ == "__main__":
    main()
