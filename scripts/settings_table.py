"""Write the README's table of settings from their declarations; with --check, only tell whether it is up to date."""

import sys
from pathlib import Path

from arriero import config
from arriero.config_description import choices, default, flag, variable

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- settings: `make settings` writes this table -->\n", "<!-- end of settings -->"


def table() -> str:
    rows = ["| Flag | Variable | Default | |", "|---|---|---|---|"]
    for name, field in config.in_one_word().items():
        otherwise = f"`{default(field)}`" if default(field) else ""
        options = f" `{'`, `'.join(choices(field))}`." if choices(field) else ""
        rows.append(f"| `{flag(name)}` | `{variable(name)}` | {otherwise} | {field.description}{options} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + BEGIN + "\n" + table() + "\n" + END + after
    if "--check" not in sys.argv[1:]:
        README.write_text(wanted)
    elif text != wanted:
        sys.exit("The README's table of settings is not up to date: make settings")


if __name__ == "__main__":
    main()
