"""The frames of a video on one sheet, with the video tokens that the draft sees."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pvlm.speculation.masks import unpack_mask
from pvlm.trace.recording import Recording
from pvlm_protocols.messages import Opened, PruneMask

FRAME_WIDTH = 192
GAP = 14
MARGIN = 24
CAPTION = 20
HEADER = 64
SHEET_WIDTH = 2000
"""Approximate width in pixels; it determines the number of frames in a row."""
SMALLEST_CELL = 2
"""Pixels; smaller cells are invisible."""

BACKGROUND = (250, 250, 248)
INK = (28, 30, 33)
FAINT = (110, 114, 120)
KEPT = (255, 176, 0)
DIMMED = 0.4
"""Share of its contrast that a dropped token keeps."""


@dataclass(frozen=True, eq=False)
class _Shot:
    """A frame of a video, or an image. ``keep``: bool ``(h, w)``, None where no tokens are shown."""

    frame: NDArray[np.uint8]
    caption: str
    keep: NDArray[np.bool_] | None


def frame_sheet(recording: Recording) -> bytes:
    """A PNG of every frame that the target saw, with numbers and times; dropped tokens are dimmed, kept ones framed.

    Several videos and images follow one another. If the processor's grids do not match the target's number of video
    tokens, or their cells are too small, the frames are shown unchanged, and the sheet says why.
    """
    subject = recording.subject
    visuals = subject.opening.visuals
    tokens, mask = _kept(recording)
    height, width = max((visual.size for visual in visuals), key=lambda size: size[0] / max(1, size[1]))
    size = FRAME_WIDTH, max(16, min(3 * FRAME_WIDTH, round(FRAME_WIDTH * height / max(1, width))))
    grids = [subject.processor.video_grid(visual.pixels) for visual in visuals]
    problem = _problem(grids, tokens, size)
    shots = _shots(recording, grids, None if problem or mask.all() else mask)
    columns = _columns(len(shots), size)
    rows = math.ceil(len(shots) / columns)
    sheet = Image.new(
        "RGB",
        (
            max(2 * MARGIN + columns * (size[0] + GAP) - GAP, 620),
            HEADER + MARGIN + rows * (size[1] + CAPTION + GAP),
        ),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 16), _title(tokens, mask), INK, ImageFont.load_default(18))
    draw.text((MARGIN, 40), problem or _subtitle(recording, mask), FAINT, ImageFont.load_default(13))
    small = ImageFont.load_default(12)
    for index, shot in enumerate(shots):
        left = MARGIN + index % columns * (size[0] + GAP)
        top = HEADER + index // columns * (size[1] + CAPTION + GAP)
        sheet.paste(_picture(shot.frame, size, shot.keep), (left, top))
        draw.text((left, top + size[1] + 4), shot.caption, INK, small)
        if (keep := shot.keep) is not None:
            draw.text((left + size[0], top + size[1] + 4), f"{keep.sum()} of {keep.size}", FAINT, small, anchor="ra")
    png = io.BytesIO()
    sheet.save(png, "PNG", optimize=True)
    return png.getvalue()


def _problem(grids: Sequence[tuple[int, int, int]], tokens: int, size: tuple[int, int]) -> str:
    """Why no tokens can be shown; empty if they can."""
    if tokens and sum(map(math.prod, grids)) != tokens:
        described = " and ".join(f"{t} x {h} x {w}" for t, h, w in grids)
        return f"its grid of {described} does not hold the {tokens} video tokens: they cannot be shown"
    for _, h, w in grids:
        if size[0] / w < SMALLEST_CELL or size[1] / h < SMALLEST_CELL:
            return f"its grid of {h} x {w} tokens a frame is too fine to be shown"
    return ""


def _shots(recording: Recording, grids: Sequence[tuple[int, int, int]], mask: NDArray[np.bool_] | None) -> list[_Shot]:
    """The frames of all videos and images; ``mask``: bool ``(m,)``, the kept video tokens of all of them."""
    subject = recording.subject
    shots: list[_Shot] = []
    first = 0
    for number, (visual, (t, h, w)) in enumerate(zip(subject.opening.visuals, grids, strict=True)):
        moments = None if mask is None else mask[first : first + t * h * w].reshape(t, h, w)
        first += t * h * w
        label = f"video {number + 1} · " if len(grids) > 1 else ""
        for index, frame in enumerate(visual.pixels):
            if visual.kind == "image":
                caption = f"image {number + 1}"
            else:
                caption = f"{label}frame {subject.frame_indices[number][index]}"
            if visual.timestamps_s:
                caption += f" · {visual.timestamps_s[index]:.2f} s"
            shots.append(_Shot(frame, caption, None if moments is None else moments[index * t // len(visual.pixels)]))
    return shots


def _kept(recording: Recording) -> tuple[int, NDArray[np.bool_]]:
    """The target's number of video tokens m, and the mask of those that the draft sees: bool ``(m,)``."""
    tokens = 0
    for handled in recording.handled:
        match handled.event:
            case PruneMask() as mask if mask.kept < mask.video_tokens:
                return mask.video_tokens, unpack_mask(mask.bits, mask.video_tokens)
            case Opened(role="target") as opened:
                tokens = opened.video_tokens
    return tokens, np.ones(tokens, np.bool_)


def _title(tokens: int, mask: NDArray[np.bool_]) -> str:
    if not tokens:
        return "No video token can be pruned"
    if mask.all():
        return f"{tokens} video tokens, none pruned"
    return f"The draft sees {mask.sum()} of {tokens} video tokens ({mask.mean():.0%})"


def _subtitle(recording: Recording, mask: NDArray[np.bool_]) -> str:
    if not recording.subject.with_draft:
        return "there is no draft: the target answered alone"
    if mask.all():
        return "draft and target see everything"
    return f"pruning: {recording.subject.opening.pruning.method}; dropped tokens are dimmed, kept ones framed"


def _columns(frames: int, size: tuple[int, int]) -> int:
    """Frames in a row: the sheet is wider than high, within `SHEET_WIDTH`, and its last row well filled."""
    most = max(1, (SHEET_WIDTH - 2 * MARGIN) // (size[0] + GAP))
    wanted = math.ceil(math.sqrt(frames * (size[1] + CAPTION) / size[0] * 1.5))
    rows = math.ceil(frames / min(most, max(wanted, 5)))
    return math.ceil(frames / rows)


def _picture(frame: NDArray[np.uint8], size: tuple[int, int], keep: NDArray[np.bool_] | None) -> Image.Image:
    """A frame, uint8 ``(H, W, 3)``, in ``size``; tokens outside ``keep``, bool ``(h, w)``, are dimmed."""
    picture = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    if keep is None:
        return picture
    cells = Image.fromarray(np.where(keep, 255, 0).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    dimmed = Image.blend(Image.new("RGB", size, (206, 206, 206)), picture.convert("L").convert("RGB"), DIMMED)
    shown = Image.composite(picture, dimmed, cells)
    _frame_kept(ImageDraw.Draw(shown), size, keep)
    return shown


def _frame_kept(draw: ImageDraw.ImageDraw, size: tuple[int, int], keep: NDArray[np.bool_]) -> None:
    """Draw a line between kept and dropped tokens."""
    rows, columns = keep.shape
    padded = np.pad(keep, 1)
    thick = 2 if min(size[0] / columns, size[1] / rows) >= 12 else 1
    for row, column in np.argwhere(keep):
        x0, x1 = round(column * size[0] / columns), round((column + 1) * size[0] / columns) - 1
        y0, y1 = round(row * size[1] / rows), round((row + 1) * size[1] / rows) - 1
        sides = {
            (0, -1): (x0, y0, x0 + thick - 1, y1),
            (0, 1): (x1 - thick + 1, y0, x1, y1),
            (-1, 0): (x0, y0, x1, y0 + thick - 1),
            (1, 0): (x0, y1 - thick + 1, x1, y1),
        }
        for (down, right), side in sides.items():
            if not padded[row + 1 + down, column + 1 + right]:
                draw.rectangle(side, KEPT)
