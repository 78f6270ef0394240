"""What `bench/tune_quality.py` has chosen on validation data, as `bench_quality.py` takes it from its results."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent.parent / "results" / "quality_tuning.json"


@cache
def chosen(part: str) -> dict[str, Any]:
    """The choices of one part."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())[part]["chosen"]
    return found
