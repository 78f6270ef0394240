"""Pages: whole, the same for the same figures, and plain text wherever text comes from."""

from __future__ import annotations

from edgestill.lab.page import note, page, plot, svg, table


def test_what_is_text_stays_text() -> None:
    """Names of classes and layers are somebody's: they bring no markup."""
    bad = "<script>alert(1)</script> & co"
    for told in (page(bad, ""), note(bad), table((bad,), [(bad, 1)])):
        assert "<script>" not in told
        assert "&lt;script&gt;" in told


def test_the_same_plot_is_the_same_bytes() -> None:
    """No date, no numbers drawn by chance; and nothing before the picture."""

    def drawn() -> str:
        picture, axes = plot(3, 2)
        axes.plot([0, 1], [0, 1])
        axes.set_xlabel("ms")
        return svg(picture)

    assert drawn() == drawn()
    assert drawn().startswith("<svg")
