"""Another server that fails, by the first part of the path that it is asked for."""

import asyncio

from backends.conftest import Asked

EVENT = 'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


async def fail(asked: Asked) -> None:
    """Behave as the path says."""
    await {
        "hangs": hang,
        "drips": drip,
        "stops": stop,
        "resets": reset,
        "garbage": talk_nonsense,
        "429": turn_away,
        "500": break_down,
    }[asked.line.split("/")[1]](asked)


async def hang(asked: Asked) -> None:
    await asyncio.sleep(60)


async def drip(asked: Asked) -> None:
    """An answer whose end never comes, though there is always a little of it."""
    await begin(asked)
    while True:
        await asked.chunk(EVENT if asked.json.get("stream") else " ")
        await asyncio.sleep(0.1)


async def stop(asked: Asked) -> None:
    await begin(asked)
    await asyncio.sleep(60)


async def begin(asked: Asked) -> None:
    if asked.json.get("stream"):
        asked.begin_events()
        await asked.chunk(EVENT)
    else:
        asked.write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        await asked.chunk("{")


async def reset(asked: Asked) -> None:
    asked.reset()


async def talk_nonsense(asked: Asked) -> None:
    await asked.send(b"\x00\x16SMTP?\r\n\r\n")
    asked.writer.close()


async def turn_away(asked: Asked) -> None:
    asked.answer('{"error":{"message":"slow down"}}', 429, more="retry-after: 1\r\n")


async def break_down(asked: Asked) -> None:
    asked.answer('{"error":{"message":"broken"}}', 500)
