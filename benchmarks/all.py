"""Everything that RESULTS.md tells of speed, one script after the other, into one directory.

    python benchmarks/all.py [--only compare,start,...] [--short] [--output DIRECTORY]

About 20 minutes on two cores, once the models are there. `--short` takes one repetition of each, `compare` with 1 and
16 clients alone, `real-size` with one: about 8 minutes. LiteLLM's proxy takes part where `litellm` is on the path.
Every script runs by itself as well; `real_size.py` then has 16 layers instead of the 4 here. Ends with all ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from figures import DIRECTORY, Verdict

REAL_SIZE = "Arriero int8,Arriero int4,llama.cpp Q4_0"
SCRIPTS = {
    "compare": (["compare.py"], 2, ["--clients", "1,16"]),
    "poisson": (["scenarios.py", "poisson"], 2, []),
    "prompt": (["scenarios.py", "prompt"], 3, []),
    "turns": (["scenarios.py", "turns"], 3, []),
    "system": (["scenarios.py", "system"], 2, []),
    "intruder": (["scenarios.py", "intruder"], 3, []),
    "speculation": (["scenarios.py", "speculation"], 2, []),
    "start": (["resources.py", "start"], 5, []),
    "memory": (["resources.py", "memory"], 1, []),
    "api": (["api_layer.py"], 3, []),
    "gateway": (["gateway.py"], 3, []),
    "real-size": (["real_size.py", "--layers", "4", "--only", REAL_SIZE], 1, ["--clients", "1"]),
}
"""Command line, repetitions, and what makes it shorter."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", default=",".join(SCRIPTS), help=f"some of {', '.join(SCRIPTS)}, with commas")
    arguments.add_argument("--short", action="store_true", help="one repetition each")
    arguments.add_argument("--output", type=Path, default=DIRECTORY, help="directory of the figures and plots")
    given = arguments.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - SCRIPTS.keys():
        arguments.error(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    failed, started, began = [], time.monotonic(), time.time()
    for name in names:
        (script, *scenario), repetitions, shorter = SCRIPTS[name]
        command = [sys.executable, str(Path(__file__).with_name(script)), *scenario, "--output", str(given.output)]
        command += ["--repetitions", "1", *shorter] if given.short else ["--repetitions", str(repetitions)]
        if subprocess.run(command).returncode:
            failed.append(name)
        print(f"[{name}: {time.monotonic() - started:.0f} s since the start]", flush=True)
    print("\nAll ratios:\n")
    for file in sorted(given.output.glob("*.json"), key=lambda file: file.stat().st_mtime):
        if file.stat().st_mtime > began:
            print("\n".join(f"- {Verdict(**each)}" for each in json.loads(file.read_text())["verdicts"]))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
