"""How much of a prompt is read beside running answers: as much as leaves them more than half their speed.

Nobody says in advance what a token costs: it depends on the model, the machine, and where in its prompt a token stands.
So it is learned from the steps themselves, each being either answers alone, or answers and prompts.
"""

from __future__ import annotations

SLOWER = 1.7
"""A step with one prompt is to last so many times as long as it would without. Steps take uneven times: the slowest of
twenty lasts two thirds as long again."""
SHORT = 256
BRISK = 64
"""A prompt of up to so many tokens is read in pieces of at least so many: it is over before anybody minds."""
MOST_SHARES = 3
"""As many prompts have a share of a step each, however many there are."""
FIRST = 16
"""Prompt tokens beside answers while it is not known what they cost."""
LEAST = 4
"""Fewer would take as many steps as tokens to make a difference, and each reads all weights."""
FIXED = 8.0
"""What a step costs besides its answers, in answers: reading the weights. It serves only to go from one number of
answers to another; what was learned with about as many is right whatever it is."""
NUDGE_ALONE = 1.02
NUDGE = 1.08
"""By what factors one more step changes what is known of answers alone, and of prompts, whose cost grows as they are
read."""
FAST = 1.25
"""And where a step took less than half of what was expected."""


class Pieces:
    """Seconds of a step, learned as it goes: for each answer, and for each prompt token beside answers.

    What is known moves by a small factor towards each new time, however much longer that is, and so comes to lie where
    as many times are longer as are shorter: at the median, which a stalled machine leaves where it is. Only times that
    are much shorter move it further, for no step takes less than it has to.
    """

    def __init__(self, most: int) -> None:
        """A piece has at most `most` tokens."""
        self._most = most
        self._per_answer = 0.0
        self._per_token = 0.0

    def learn(self, answers: int, tokens: int, seconds: float) -> None:
        """A step took so long that had a token of each of `answers` and read `tokens` prompt tokens."""
        if answers and not tokens:
            self._per_answer = _nudged(self._per_answer, seconds / (FIXED + answers), NUDGE_ALONE)
        elif answers and self._per_answer:
            alone = self._alone(answers)
            known = self._per_token or seconds / 4 / tokens
            self._per_token = max(_nudged(known, (seconds - alone) / tokens, NUDGE), alone / self._most)

    def size(self, answers: int, prompts: int, length: int) -> int:
        """How many tokens of `prompts` prompts to read beside `answers` answers; the oldest prompt has `length`.

        Several prompts get several times as much, up to `MOST_SHARES`; many more prompts than answers get nearly all:
        else those who come together would wait for the first ones' answers.
        """
        least = BRISK if length <= SHORT else LEAST
        if not self._per_token:
            return min(max(FIRST, least), self._most) if self._per_answer else self._most
        shares = max(min(prompts, MOST_SHARES), (prompts / answers) ** 2)
        seconds = (SLOWER - 1) * shares * self._alone(answers)
        return min(max(least, int(seconds / self._per_token)), self._most)

    def _alone(self, answers: int) -> float:
        return self._per_answer * (FIXED + answers)


def _nudged(known: float, new: float, factor: float) -> float:
    if not known:
        return new
    if new < known / 2:
        return known / FAST
    return known * factor if new > known else known / factor
