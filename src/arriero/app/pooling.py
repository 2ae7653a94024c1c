"""From settings to the pool of models that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from arriero.app.child import open_model
from arriero.config import Settings
from arriero.errors import ModelLoadError

if TYPE_CHECKING:
    from arriero.model_tables import ModelTable
    from arriero.models.sources.download import Progress
    from arriero.pool import Entry, Pool

_PROCESS = 100 * 2**20
"""Bytes that a model's process takes beside its weights, about."""


async def open_pool(
    settings: Settings, *, on_download: Progress | None = None, on_convert: Callable[[int, int], None] | None = None
) -> Pool:
    """The models that the settings name, those in memory that are to be there from the start.

    Arguments and errors as `arriero.app.load`.
    """
    model = None
    if not settings.models:  # Its process is told before anything else is imported.
        model = await open_model(settings, on_download=on_download, on_convert=on_convert)
    from arriero.app.upstreams import has_own_model, open_upstreams
    from arriero.model_tables import model_tables
    from arriero.pool import Pool

    if model:
        return Pool([model])
    tables, upstreams = model_tables(settings), open_upstreams(settings)
    if not tables:
        own = has_own_model(settings)
        models = [await open_model(settings, on_download=on_download, on_convert=on_convert)] if own else []
        return Pool(models, upstreams=upstreams)
    pool = Pool(
        [_entry(table, on_download, on_convert) for table in tables],
        upstreams=upstreams,
        default=next((table.name for table in tables if table.default), None),
        memory_budget=settings.memory_budget or 0,
        patience=settings.load_wait,
        grace=settings.grace,
    )
    try:
        await pool.start()
    except BaseException:
        await pool.close()
        raise
    return pool


def _entry(table: ModelTable, on_download: Progress | None, on_convert: Callable[[int, int], None] | None) -> Entry:
    from arriero.pool import Entry

    return Entry(
        table.name,
        lambda: open_model(table.settings, on_download=on_download, on_convert=on_convert),
        aliases=table.aliases,
        adapters=tuple(table.settings.lora),
        ttl=table.ttl,
        preload=table.preload,
        estimate=lambda: _estimate(table.settings),
    )


def _estimate(settings: Settings) -> int:
    """Bytes that a model will take, by its files: converted weights, or those that it comes with; 0: not here yet."""
    # Much is imported for it, and only where there is a budget.
    from arriero.models.sources.catalog import DEFAULT_MODEL
    from arriero.models.sources.inventory import find

    if settings.engine == "scripted":
        return 0
    settings = settings.in_plain_words()
    try:
        stored = find(settings.model or DEFAULT_MODEL, settings.cache)
    except ModelLoadError:
        return 0  # loading will say what is wrong
    if stored.path is None:
        return 0
    files = [stored.path] if stored.path.is_file() else [each for each in stored.path.iterdir() if each.is_file()]
    weights = max((each.size for each in stored.conversions), default=sum(each.stat().st_size for each in files))
    return weights + _PROCESS
