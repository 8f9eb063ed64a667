"""Draws six pictures to show predictions of: `python docs/draw_scenes.py FOLDER` writes FOLDER/any/*.png, 64 x 64."""

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, LARGE = 64, 256  # pixels; drawn large, then made small
FADE = Image.linear_gradient("L").resize((LARGE, LARGE))


def scene(top: str, bottom: str, *draw: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    """A sky that fades from one colour to another, and what is in front of it."""
    picture = Image.composite(Image.new("RGB", FADE.size, bottom), Image.new("RGB", FADE.size, top), FADE)
    for step in draw:
        step(ImageDraw.Draw(picture))
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def box(left: int, top: int, right: int, bottom: int, colour: str) -> Callable[[ImageDraw.ImageDraw], None]:
    return lambda d: d.rectangle((left, top, right, bottom), fill=colour)


def disc(left: int, top: int, side: int, colour: str) -> Callable[[ImageDraw.ImageDraw], None]:
    return lambda d: d.ellipse((left, top, left + side, top + side), fill=colour)


def outline(colour: str, *corners: tuple[int, int]) -> Callable[[ImageDraw.ImageDraw], None]:
    return lambda d: d.polygon(corners, fill=colour)


SCENES = {
    "disc": scene("white", "#e8e8f0", disc(40, 40, 176, "#d8a020")),
    "hill": scene("#203060", "#f0a060", outline("#101820", (0, 256), (0, 200), (100, 120), (256, 220), (256, 256))),
    "house": scene(
        "#80b0e0",
        "#e0f0ff",
        box(0, 190, 256, 256, "#408040"),
        box(70, 110, 190, 210, "#b04030"),
        outline("#503028", (50, 110), (210, 110), (130, 40)),
    ),
    "pole": scene("#a0a8b0", "#606870", box(110, 0, 146, 256, "#201810")),
    "sea": scene("#4080d0", "#c0d8f0", box(0, 150, 256, 256, "#205070"), disc(160, 40, 50, "#fff0a0")),
    "stripes": scene("#f0f0f0", "#d0d0d0", *(box(0, y, 256, y + 31, "#2040a0") for y in range(0, LARGE, 64))),
}

if __name__ == "__main__":
    folder = Path(sys.argv[1], "any")
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in SCENES.items():
        picture.save(folder / f"{name}.png")
