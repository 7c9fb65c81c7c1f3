"""Common parts of all pictures."""

from __future__ import annotations

import io
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

from pvlm.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pvlm.config import EngineConfig

PARALLEL, VANILLA, PREPARED, INK, PALE = "#1f5fa8", "#d07c2e", "#2a8c5a", "#444444", "#ebebeb"
CHARACTERS_AN_INCH = 13
LINE_INCHES = 0.17
"""Height of a line of a caption."""


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


def add_caption(figure: Figure, lines: Sequence[str]) -> None:
    """Write lines below a figure, which grows for them: what its symbols mean, the pair, the machine, and n."""
    width, height = figure.get_size_inches()
    wrapped = [part for line in lines for part in wrap(line, int(width * CHARACTERS_AN_INCH))]
    figure.set_size_inches(width, height + LINE_INCHES * len(wrapped))
    above = [figure.get_supxlabel()] if figure.get_supxlabel() else []
    figure.supxlabel("\n".join([*above, *wrapped]), fontsize="small", color=INK)


def pair_and_machine(config: EngineConfig) -> str:
    """The models that a picture is about, and the machine that runs them."""
    models = [config.checkpoint(role) or "no draft" for role in ("target", "draft")]
    target, draft = (str(Path(*Path(model).parts[-2:])) if Path(model).is_absolute() else model for model in models)
    devices = list(dict.fromkeys([config.device, config.draft_device or config.device]))
    where = [machine() if device == "cpu" else device for device in devices]
    return f"Pair: {target} and {draft}, backend {config.backend}, dtype {config.dtype}. Machine: {', '.join(where)}."


def machine() -> str:
    """This machine's processor, and the cores that may be used."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = ""
    name = re.search(r"model name\s*:\s*(.+)", described)
    return f"{len(os.sched_getaffinity(0))} cores of {name[1].strip() if name else platform.machine()}"


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
