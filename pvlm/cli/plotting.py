"""Common parts of all pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pvlm.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARALLEL, VANILLA, INK, PALE = "#1f5fa8", "#d07c2e", "#444444", "#ebebeb"


def check_plot(path: str | None) -> None:
    """Check a picture's path before any measurement. Raises OptionError for an impossible picture."""
    if path is None:
        return
    if Path(path).suffix.lower() != ".png":
        raise OptionError(f"--plot writes a PNG file: '{path}' must end in .png")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise OptionError("--plot needs matplotlib: pip install 'pvlm[plot]'") from None


def save_plot(path: str, figure: Figure) -> None:
    """Write a picture. Raises OptionError if that fails."""
    from pvlm.cli.console import write_file

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=160)
    write_file(path, picture.getvalue())


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure; sizes in inches. Its panels leave room for their labels."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    spaced = ConstrainedLayoutEngine(wspace=0.04, hspace=0.06)
    return Figure(figsize=(width, height), layout=spaced, facecolor="white")


def plain_panel(panel: Axes, values_along: Literal["x", "y"] = "y") -> None:
    """Draw pale lines across the values, and no frame but the base line."""
    panel.grid(axis=values_along, color=PALE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left" if values_along == "y" else "bottom"]].set_visible(False)
    panel.tick_params(length=0, colors=INK)
