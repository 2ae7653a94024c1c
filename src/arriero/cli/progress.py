"""How far loading is, for whoever watches the terminal."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

logger = logging.getLogger(__name__)

_DOWNLOAD = "Downloading the model"
_CONVERT = "Converting the weights"


class Bars:
    """One bar for each slow thing, from its first call on; one log line each where stderr is no terminal."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._title = ""

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def download(self, done: int, total: int | None) -> None:
        """Show bytes; `arriero.models.sources.download.Progress`."""
        self._show(_DOWNLOAD, done, total)

    def convert(self, done: int, total: int) -> None:
        """Show layers."""
        self._show(_CONVERT, done, total)

    def _show(self, title: str, done: int, total: int | None) -> None:
        if title != self._title:
            if self._bar is not None:
                self._bar.stop()
            self._title = title
            self._bar = _start(title)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)


def _start(title: str) -> Progress | None:
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        logger.info(title)
        return None
    columns: list[ProgressColumn] = [progress.TextColumn("{task.description}"), progress.BarColumn()]
    if title == _DOWNLOAD:
        columns += [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    else:
        columns += [progress.MofNCompleteColumn()]
    bar = progress.Progress(*columns, progress.TimeRemainingColumn(), console=console)
    bar.add_task(title, total=None)
    bar.start()
    return bar
