"""How much a key may ask for: requests and tokens a minute, requests at once, tokens in a day or month."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from arriero.core import Meter
from arriero.errors import RateLimited
from arriero.store.keys import Key
from arriero.wire.errors import QUOTA

LIMIT_HEADERS = tuple(
    f"x-ratelimit-{name}-{kind}" for kind in ("requests", "tokens") for name in ("limit", "remaining", "reset")
)
_CONCURRENT_RETRY = 1.0
"""Seconds; nobody knows when a running answer ends."""


class Bucket:
    """A leaky bucket: holds as much as may be used in a minute, and fills at that pace. It may be overdrawn."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """What may be used at once; below 0 after more was used than there was."""
        self._level = min(self._level + (now - self._at) * self.per_minute / 60, self.per_minute)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Use some."""
        self._level = self.level(now) - amount

    def seconds_until(self, level: float, now: float) -> float:
        """How long it takes to hold as much, if nothing is used."""
        return max(0.0, (level - self.level(now)) * 60 / self.per_minute)


class Allowance:
    """What is left to one key. Tokens are known only as they come, so the first request too many is one too late."""

    def __init__(self, key: Key, now: float) -> None:
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._running: dict[int, tuple[Meter, int]] = {}
        """Requests, and how many tokens of each have been taken."""
        self.key = key
        self._set(key, now)

    def change(self, key: Key, now: float) -> None:
        """The key has other limits now; limits that stay the same stay as used as they are."""
        if key != self.key:
            self._set(key, now)

    def _set(self, key: Key, now: float) -> None:
        self.key = key
        self._requests = _bucket(self._requests, key.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, key.tokens_per_minute, now)

    def admit(self, now: float, *, spent: Callable[[], int], uses_tokens: bool) -> None:
        """Let one request in, or raise `RateLimited`; only those that use tokens may be held up by their number.

        `spent` tells what was used of the budget.
        """
        if uses_tokens:
            self._check_budget(spent)
            self._check_tokens(now)
            if self.key.concurrent is not None and len(self._running) >= self.key.concurrent:
                raise RateLimited(
                    f"Rate limit reached for requests at the same time: Limit {self.key.concurrent}.",
                    retry_after=_CONCURRENT_RETRY,
                    kind="requests",
                )
        if self._requests:
            if self._requests.level(now) < 1:
                raise _reached("requests", self._requests, self._requests.seconds_until(1, now))
            self._requests.take(1, now)

    def _check_budget(self, spent: Callable[[], int]) -> None:
        if self.key.budget is not None and spent() >= self.key.budget:
            raise RateLimited(
                f"You exceeded your current quota of {self.key.budget} tokens a {self.key.budget_period}.",
                retry_after=_seconds_left(self.key.budget_period),
                kind=QUOTA,
            )

    def _check_tokens(self, now: float) -> None:
        if self._tokens:
            self._settle(now)
            if self._tokens.level(now) < 1:
                raise _reached("tokens", self._tokens, self._tokens.seconds_until(1, now))

    def begin(self, meter: Meter) -> None:
        """A request that was admitted begins."""
        self._running[id(meter)] = (meter, 0)

    def end(self, meter: Meter, now: float) -> None:
        """It is over."""
        self._settle(now)
        self._running.pop(id(meter), None)

    def _settle(self, now: float) -> None:
        """Take the tokens that running requests have used since the last time."""
        if self._tokens is None:
            return
        for place, (meter, taken) in self._running.items():
            used = meter.prompt_tokens + meter.completion_tokens
            self._tokens.take(used - taken, now)
            self._running[place] = (meter, used)

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """The reference's `x-ratelimit-*`, for the limits that there are."""
        self._settle(now)
        return [
            (f"x-ratelimit-{name}-{kind}".encode(), value.encode())
            for kind, bucket in (("requests", self._requests), ("tokens", self._tokens))
            if bucket
            for name, value in (
                ("limit", str(bucket.per_minute)),
                ("remaining", str(max(0, math.floor(bucket.level(now))))),
                ("reset", duration(bucket.seconds_until(bucket.per_minute, now))),
            )
        ]


def duration(seconds: float) -> str:
    """A time as the reference writes it: `6m0s`, `1.5s`, `20ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 1000) / 1000, 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:g}s"


def _bucket(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    return bucket if bucket and bucket.per_minute == per_minute else Bucket(per_minute, now)


def _reached(kind: str, bucket: Bucket, seconds: float) -> RateLimited:
    return RateLimited(
        f"Rate limit reached for {kind} per min: Limit {bucket.per_minute}. Please try again in {duration(seconds)}.",
        retry_after=seconds,
        kind=kind,
    )


def _seconds_left(period: str) -> float:
    now = datetime.now(UTC)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    end = day + timedelta(days=1) if period == "day" else (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return (end - now).total_seconds()
