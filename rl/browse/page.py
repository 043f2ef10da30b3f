"""Archived answers as a page (HTML) or as one picture (PNG): each filled over its image, the truth as a line."""

import math
import unicodedata
from pathlib import Path

import numpy as np
from anyascii import anyascii
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rl.browse.show import Shown, ShownAnswer
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, overlay, svg_overlay
from rollout.disk import whole_file

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_TILE_PX, _GAP_PX, _TEXT_PX, _LINE_PX = 256, 12, 15, 20
_INK, _SOFT, _PAGE = (22, 25, 31), (92, 100, 112), (246, 247, 249)
_CAPTION_LINES = 3
_MAY_BE_SILENT = {"Lo", "Lm", "Mn", "Mc", "Me", "Cc", "Cf"}
"""Kinds of characters that may have no spelling: some letters, marks on letters, and what is not seen."""
SPELLED = "Letters other than ASCII are spelled in ASCII in a picture; a page (.html) shows them as they are."


def write_shown(shown: Shown, out: Path) -> None:
    """Write the answers to `out`, whole or not at all: a picture where its name ends in .png, else a page.

    Raises ValueError for another ending.
    """
    if out.suffix == ".html":
        write_page(out, render(shown))
    elif out.suffix == ".png":
        with whole_file(out) as partial:
            Image.fromarray(sheet(shown)).save(partial, "png")
    else:
        raise ValueError(f"{out} ends in neither .html nor .png; give it one of these.")


def render(shown: Shown) -> str:
    """The page as HTML text."""
    return render_page("archive.html.j2", shown=shown, svg=_svg, note=note, colours=COLOURS)


def _svg(one: ShownAnswer) -> Markup:
    outline = one.truth_rings
    return Markup(svg_overlay(one.asked.image, one.answer.rings_px, COLOURS["rl"], one.title, outline=outline))


def note(one: ShownAnswer) -> str:
    """What is drawn, or why nothing is, and whether the image is not the one that was asked about."""
    drawn = f"{one.answer.num_vertices} vertices" if one.answer.rings_px else one.answer.status.replace("_", " ")
    return drawn + (", image not to be had" if one.asked.problem else "")


def sheet(shown: Shown) -> NDArray[np.uint8]:
    """All answers as tiles of one uint8 RGB picture [H, W, 3], captions below each; says `SPELLED` where it holds."""
    columns = min(len(shown.answers), max(2, math.ceil(math.sqrt(1.5 * len(shown.answers)))))
    rows = math.ceil(len(shown.answers) / columns)
    wide, high = _TILE_PX + _GAP_PX, _TILE_PX + _CAPTION_LINES * _LINE_PX + 2 * _GAP_PX
    font, width = ImageFont.load_default(_TEXT_PX), columns * wide + _GAP_PX
    title = f"{_title(shown)}.  Blue: the answer.  White: the truth."
    lines = _wrapped(f"{title}  {SPELLED}" if is_spelled(shown) else title, font, width - 2 * _GAP_PX)
    head = len(lines) * _LINE_PX + _GAP_PX
    picture = Image.new("RGB", (width, head + rows * high + _GAP_PX), _PAGE)
    draw = ImageDraw.Draw(picture)
    for line, text in enumerate(lines):
        draw.text((_GAP_PX, _GAP_PX + line * _LINE_PX), text, fill=_INK, font=font)
    for k, one in enumerate(shown.answers):
        left, top = _GAP_PX + k % columns * wide, head + _GAP_PX + k // columns * high
        tile = _tile(one)
        picture.paste(tile, (left + (_TILE_PX - tile.width) // 2, top + (_TILE_PX - tile.height) // 2))
        for line, text in enumerate(_caption(one)):
            place = (left, top + _TILE_PX + 6 + line * _LINE_PX)
            draw.text(place, _shortened(latin(text), font, _TILE_PX), fill=_SOFT if line else _INK, font=font)
    return np.asarray(picture)


def is_spelled(shown: Shown) -> bool:
    """Whether a picture of the answers cannot show some letters of its captions as they are."""
    return not all(text.isascii() for text in (_title(shown), *(one.asked.phrase for one in shown.answers)))


def latin(text: str) -> str:
    """Text in one line of printable ASCII, which every font has: other letters as they are spelled in it, else "?"."""
    return "".join(map(_spelled, text)).strip() or "?" * bool(text.strip())


def _spelled(letter: str) -> str:
    plain = "".join(c if c.isprintable() else " " * c.isspace() for c in anyascii(letter))
    return plain or ("" if unicodedata.category(letter) in _MAY_BE_SILENT else "?")


def _title(shown: Shown) -> str:
    return f"{shown.run}: {shown.wanted.says}"


def _tile(one: ShownAnswer) -> Image.Image:
    height, width, _ = one.asked.image.shape
    tile = Image.fromarray(overlay(one.asked.image, one.answer.rings_px, COLOURS["rl"]))
    tile.thumbnail((_TILE_PX, _TILE_PX))
    draw = ImageDraw.Draw(tile)
    scale = np.array([tile.width / width, tile.height / height])
    for ring in one.truth_rings:
        closed = np.concatenate([ring, ring[:1]]) * scale - 0.5
        points = [(float(x), float(y)) for x, y in closed]
        draw.line(points, fill="#000", width=3, joint="curve")
        draw.line(points, fill="#fff", width=1)
    return tile


def _caption(one: ShownAnswer) -> tuple[str, str, str]:
    step, position, index = (one.row[name] for name in ("step", "position", "index"))
    numbers = f"IoU {one.row['iou']:.3f}   total {one.row['total']:.3f}"
    return one.asked.phrase, f"{numbers}   {note(one)}", f"step {step}, group {position}, answer {index}"


def _wrapped(text: str, font: _Font, width_px: int) -> list[str]:
    """The text in lines of at most `width_px`, broken between words."""
    lines = [""]
    for word in latin(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width_px and lines[-1]:
            lines.append("")
            longer = word
        lines[-1] = _shortened(longer, font, width_px)
    return lines


def _shortened(text: str, font: _Font, width_px: int) -> str:
    """The beginning of the text, as far as it fits into the width."""
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."
