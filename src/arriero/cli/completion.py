"""`arriero completion`, and what may stand for a word: told from names of files, since whoever presses Tab waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Shell to print it for.", show_default=False)],
) -> None:
    """Print the script by which a shell completes commands, flags and the names of models.

    In ~/.bashrc or ~/.zshrc: eval "$(arriero completion bash)". For fish: arriero completion fish >
    ~/.config/fish/completions/arriero.fish. arriero --install-completion does that by itself.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # there, though not re-exported

    print(get_completion_script(prog_name="arriero", complete_var="_ARRIERO_COMPLETE", shell=shell))


def complete_model(incomplete: str) -> list[str]:
    """Models of the catalog and of the hub's cache; none for the beginning of a path, which the shell completes."""
    if incomplete.startswith((".", "/", "~")):
        return []
    from arriero.models.sources.catalog import catalog

    return [name for name in (*catalog, *sorted(_in_hub_cache())) if name.startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """TOML files beside what is typed."""
    directory = os.path.dirname(incomplete)
    try:
        names = sorted(os.listdir(os.path.expanduser(directory) or "."))
    except OSError:
        return []
    paths = (os.path.join(directory, name) for name in names if name.endswith(".toml"))
    return [path for path in paths if path.startswith(incomplete)]


def complete_choice(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """The values of a setting that has few."""
    return lambda incomplete: [each for each in choices if each.startswith(incomplete)]


def _in_hub_cache() -> Iterator[str]:
    """Repositories of models there, found as huggingface_hub does, which takes half a second to import."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    place = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    for snapshots in place.glob("models--*--*/snapshots"):
        yield "/".join(snapshots.parent.name.split("--")[1:])
