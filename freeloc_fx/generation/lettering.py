"""Words on pictures, and pictures side by side. Needs Pillow, imported when used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .encoding import need

__all__ = ["CAPTION", "GAP", "PAPER", "caption", "lettered", "stack", "text_width", "with_texts"]


GAP = 4
"""Pixels between the cells of a sheet."""
CAPTION = 18
"""Pixels of a caption's height."""
PAPER = (255, 255, 255)
_INK, _TEXT = (20, 20, 20), 13


def _font(size: int) -> Any:
    """Pillow's own font."""
    return need("PIL.ImageFont").load_default(size=size)


def text_width(text: str) -> int:
    """Pixels that a caption's text takes.

    Args:
        text: of one line.
    """
    return int(np.ceil(_font(_TEXT).getlength(text)))


def caption(text: str, width: int) -> np.ndarray:
    """Dark text centred on white, `CAPTION` px high; text that is too wide is set smaller, then cut.

    Args:
        text: of one line.
        width: pixels.

    Returns:
        uint8 RGB, (CAPTION, width, 3).
    """
    image = need("PIL.Image").new("RGB", (width, CAPTION), PAPER)
    size, font = _TEXT, _font(_TEXT)
    while font.getlength(text) > width - 2 and size > 9:
        size -= 1
        font = _font(size)
    while text and font.getlength(text) > width - 2:
        text = text[:-2] + "…" if len(text) > 2 else ""
    draw = need("PIL.ImageDraw").Draw(image)
    draw.text((width / 2, CAPTION / 2), text, fill=_INK, font=font, anchor="mm")
    return np.asarray(image)


def stack(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Cells of any sizes as one white sheet, left and top aligned in their columns and rows.

    Args:
        rows: of the sheet, each a list of uint8 RGB pictures.

    Returns:
        uint8 RGB, with `GAP` px around and between cells.
    """
    heights = [max(cell.shape[0] for cell in row) for row in rows]
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(max(map(len, rows)))]
    size = (sum(heights) + GAP * (len(heights) + 1), sum(widths) + GAP * (len(widths) + 1), 3)
    sheet = np.full(size, PAPER, np.uint8)
    y = GAP
    for row, height in zip(rows, heights, strict=True):
        x = GAP
        for cell, width in zip(row, widths, strict=False):
            sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
            x += width + GAP
        y += height + GAP
    return sheet


def with_texts(cells: list[np.ndarray], marks: list[int], texts: Mapping[int, str]) -> np.ndarray:
    """A row of cells with each text under the cells that it belongs to, on as many lines as it needs.

    Args:
        cells: uint8 RGB pictures of one size.
        marks: of each cell, which text it shows.
        texts: mark -> the text.

    Returns:
        uint8 RGB, without a gap around.
    """
    groups = [[cell for cell, of in zip(cells, marks, strict=True) if of == mark] for mark in dict.fromkeys(marks)]
    return _inside([[np.concatenate([strip := _inside([group]), lettered(texts[mark], strip.shape[1])])
                     for group, mark in zip(groups, dict.fromkeys(marks), strict=True)]])  # fmt: skip


def lettered(text: str, width: int) -> np.ndarray:
    """A text on as many captions as it needs.

    Args:
        text: any.
        width: pixels.

    Returns:
        uint8 RGB, (a multiple of CAPTION, width, 3).
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer) > width - 2:
            lines.append(word)
        else:
            lines[-1] = longer
    return np.concatenate([caption(line, width) for line in lines])


def _inside(rows: list[list[np.ndarray]]) -> np.ndarray:
    """A sheet without the gap around."""
    return stack(rows)[GAP:-GAP, GAP:-GAP]
