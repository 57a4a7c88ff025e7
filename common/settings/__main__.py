"""``python -m common.settings NAME`` prints the table of a bundle's settings, in Markdown."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

from .table import SettingsTable


def table_of(name: str) -> SettingsTable:
    """The table of a bundle of this repository, or of the exported bundle that this package stands in.

    Raises:
        ValueError: when there is no such bundle.
    """
    package = str(__package__)
    module = "scripts.settings" if package.startswith("scripts.") else f"bundles.{name}.scripts.settings"
    if not name.isidentifier() or not Path(*module.split(".")).with_suffix(".py").is_file():
        known = sorted(path.parents[1].name for path in Path("bundles").glob("*/scripts/settings.py"))
        raise ValueError(f"no bundle named {name!r} here. Fix: use one of {', '.join(known) or 'the working folder'}.")
    table: SettingsTable = importlib.import_module(module).SETTINGS
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m common.settings", description=__doc__)
    parser.add_argument("name", help="name of the bundle, such as alc")
    try:
        print(table_of(parser.parse_args().name).markdown(), end="")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
