"""How far a download is, for whoever watches the terminal."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger(__name__)


class DownloadBar:
    """Shows a bar from the first call on; one log line where stderr is no terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> DownloadBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, done: int, total: int | None) -> None:
        """Show `done` of `total` bytes; `arriero.models.download.Progress`."""
        if self._progress is None:
            self._progress = _start()
        if self._task is None:
            self._task = self._progress.add_task("Downloading the model", total=total)
        self._progress.update(self._task, completed=done, total=total)


def _start() -> Progress:
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        logger.info("Downloading the model")
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    bar.start()
    return bar
