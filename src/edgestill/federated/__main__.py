"""Starts one of Flower's own programs, with its telemetry, look for updates and installing at run time off.

    python -m edgestill.federated flower-superlink|flower-supernode|flower-superexec|flwr [ARGUMENT...]

The program is that of this interpreter's environment, and takes this process's place. A variable that is set already,
and `--allow-runtime-dependency-installation`, stay as they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from edgestill.core.errors import EdgestillError, MissingExtraError, SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS: Final = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr")
_INSTALLS: Final = "flower-superlink"  # the one that installs what an app names, unless told not to
_OFF: Final = "--disable-runtime-dependency-installation"
_ON: Final = "--allow-runtime-dependency-installation"


def command(arguments: Sequence[str], folder: Path) -> list[str]:
    """What to run: a program of `folder`, with its arguments.

    Raises:
        SettingError: another program. MissingExtraError: it is not installed.
    """
    program, *rest = arguments or [""]
    if program not in PROGRAMS:
        raise SettingError(
            "not a program of Flower's",
            where="python -m edgestill.federated",
            expected=" or ".join(PROGRAMS),
            got=program or "nothing",
            fix="name the program first, then its arguments",
        )
    path = folder / program
    if not path.is_file():
        raise MissingExtraError(
            f"{program} is not installed; it is needed to take part in a federation",
            where=path,
            fix='run: pip install "edgestill[federated]"',
        )
    if program == _INSTALLS and not {_OFF, _ON} & set(rest):
        rest = [_OFF, *rest]
    return [str(path), *rest]


def main() -> NoReturn:
    """The command line; the package has set the variables when this runs."""
    folder = Path(sys.executable).parent
    try:
        run = command(sys.argv[1:], folder)
    except EdgestillError as error:
        print(error, file=sys.stderr)  # noqa: T201  # a command's own output
        sys.exit(2 if isinstance(error, SettingError) else 1)
    # they start each other by name
    os.environ["PATH"] = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    os.execv(run[0], run)  # noqa: S606  # the program that was asked for, without a shell


if __name__ == "__main__":
    main()
