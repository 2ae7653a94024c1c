"""Models by name: loaded when somebody asks for them, unloaded when nobody does or another one needs the memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from arriero.errors import ConfigError, InvalidRequest, ModelLoadError, Overloaded, UnknownModel, UnsupportedModel
from arriero.pool.entry import Entry
from arriero.pool.residency import Resident, to_evict
from arriero.pool.served import ServedModel

if TYPE_CHECKING:
    from arriero.backends.upstream import Upstream

logger = logging.getLogger(__name__)

_TICK = 1.0
"""Seconds between two looks at who has not been used for long."""
_MEASURE = 10.0
"""Seconds between two looks at what the models take."""
_RETRY = 10.0
"""Seconds after which a model that could not be loaded is tried again."""


class Pool:
    """The models of this server. Belongs to one event loop."""

    def __init__(
        self,
        models: Iterable[ServedModel | Entry],
        *,
        upstreams: Iterable[Upstream] = (),
        default: str | None = None,
        memory_budget: int = 0,
        patience: float = 30.0,
        grace: float = 30.0,
    ) -> None:
        """Requests for models of `upstreams` are passed on; models of this server come first.

        `default` answers requests that name no model; None: these are refused.

        Models together take at most `memory_budget` bytes, 0: any number; those that are in use are never unloaded for
        others. A request waits up to `patience` seconds for its model, and an unloading up to `grace` for requests.
        Raises `ConfigError` for two models of one name.
        """
        self.entries = [each if isinstance(each, Entry) else Entry.of(each) for each in models]
        # The longest name first, so that of several open ones the closest answers.
        self.upstreams = sorted(upstreams, key=lambda each: (each.is_open, -len(each.name)))
        self.default = default
        self._budget = memory_budget
        self._patience = patience
        self._grace = grace
        self._names: dict[str, tuple[Entry, str]] = {}
        self._prefixes: dict[str, tuple[Entry, str]] = {}
        for entry in self.entries:
            for name in (entry.name, *entry.adapters):
                self._add(name, entry, name)
            for alias in entry.aliases:
                self._add(alias, entry, entry.name)
        for upstream in self.upstreams:
            if upstream.name in self._names:
                raise _taken(upstream.name)
        self._moves: dict[Entry, asyncio.Task[None]] = {}
        self._admission = asyncio.Lock()
        self._ticking: asyncio.Task[None] | None = None
        if default is not None:
            self.name_of(default)

    def _add(self, name: str, entry: Entry, own: str) -> None:
        names, key = (self._prefixes, name[:-1]) if name.endswith("*") else (self._names, name)
        if key in names:
            raise _taken(name)
        names[key] = entry, own

    # Names

    @property
    def default_name(self) -> str:
        """The name of the default model, or else of the first, for examples; empty where there is none."""
        if self.default is not None:
            return self.name_of(self.default)
        return self.entries[0].name if self.entries else ""

    def name_of(self, name: str) -> str:
        """The own name of the model that answers to a name or an alias; raises `UnknownModel`."""
        return self._find(name)[1]

    def aliases(self) -> list[tuple[str, str]]:
        """Each alias and the name that it stands for, without those that end with *."""
        return [(alias, own) for alias, (_, own) in self._names.items() if alias != own]

    def find_upstream(self, name: str) -> tuple[Upstream, str] | None:
        """Who answers for a name that is none of this server's own models, and what that server calls it."""
        if name in self._names:
            return None
        found = ((each, each.own_name(name)) for each in self.upstreams)
        first = next(((each, own_name) for each, own_name in found if own_name is not None), None)
        if first is None or not first[0].is_open:
            return first
        closer = any(name.startswith(each) and len(each) >= len(first[0].name) - 1 for each in self._prefixes)
        return None if closer else first

    def entry(self, name: str) -> Entry:
        """The entry that answers to a name; raises `UnknownModel`."""
        return self._find(name)[0]

    def list(self) -> list[ServedModel]:
        """All models that are in memory, with their variants."""
        return [each for entry in self.entries if entry.model for each in (entry.model, *entry.model.variants)]

    def _find(self, name: str) -> tuple[Entry, str]:
        found = self._names.get(name)
        if found is None:
            fitting = [prefix for prefix in self._prefixes if name.startswith(prefix)]
            if not fitting:
                raise UnknownModel(name)
            found = self._prefixes[max(fitting, key=len)]
        return found

    def _find_here(self, name: str, code: str) -> tuple[Entry, str]:
        """As `_find`; raises `InvalidRequest` with this code for a model that another server answers for."""
        if self.find_upstream(name):
            raise InvalidRequest(
                f"The model '{name}' is computed by another server, and can neither be loaded nor unloaded here.",
                param="model",
                code=code,
            )
        return self._find(name)

    # Models

    async def get(self, name: str) -> ServedModel:
        """The model of that name or alias, loaded if it is not; it stays in memory until the running task ends.

        Raises:
            UnknownModel: there is none of that name.
            Overloaded: it is still loading, or there is no room for it as long as others are in use.
            ModelLoadError: it cannot be loaded; in words for callers, who have no business with this server's files.
        """
        entry, own = self._find(name)
        if not entry.is_fixed:
            if not self._is_there(entry):
                try:
                    await self._wait(entry, self._patience)
                except (ModelLoadError, ConfigError) as error:
                    raise _for_callers(entry, error) from error
            entry.hold()
        model = entry.named(own)
        if model is None:
            raise ModelLoadError(f"The model '{own}' was loaded, and has no adapter of that name.")
        return model

    async def load(self, name: str) -> Entry:
        """Bring a model into memory; raises what loading raises, and `InvalidRequest` for another server's."""
        entry, _ = self._find_here(name, "not_loadable")
        if not entry.is_fixed:
            await self._wait(entry, self._patience)
        return entry

    async def unload(self, name: str) -> Entry:
        """Take a model out of memory, once its requests are answered; raises `UnknownModel`, or `InvalidRequest`."""
        entry, own = self._find_here(name, "not_unloadable")
        if entry.is_fixed:
            raise InvalidRequest(f"The model '{own}' is in memory for good.", param="model", code="not_unloadable")
        with contextlib.suppress(Exception):  # whoever asked for it to be loaded hears of that
            while move := self._moving(entry):
                await asyncio.shield(move)
        if entry.model:
            await asyncio.shield(self._move(entry, entry.unload(self._grace)))
        return entry

    async def start(self) -> None:
        """Load what is to be there from the start, and begin to look after all; raises what loading raises."""
        await asyncio.gather(*(self._wait(entry, None) for entry in self.entries if entry.preload))
        self._ticking = asyncio.create_task(self._look_after())

    async def close(self) -> None:
        """Take all models out of memory, at once."""
        if self._ticking:
            self._ticking.cancel()
        for move in self._moves.values():
            move.cancel()
        await asyncio.gather(*self._moves.values(), return_exceptions=True)
        models = [entry.model for entry in self.entries if entry.model]
        await asyncio.gather(*(model.engine.close() for model in models), *(each.close() for each in self.upstreams))

    # Loading

    def _is_there(self, entry: Entry) -> bool:
        return entry.model is not None and not self._moving(entry) and entry.state != "failed"

    async def _wait(self, entry: Entry, patience: float | None) -> None:
        """Until it is in memory, with nothing between that and the return; `patience` seconds at most, None: ever."""
        entry.num_waiting += 1
        try:
            async with asyncio.timeout(patience):
                while not self._is_there(entry):
                    move = self._moving(entry)
                    if move is None:
                        self._refuse_again(entry)
                        move = self._move(entry, self._load(entry))
                    with contextlib.suppress(Overloaded):  # no room for it: another attempt, as long as this one waits
                        await asyncio.shield(move)
        except TimeoutError:
            raise Overloaded(
                f"The model '{entry.name}' is being loaded, or waits for memory; try again later.",
                retry_after=max(1.0, entry.load_seconds),
            ) from None
        finally:
            entry.num_waiting -= 1

    def _refuse_again(self, entry: Entry) -> None:
        """What could not be loaded a moment ago is not tried for every request."""
        if entry.error and not isinstance(entry.error, Overloaded) and time.monotonic() - entry.failed_at < _RETRY:
            raise entry.error

    def _moving(self, entry: Entry) -> asyncio.Task[None] | None:
        """Its coming or going; None once that is over, though its end may not have been announced yet.

        Who waited for one that is over would not wait at all, and whoever does so in a loop stops the event loop.
        """
        move = self._moves.get(entry)
        return None if move is None or move.done() else move

    def _move(self, entry: Entry, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have it come or go, in a task of its own: those who wait for that may leave."""
        # In a context of its own: what is logged later, restarts too, is about no request.
        move = asyncio.create_task(work, context=Context())
        self._moves[entry] = move

        def end(task: asyncio.Task[None]) -> None:
            if self._moves[entry] is task:
                del self._moves[entry]
            if not task.cancelled():
                task.exception()  # heard by those who wait; if nobody does, it stands in the log

        move.add_done_callback(end)
        return move

    async def _load(self, entry: Entry) -> None:
        if entry.model:  # its engine failed
            await entry.unload(0)
        async with self._admission:
            await self._make_room(entry)
            loading = asyncio.create_task(entry.load())
            await asyncio.sleep(0)  # from here on it counts among those that take memory
        try:
            await loading
        except asyncio.CancelledError:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            raise
        except Exception as error:
            logger.error("%s could not be loaded: %s", entry.name, error)
            raise
        await self._shrink()

    async def _make_room(self, entry: Entry) -> None:
        if not self._budget:
            return
        needed = await entry.expect()
        if needed > self._budget:
            raise ModelLoadError(
                f"The model '{entry.name}' takes about {needed >> 20} MB, more than --memory-budget allows."
            )
        deadline = time.monotonic() + self._patience
        while (names := to_evict(self._residents(entry), needed, self._budget)) is None:
            if time.monotonic() > deadline:
                raise Overloaded(
                    f"There is no room for the model '{entry.name}' while others are in use.", retry_after=5.0
                )
            await asyncio.sleep(_TICK / 4)
        await self._evict(names)

    async def _evict(self, names: Iterable[str]) -> None:
        for name in names:
            entry, _ = self._names[name]
            logger.info("%s is unloaded to make room", name)
            await self._move(entry, entry.unload(0))

    def _residents(self, but: Entry | None = None) -> Iterable[Resident]:
        return [
            Resident(entry.name, entry.num_bytes, entry.last_used, entry.may_go and not self._moving(entry))
            for entry in self.entries
            if entry is not but and entry.takes_memory
        ]

    # Looking after them

    async def _look_after(self) -> None:
        measured = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            for entry in self.entries:
                if entry.ttl and entry.may_go and not self._moving(entry) and now - entry.last_used > entry.ttl:
                    self._move(entry, entry.unload(0))
            if now - measured > _MEASURE:
                measured = now
                await asyncio.gather(*(entry.measure() for entry in self.entries if not entry.is_fixed))
                await self._shrink()

    async def _shrink(self) -> None:
        """Models that have grown make room for themselves, as far as others may go."""
        names = to_evict(self._residents(), 0, self._budget)
        if names is None:
            logger.warning("The models in use take more than --memory-budget")
        await self._evict(names or ())


def _taken(name: str) -> ConfigError:
    return ConfigError(f"two models have the name or alias '{name}'")


def _for_callers(entry: Entry, error: Exception) -> Exception:
    """Why a model cannot be loaded, without the paths that what was raised by its loading may name."""
    if error is not entry.error:
        return error
    kinds = {
        UnsupportedModel: "this server does not compute models of its kind",
        ModelLoadError: "its files are missing or damaged",
        ConfigError: "it does not fit its settings",
    }
    kind = next(each for each in kinds if isinstance(error, each))
    return kind(f"The model '{entry.name}' could not be loaded: {kinds[kind]}. The server's log says more.")
