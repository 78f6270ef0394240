"""A benchmark of several parts: each is written as soon as it is there, beside what others found before, and on which machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from bench_quality import data_folder

from edgestill.core.hardware import HardwareClass

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER: Final = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """A benchmark.

    Attributes:
        name: of the benchmark, and of its file of results.
        says: its module's text, for `--help`.
        parts: in the order in which they are measured.
        libraries: whose versions are written down.
        measure: (part, data, folder for what is kept, quick) -> what was found, as JSON.
        figures: of the parts that there are.
        plotted: those of the parts that have a plot.
        draw: the plot of a part, of what was found.
    """

    name: str
    says: str | None
    parts: tuple[str, ...]
    libraries: tuple[str, ...]
    measure: Callable[[str, Path, Path, bool], Any]
    figures: Callable[[dict[str, Any]], dict[str, float]]
    plotted: tuple[str, ...]
    draw: Callable[[str, Any], None]

    def main(self) -> None:
        """Measures part after part; prints the figures last."""
        asked = self._arguments()
        torch.set_num_threads(1)
        parts: dict[str, Any] = {}
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as temporary:
            for part in asked.only:
                parts[part] = self.measure(part, data_folder(), asked.keep or Path(temporary), asked.quick)
                found = self.figures(parts) if asked.quick else self._keep({part: parts[part]})
                if part in self.plotted and not asked.quick:
                    self.draw(part, parts[part])
                if not asked.json:
                    print(json.dumps({part: parts[part]}, indent=1), flush=True)
        print(json.dumps({"bench": self.name, "figures": found}))

    def _arguments(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.says, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--json", action="store_true", help="print the last line only")
        parser.add_argument("--quick", action="store_true", help="only to see that it runs; nothing is kept")
        parser.add_argument("--keep", type=Path, help="folder for trials, weights and answers")
        parser.add_argument("--only", nargs="+", choices=self.parts, default=self.parts)
        return parser.parse_args()

    def _keep(self, parts: dict[str, Any]) -> dict[str, float]:
        """Writes these parts over those of the last results; the figures of all."""
        path = FOLDER / f"{self.name}.json"
        last = json.loads(path.read_text()) if path.exists() else {"parts": {}, "machines": {}}
        whole = last["parts"] | parts
        report = {
            "figures": self.figures(whole),
            "machines": last["machines"] | dict.fromkeys(parts, self._machine()),
            "parts": whole,
        }
        path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
        return self.figures(whole)

    def _machine(self) -> dict[str, Any]:
        """What a part was measured on; parts may come from different machines."""
        return {
            "cores": os.cpu_count(),
            "hardware_class": HardwareClass.here().name,
            "python": platform.python_version(),
            "load": round(os.getloadavg()[2], 1),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {name: version(name) for name in self.libraries},
        }
