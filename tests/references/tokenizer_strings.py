"""Two thousand strings that tokenizers find hard, the same ones every time."""

# ruff: noqa: SIM905

from __future__ import annotations

import random
import unicodedata

NUM_STRINGS = 2000

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<file_sep>",
    "<jupyter_text>",
    "<empty_output>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<|eot_id|>",
    "[INST]",
)

_ENGLISH = (
    "the quick brown fox jumps over lazy dogs while I'm reading what they've said; we'll see, she'd rather "
    "not—it's 'quoted', isn't it? THEY'RE SHOUTING Don't DON'T camelCase snake_case HTTPServer iPhone naïve café "
    "coöperate Zürich œuvre fiancée internationalization antidisestablishmentarianism a I and to of in"
).split()
_OTHER_SCRIPTS = (
    "Привет мир, как дела? Съешь ещё этих мягких французских булок",
    "Γειά σου Κόσμε άλφα βήτα ΟΔΥΣΣΕΥΣ",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣ السَّلامُ عَلَيْكُم ‏يمين‎",
    "שלום עולם מה שלומך בְּרֵאשִׁית",
    "नमस्ते दुनिया क्षत्रिय १२३ हिन्दी में",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง ๑๒๓",
    "வணக்கம் உலகம் தமிழ்",
    "გამარჯობა მსოფლიო Ⴀ ᲐᲑᲒ",
    "Xin chào thế giới tiếng Việt nguyễn ǖǘ",
    "İstanbul'da ığdır ŞĞÜÖÇ straße ẞ ﬁne ﬂow",
)
_CJK = (
    "你好世界，今天天气很好。我们去公园吧！「引用」《书名》",
    "こんにちは世界。カタカナとひらがな、漢字の混ざった文。ｶﾀｶﾅ",
    "안녕하세요 세계 오늘은 날씨가 좋네요 한글",
    "繁體中文測試 㐀㐁 𠀀𠀁 〇 々 ー ・",
)
_EMOJI = "😀 😂 🤷 🤷‍♀️ 👨‍👩‍👧‍👦 🏳️‍🌈 🏴󠁧󠁢󠁥󠁮󠁧󠁿 👍🏽 🇩🇪 🇯🇵 ❤️ ☺︎ 1️⃣ 🧑🏿‍🚀 👩🏻‍❤️‍💋‍👩🏾 🫠 🪿 ✨ ⌨️ ©️ ™".split()
_SPACES = (
    " ",
    "  ",
    "    ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    " \n",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u200b",
    "\u2028",
    "\x0b",
    "\x0c",
    "\x85",
    "\ufeff",
)
_CODE = (
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2.5e-3f; }\n",
    "SELECT id, COUNT(*) FROM t WHERE a >= 10 AND b <> 'x' GROUP BY 1;\n",
    '<div class="a b">&nbsp;<br/></div>\n<!-- note -->',
    '{"key": [1, 2.0, null, true, "v\\n\\u00e9"], "k2": {}}',
    '\tif err != nil {\n\t\treturn nil, fmt.Errorf("x: %w", err)\n\t}\n',
    "https://example.org/a/b?c=d&e=%20f#g user@example.com C:\\dir\\file.txt ../x/./y",
    "#!/bin/sh\nset -eu\ncat <<'EOF' | grep -v '^#' >&2\n$HOME ${X:-1} $((1+2))\nEOF\n",
    "| a | b |\n|---|:-:|\n| `x` | **y** |\n\n- [ ] item\n1. one\n",
    "x=>y!==z??a?.b||{...c}&&!d;/^[a-z]+$/gi.test(s)",
)
_NUMBERS = (
    "0 7 42 123 1234 12345 123456 1234567 3.14159 1,000,000 1_000 0x1F 1e-10 50% $9.99 №5 2026-11-21T21:14:00Z "
    "½ ² Ⅷ ③ ١٢٣٤ १२३४ ๑๒๓ 一二三 １２３ 𝟙𝟚𝟛 007 +49-30-12345 192.168.0.1 1/2 10th"
).split()
_PUNCTUATION = "!?.,;:…—–-_=+*/\\|~^`'\"“”‘’«»()[]{}<>@#$%&€£¥§°•·¿¡†※→←≤≥≠∞∑√∂"
_MARKS = "\u0300\u0301\u0302\u0303\u0308\u030a\u0327\u0336\u0489\u064b\u0651\u093c\u0e31\u0e48\u3099\ufe0f\u20e3\u200d"


def strings() -> list[str]:
    """The strings, most of them short, each made by one of the kinds in turn or by a mixture of them."""
    draw = random.Random(20261121)
    kinds = (_words, _code, _cjk, _scripts, _emoji, _spaces, _numbers, _control, _marks, _punctuation, _anything)
    made = ["", " ", "\n", "a", "  a", " a ", "\u2581", "\u2581\u2581a\u2581", "<0x41>", "\x00", "\ufffd"]
    made += [kind(draw) for kind in kinds for _ in range(140)]
    while len(made) < NUM_STRINGS:
        parts = [draw.choice(kinds)(draw) for _ in range(draw.randint(2, 3))]
        made.append(draw.choice(("", " ", "\n")).join(part[: draw.randint(1, 30)] for part in parts))
    return made


def _slice(draw: random.Random, text: str, most: int = 40) -> str:
    start = draw.randrange(len(text))
    return text[start : start + draw.randint(1, most)]


def _words(draw: random.Random) -> str:
    return " ".join(draw.choice(_ENGLISH) for _ in range(draw.randint(1, 8)))


def _code(draw: random.Random) -> str:
    return _slice(draw, "".join(draw.sample(_CODE, 2)), 60)


def _cjk(draw: random.Random) -> str:
    rare = "".join(chr(draw.randrange(0x4E00, 0xA000)) for _ in range(draw.randint(0, 4)))
    return _slice(draw, draw.choice(_CJK), 20) + rare


def _scripts(draw: random.Random) -> str:
    return _slice(draw, draw.choice(_OTHER_SCRIPTS), 30)


def _emoji(draw: random.Random) -> str:
    return "".join(draw.choice(_EMOJI) + draw.choice(("", "", " ", "a")) for _ in range(draw.randint(1, 4)))


def _spaces(draw: random.Random) -> str:
    runs = (draw.choice(_SPACES) * draw.choice((1, 1, 2, 3, 7, 16)) for _ in range(draw.randint(1, 4)))
    return "".join(run + draw.choice(("", "x", "I'm", "9", ".")) for run in runs)


def _numbers(draw: random.Random) -> str:
    return "".join(draw.choice(_NUMBERS) + draw.choice(("", " ", "a", "-")) for _ in range(draw.randint(1, 4)))


def _control(draw: random.Random) -> str:
    pieces = []
    for _ in range(draw.randint(1, 4)):
        token = draw.choice(CONTROL_TOKENS)
        cut = draw.randrange(1, len(token))
        nested = token[:cut] + draw.choice(CONTROL_TOKENS) + token[cut:]
        pieces.append(draw.choice((token, token, nested, token[:cut], token[cut:], token.upper())))
    return draw.choice(("", " ", "a", "\n")).join(pieces)


def _marks(draw: random.Random) -> str:
    bases = "aeiouAEnЖअกかxﷺ가1 "
    clusters = (draw.choice(bases) + "".join(draw.choices(_MARKS, k=draw.randint(0, 3))) for _ in range(8))
    text = "".join(clusters)
    return draw.choice((text, unicodedata.normalize("NFD", text + "ÅéñỗＡ"), unicodedata.normalize("NFC", text)))


def _punctuation(draw: random.Random) -> str:
    return "".join(draw.choice(_PUNCTUATION) * draw.choice((1, 1, 2, 5)) for _ in range(draw.randint(1, 8)))


def _anything(draw: random.Random) -> str:
    """Code points of any plane, assigned or not, but no surrogates."""
    codes = []
    for _ in range(draw.randint(1, 12)):
        code = draw.choice(
            (draw.randrange(0x80), draw.randrange(0x800), draw.randrange(0x3000), draw.randrange(0x110000))
        )
        codes.append(code if not 0xD800 <= code < 0xE000 else 0x20)
    return "".join(map(chr, codes))
