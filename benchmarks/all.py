"""Everything that RESULTS.md tells of speed, one script after the other, into one directory.

    python benchmarks/all.py [--only compare,start,...] [--short] [--output DIRECTORY]

`--short` takes one repetition of each. Every script does by itself as well. Ends with a list of all ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from figures import DIRECTORY, Verdict

SCRIPTS = {
    "compare": ["compare.py"],
    "poisson": ["scenarios.py", "poisson"],
    "prompt": ["scenarios.py", "prompt"],
    "turns": ["scenarios.py", "turns"],
    "system": ["scenarios.py", "system"],
    "intruder": ["scenarios.py", "intruder"],
    "start": ["resources.py", "start"],
    "memory": ["resources.py", "memory"],
    "real-size": ["real_size.py"],
}
"""Command lines by the name of the file that each writes."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", default=",".join(SCRIPTS), help=f"some of {', '.join(SCRIPTS)}, with commas")
    arguments.add_argument("--short", action="store_true", help="one repetition each")
    arguments.add_argument("--output", type=Path, default=DIRECTORY, help="directory of the figures and plots")
    given = arguments.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - SCRIPTS.keys():
        arguments.error(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    failed, started = [], time.monotonic()
    for name in names:
        script, *more = SCRIPTS[name]
        command = [sys.executable, str(Path(__file__).with_name(script)), *more, "--output", str(given.output)]
        if given.short:
            command += ["--repetitions", "1"]
        if subprocess.run(command).returncode:
            failed.append(name)
        print(f"[{name}: {time.monotonic() - started:.0f} s since the start]", flush=True)
    print("\nAll ratios:\n")
    for name in names:
        if name not in failed:
            found = json.loads((given.output / f"{name}.json").read_text())
            print("\n".join(f"- {Verdict(**each)}" for each in found["verdicts"]))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
