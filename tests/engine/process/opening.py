"""A child for tests: the scripted runner in a `LocalEngine`, with prompts that make it misbehave."""

import os
import signal
import threading
import time
from pathlib import Path

from arriero.engine.local import LocalEngine
from arriero.engine.process.child import run
from arriero.errors import ModelLoadError
from arriero.runners.scripted import ScriptedRunner

END, DIE, FAIL, FREEZE, STOP, DIE_LATER, DIE_ONCE = 0, 59, 58, 57, 56, 55, 54
"""Tokens: the end of an answer, and what a prompt that begins with one brings about."""


class Runner(ScriptedRunner):
    """Computes until a prompt tells it otherwise."""

    def __init__(self, once=None, **options):
        super().__init__(**{"vocab_size": 60, "num_slots": 4, "context": 100, "end_token_id": END, **options})
        self._once = Path(once) if once else None
        self._doomed = 0

    def step(self, rows):
        for row in rows:
            if row.position == 0:
                self._obey(row.tokens[0])
        if self._doomed:
            self._doomed -= 1
            if not self._doomed:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(rows)

    def _obey(self, token):
        if token == DIE or (token == DIE_ONCE and not self._once.exists()):
            if self._once:
                self._once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif token == FAIL:
            raise RuntimeError("as the prompt wants it")
        elif token == FREEZE:
            threading.Event().wait()
        elif token == STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif token == DIE_LATER:
            self._doomed = 4


def unwatched(request):
    return None


def make(order):
    """The engine of an order: options of the runner, and of the engine."""
    options = dict(order)
    engine = options.pop("engine", {})
    return LocalEngine(lambda: Runner(**options), constraints=unwatched, **engine)


def open_engine(order, tell):
    if "error" in order:
        raise order["error"]
    if "refuse_after" in order:  # loads once, and then no more
        mark = Path(order["refuse_after"])
        if mark.exists():
            raise ModelLoadError("It cannot be loaded any more.")
        mark.touch()
        return make({}), None
    for done in order.get("progress", ()):
        tell(("convert", done, 3))
    if "slowly" in order:
        time.sleep(order["slowly"])
    return make({name: value for name, value in order.items() if name not in ("progress", "slowly")}), {
        "pid": os.getpid()
    }


if __name__ == "__main__":
    run(open_engine)
