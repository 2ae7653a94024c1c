"""`arriero`, which tells at each line of its input what only the garbage collector could free since the last one.

What it tells is JSON: how many objects of each type.
"""

import gc
import json
import runpy
import sys
import threading
from collections import Counter


def tell() -> None:
    for _ in sys.stdin:
        gc.collect()
        print(json.dumps(Counter(type(each).__qualname__ for each in gc.garbage)), flush=True)
        gc.garbage.clear()
        gc.set_debug(0)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)


gc.set_debug(gc.DEBUG_SAVEALL)
threading.Thread(target=tell, daemon=True).start()
runpy.run_module("arriero", run_name="__main__")
