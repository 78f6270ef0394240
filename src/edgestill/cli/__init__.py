"""The command line: one thin file per verb."""

from __future__ import annotations

import sys


def main() -> None:
    """The program `edgestill`; ends the process with 0, 1 (a coded error in one line) or 2 (wrong usage)."""
    from edgestill.core.errors import EdgestillError
    from edgestill.core.extras import require

    try:
        require("typer", extra="cli", purpose="for the command line")
        require("rich", extra="cli", purpose="for the command line")
    except EdgestillError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    from edgestill.cli.app import run

    run()
