"""Load for any OpenAI endpoint, and what its callers would have felt: times, throughput, errors.

`load.run(Load(...))` is the whole of it; `report` shows the results to people. The generator shares its
machine with the server more often than not, so it is one thread on raw asyncio streams of bytes.
"""
