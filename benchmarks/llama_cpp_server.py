"""Start llama.cpp's HTTP server in the environment of its own; `llama_cpp.server` runs this file there.

One argument: a JSON object of `xllamacpp.CommonParams` attributes, dotted for nested ones, enumerations by
the value's name. Prints the server's address on one line, then serves until standard input ends, so that it
never outlives who started it.
"""

import json
import sys

import xllamacpp

params = xllamacpp.CommonParams()
for name, value in json.loads(sys.argv[1]).items():
    *path, attribute = name.split(".")
    owner = params
    for part in path:
        owner = getattr(owner, part)
    if isinstance(value, str) and value.startswith("LLAMA_"):
        value = next(
            getattr(kind, value) for kind in vars(xllamacpp).values() if isinstance(kind, type) and hasattr(kind, value)
        )
    setattr(owner, attribute, value)

server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
