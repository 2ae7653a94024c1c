"""A short text of many kinds, for a model to read before its activations are quantised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arriero.models.tokenizers.tokenizer import Tokenizer

MAX_TOKENS = 1024

TEXT = """\
The mule train left the village before sunrise. Nine animals, two drivers and a dog that belonged to nobody climbed
the old road in silence, and when the first light touched the snow above them the leader stopped to count. "Seven,"
he said. "Eight. Where is the grey one?" The younger man laughed and pointed: she had walked ahead, as always, and
was waiting at the bridge. In 1847 the same road carried salt, wool and letters; today it carries tourists on
weekends, roughly 3,500 a year, who pay $12.50 each for the ride.

# Installation

First, check that you have at least 2 GB of free memory. Then download the archive, verify its checksum (see the
table below) and unpack it:

1. Open a terminal.
2. Run `tar -xzf release-1.4.2.tar.gz && cd release-1.4.2`.
3. If the configuration file does not exist, the program creates one with default values.

Note that settings given on the command line take precedence over the environment. If you don't know which option to
choose, the defaults are usually fine; however, servers that face the public network should always set a password.

| name    | size (kB) | purpose             |
|---------|-----------|---------------------|
| core    | 1,204     | required            |
| docs    | 318       | manual, examples    |

```python
import json
from pathlib import Path


class Inventory:
    \"\"\"Counts things by name.\"\"\"

    def __init__(self, path: Path) -> None:
        self.items: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, count: int = 1) -> int:
        if count < 0:
            raise ValueError(f"cannot add {count} of {name!r}")
        self.items[name] = self.items.get(name, 0) + count
        return self.items[name]


for i in range(10):
    print(i, i ** 2, sum(range(i + 1)))
```

User: What is the difference between weather and climate?
Assistant: Weather is what the atmosphere does over hours or days: rain this afternoon, wind tomorrow. Climate is the
average of weather over many years. A cold week in April is weather; a century of slowly warmer Aprils is climate.
User: Can you solve 3x + 7 = 22?
Assistant: Subtract 7 from both sides to get 3x = 15, then divide by 3, so x = 5.

According to the theorem, every bounded sequence of real numbers has a convergent subsequence. To prove it, divide the
interval in half again and again, each time keeping a half that contains infinitely many terms; the lengths of these
intervals tend to zero, and their only common point is the limit. The kidneys filter about 180 litres of blood plasma
a day. Parliament passed the act by 312 votes to 288 after a debate of nineteen hours.

Der Zug fährt um halb neun ab, aber wir sollten früher am Bahnhof sein. La biblioteca cierra los domingos; el resto de
la semana está abierta hasta las ocho. Le chat dort sur la fenêtre pendant que la pluie tombe.
今天天气很好，我们去公园散步吧。
Сегодня хорошая погода. ありがとうございます。

{"id": 42, "name": "Ana", "tags": ["blue", "green"], "active": true, "score": 0.875, "parent": null}
SELECT city, COUNT(*) AS n FROM visits WHERE year >= 2020 GROUP BY city ORDER BY n DESC LIMIT 5;

Dear Ms. Okafor,

Thank you for your letter of 14 March. I am sorry to hear that the lamp arrived broken; a replacement was sent this
morning and should reach you by Friday. Please keep the old one, or recycle it as you see fit!

Yours sincerely,
J. Lindqvist
"""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The tokens of a text, made only where somebody reads them."""

    digest: str
    """Another one wherever the tokens could be others; empty: there are none."""
    tokens: Callable[[], Sequence[int]]


NO_CALIBRATION = Calibration("", tuple)


def calibration(tokenizer: Tokenizer, context: int, vocab_size: int) -> Calibration:
    """The text's tokens of those that a model of `vocab_size` knows, as many as `context` and a bound on time allow."""
    size = min(context, MAX_TOKENS)
    facts = repr((TEXT, tokenizer.digest, size, vocab_size))

    def tokens() -> list[int]:
        return [token for token in tokenizer.encode(TEXT)[:size] if token < vocab_size]

    return Calibration(hashlib.sha256(facts.encode()).hexdigest(), tokens)
