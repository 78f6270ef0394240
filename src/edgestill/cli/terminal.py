"""Texts of strangers, made safe for a terminal: a card or a label must not move the cursor or change a title."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text with every character that is neither printable nor a line end or tab replaced."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
