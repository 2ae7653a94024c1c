"""Prompts in the shapes that people send: stories, questions, lists, code, conversations, long documents.

Put together at random, by a fixed seed, from the sentences below, which were written for this purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Message = dict[str, str]

_PEOPLE = [
    "Marta",
    "the ferryman",
    "Ibrahim",
    "our neighbour",
    "Yuki",
    "the young engineer",
    "Anselm",
    "the two sisters",
]
_PLACES = ["the harbour", "a narrow valley", "the old observatory", "Lisbon", "the market square", "a mountain hut"]
_THINGS = ["a brass compass", "the broken radio", "three letters", "a basket of plums", "the map", "an orange bicycle"]
_TIMES = ["Late in the autumn", "On the first warm day", "Before sunrise", "After the storm", "In 1987", "That evening"]
_DEEDS = ["repaired", "sold", "forgot about", "carefully unpacked", "argued over", "traded", "photographed", "hid"]
_WHYS = [
    "because nobody had asked for it in years",
    "although the road was still closed",
    "while the others slept",
    "and did not say a word about it afterwards",
    "hoping that the price would rise",
    "since the instructions were written in another language",
]
_REMARKS = [
    "It was colder than anyone had expected.",
    "The reason became clear only much later.",
    "Nothing of the kind had happened before.",
    "By then the lights along the river had gone out.",
    "There were, of course, other opinions.",
    "A dog barked twice somewhere behind the houses.",
]
_TOPICS = [
    "tides", "bread", "glaciers", "bicycles", "the printing press", "honey bees", "suspension bridges", "vaccines",
    "coffee", "lighthouses", "prime numbers", "volcanoes", "tea ceremonies", "radio waves", "migrating birds", "soap",
]  # fmt: skip
_FACTS = [
    "Most descriptions of {0} begin with the materials, but the history of {0} begins with a need.",
    "Before anyone measured {0}, people living near {1} already relied on what they knew of {0}.",
    "A careful study of {0} asks three things: what changes, how fast, and at whose cost.",
    "In schools {0} is often taught together with {1}, which hides how different the two are.",
    "Engineers who work on {0} speak of a balance between weight, price and patience.",
    "The numbers are easy to remember: roughly one part in twelve of all writing on {0} mentions {1}.",
    "Critics say that interest in {0} rises and falls with the weather, and there is some truth in it.",
    "What looks like an exception turns out to be the rule once {0} is observed for a whole year.",
]
_QUESTIONS = [
    "What is the main difference between {0} and {1}?",
    "Can you explain {0} to a child of eight?",
    "Why do {0} matter to people who live by the sea?",
    "How would you plan a lesson of twenty minutes about {0}?",
    "Write a short poem that mentions both {0} and {1}.",
    "List five facts about {0}, each in one sentence.",
    "Is it true that {0} were known long before {1}?",
]
_OPENINGS = [
    "The capital of France is",
    "Once upon a time, in a kingdom beyond the hills, there lived",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8, 13,",
    "To make a simple vegetable soup you need",
    "Water boils at a temperature of",
    "The three most important rules of good writing are:\n1.",
    "Q: How many legs does a spider have?\nA:",
    "Monday, Tuesday, Wednesday,",
    "Breaking news:",
    "Bonjour, je m'appelle Claire et",
    "El perro duerme debajo de la mesa porque",
    "Die wichtigsten Städte in Deutschland sind",
    "春天来了,",
    "🙂 Emoji are small pictures that",
    "x",
    "The",
    "   leading spaces and\ttabs\n\n\nand empty lines",
    "HELLO WORLD! THIS IS",
    '{"name": "Ada", "age": 36, "languages": [',
    "| city | population |\n|---|---|\n| Oslo |",
    "<html>\n<head>\n<title>",
    "SELECT name, price FROM fruit WHERE",
    "# Installation\n\nFirst make sure that",
]
_CODE = [
    'def {name}(values):\n    """Return the {word} of a list of numbers."""\n',
    "class {Name}:\n    def __init__(self, {word}):\n        self.{word} = {word}\n\n    def",
    "// {Name} computes the {word} of two vectors.\nfunc {Name}(a, b []float64) float64 {{\n",
    'import json\n\nwith open("{word}.json") as file:\n    {name} = json.load(file)\n\nfor',
    "function {name}({word}) {{\n  return {word}\n    .filter((x) => x > {number})\n    .map(",
    "#include <stdio.h>\n\nint {name}(int {word}) {{\n    if ({word} < {number})\n        return",
    "SELECT {word}, count(*)\nFROM {name}\nWHERE created > '2024-{number:02d}-01'\nGROUP BY",
    "fn {name}({word}: &[u32]) -> u32 {{\n    let mut total = {number};\n    for",
]
_NAMES = ["running_sum", "median", "parse_line", "merge", "find_peak", "rotate", "longest_run", "checksum"]
_WORDS = ["mean", "width", "orders", "norm", "items", "depth", "records", "distance"]


def _narrative(dice: random.Random, num_sentences: int) -> str:
    sentences = []
    for _ in range(num_sentences):
        if dice.random() < 0.25:
            sentences.append(dice.choice(_REMARKS))
        else:
            when, who, deed = dice.choice(_TIMES), dice.choice(_PEOPLE), dice.choice(_DEEDS)
            sentences.append(
                f"{when} {who} {deed} {dice.choice(_THINGS)} in {dice.choice(_PLACES)}, {dice.choice(_WHYS)}."
            )
    return " ".join(sentences)


def _essay(dice: random.Random, num_sentences: int) -> str:
    first, second = dice.sample(_TOPICS, 2)
    return " ".join(dice.choice(_FACTS).format(first, second) for _ in range(num_sentences))


def _question(dice: random.Random) -> str:
    return dice.choice(_QUESTIONS).format(*dice.sample(_TOPICS, 2))


def _code(dice: random.Random, index: int) -> str:
    name = dice.choice(_NAMES)
    title = name.title().replace("_", "")
    return _CODE[index % len(_CODE)].format(name=name, Name=title, word=dice.choice(_WORDS), number=dice.randint(2, 12))


def _date(index: int) -> str:
    return f"2026-{1 + index % 12:02d}-{1 + index % 28:02d}"


def _long(dice: random.Random, index: int) -> str:
    """Documents of about 1,000 to 3,000 tokens: chapters, essays, a log file, a source file."""
    size = 20 + 6 * (index % 6)
    if index % 4 == 3:
        lines = [
            f"{_date(n)} {dice.choice(_PEOPLE)}: {dice.choice(_DEEDS)} {dice.choice(_THINGS)}" for n in range(3 * size)
        ]
        return "\n".join(lines) + "\n2026-"
    if index % 4 == 2:
        return "\n\n".join(f"{_code(dice, n)} ..." for n in range(2 * size)) + "\n\n"
    write = _narrative if index % 4 else _essay
    chapters = [f"Chapter {n + 1}\n\n{write(dice, 6)}" for n in range(size // 2)]
    return "\n\n".join(chapters) + f"\n\nChapter {size // 2 + 1}\n\nIn short,"


def texts() -> list[str]:
    """92 prompts that are sent as they are: 12 of them long."""
    dice = random.Random(20)
    prompts = list(_OPENINGS)
    prompts += [_narrative(dice, 1 + n % 4) for n in range(20)]
    prompts += [_essay(dice, 2 + n % 7) + f"\n\n{_question(dice)}\n" for n in range(20)]
    prompts += [_code(dice, n) for n in range(16)]
    prompts += [_long(dice, n) for n in range(12)]
    return prompts


def conversations() -> list[list[Message]]:
    """12 conversations for the chat template: with and without a system message, of one turn and of several."""
    dice = random.Random(21)
    systems: list[Callable[[], str]] = [
        lambda: "You answer in one sentence.",
        lambda: f"You are an expert on {dice.choice(_TOPICS)}. Be brief and honest.",
    ]
    result = []
    for index in range(12):
        messages = [{"role": "system", "content": systems[index % 2]()}] if index % 3 else []
        for _ in range(index % 3):
            messages.append({"role": "user", "content": _question(dice)})
            messages.append({"role": "assistant", "content": _essay(dice, 2)})
        messages.append({"role": "user", "content": f"{_narrative(dice, index % 4)} {_question(dice)}".strip()})
        result.append(messages)
    return result
