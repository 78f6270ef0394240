"""Lines for a terminal; texts of strangers are made safe for it: a card or a label must not move the cursor or change a title."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgestill.core.units import format_size

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject


def plain(text: str) -> str:
    """The text with every character that is neither printable nor a line end or tab replaced."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def bundle_line(told: JsonObject) -> str:
    """What a job wrote: the bundle with its size, which budgets count, and that of its archive; and the adapter beside it."""
    sizes = [format_size(told[name]) for name in ("size", "bytes")]  # type: ignore[arg-type]  # as `bundle_of` has them
    line = f"bundle: {told['file']}, {sizes[0]}; {sizes[1]} as an archive"
    return f"{line}; {told['adapter']} goes to the hub (--adapter)" if "adapter" in told else line
