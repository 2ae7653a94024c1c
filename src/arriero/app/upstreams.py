"""The models of the configuration that other servers answer for."""

from __future__ import annotations

import os
from collections.abc import Mapping

from arriero.backends.upstream import Upstream
from arriero.config import Settings
from arriero.upstream_tables import upstream_tables


def open_upstreams(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Upstream]:
    """One of each table that has addresses; nothing is asked of the servers yet.

    Raises `ConfigError` for a table that is wrong, and where the environment lacks a key.
    """
    return [Upstream(table, environment) for table in upstream_tables(settings.models)]


def has_own_model(settings: Settings) -> bool:
    """Whether this server is to answer for a model by itself: if one is named, or if nobody else answers."""
    named = settings.model or settings.base_model or settings.engine == "scripted"
    return bool(named) or not any("upstream" in table for table in settings.models)
