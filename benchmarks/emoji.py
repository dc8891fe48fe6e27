"""Makes a folder of emoji as PNG files, small colour pictures to train on, from a font.

python -m benchmarks.emoji FOLDER [--size 32] [--classes] [--uneven] [--font FILE]

Needs:  Debian's package fonts-noto-color-emoji, and fontTools.
Prints: the number of pictures written.
Takes:  seconds.

--classes puts each kind of emoji into its own folder. --uneven gives the pictures many sizes and shapes, like a user's
own pictures. Skin colours and sequences are omitted, except flags.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

from benchmarks.turns import parser_of

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
PIXELS = 109  # the one size of the font's bitmaps
CANVAS = (136, 128)
REGIONAL = range(0x1F1E6, 0x1F200)  # letters; two of them are a flag
KINDS = {  # the first one that holds a character's number is its kind
    "clocks": [(0x1F550, 0x1F567)],
    "hearts": [(0x1F493, 0x1F49F), (0x2763, 0x2764), (0x1F5A4, 0x1F5A4), (0x1F90D, 0x1F90E), (0x1F9E1, 0x1F9E1),
               (0x1FA75, 0x1FA77)],
    "faces": [(0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F92F), (0x1F970, 0x1F97A), (0x1F9D0, 0x1F9D0),
              (0x1FAE0, 0x1FAE8), (0x2639, 0x263A)],
    "animals": [(0x1F400, 0x1F43F), (0x1F980, 0x1F9AE), (0x1FAB0, 0x1FABF), (0x1FACE, 0x1FACF)],
    "food": [(0x1F330, 0x1F37F), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB), (0x1FAD0, 0x1FADB), (0x2615, 0x2615)],
    "people": [(0x1F440, 0x1F487), (0x1F574, 0x1F57A), (0x1F590, 0x1F596), (0x1F645, 0x1F64F), (0x1F90C, 0x1F93E),
               (0x1F9B0, 0x1F9DF), (0x1FAC0, 0x1FAC5), (0x1FAF0, 0x1FAF8), (0x1F3C2, 0x1F3CC), (0x270A, 0x270D)],
    "places": [(0x1F300, 0x1F320), (0x1F3D4, 0x1F3F0), (0x1F680, 0x1F6A4), (0x1F6B2, 0x1F6B2), (0x1F6D0, 0x1F6D7),
               (0x1F6DC, 0x1F6FC)],
    "objects": [(0x1F380, 0x1F3FA), (0x1F488, 0x1F4FF), (0x1F50A, 0x1F52E), (0x1F56F, 0x1F5FF), (0x1F93F, 0x1F9FF),
                (0x1FA70, 0x1FAFF)],
    "signs": [(0, 0x1FFFF)],
}  # fmt: skip
# letters of flags, skin colours, digits and control characters, private use
LEFT_OUT = {*REGIONAL, *range(0x1F3FB, 0x1F400), *range(0x80), *range(0xE0000, 0x110000)}


def emoji(path: str) -> Iterator[tuple[str, str, Image.Image]]:
    """Yields (kind, text, picture on white) for each emoji of the font."""
    from fontTools.ttLib import TTFont

    drawn = font_of(path)
    blank = Image.new("RGB", CANVAS, "white")
    for number in sorted(set(TTFont(path).getBestCmap()) - LEFT_OUT):
        picture = _picture(chr(number), drawn)
        if ImageChops.difference(picture, blank).getbbox():
            yield kind_of(number), chr(number), picture
    unknown = _picture(chr(REGIONAL[-3]) * 2, drawn)  # XX is not a country
    for pair in itertools.product(map(chr, REGIONAL), repeat=2):
        picture = _picture("".join(pair), drawn)
        if ImageChops.difference(picture, unknown).getbbox():
            yield "flags", "".join(pair), picture


def font_of(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, PIXELS, layout_engine=ImageFont.Layout.RAQM)  # RAQM joins letters to flags


def kind_of(number: int) -> str:
    return next(kind for kind, ranges in KINDS.items() if any(low <= number <= high for low, high in ranges))


def squared(picture: Image.Image, size: int) -> Image.Image:
    """The picture on a white square, scaled to `size` pixels."""
    square = Image.new("RGB", (max(picture.size),) * 2, "white")
    square.paste(picture, ((square.width - picture.width) // 2, (square.height - picture.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def uneven(picture: Image.Image, number: int) -> Image.Image:
    """The picture on a white rectangle with sides of 24 to 200 pixels and a shape between 2:3 and 3:2."""
    side, shape = 24 + 109 * (number % 13) // 12, 2 + number % 3
    small = squared(picture, side)
    canvas = Image.new("RGB", [(side, side), (side * 3 // 2, side), (side, side * 3 // 2)][shape - 2], "white")
    canvas.paste(small, ((canvas.width - side) // 2, (canvas.height - side) // 2))
    return canvas


def _picture(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    picture = Image.new("RGB", CANVAS, "white")
    ImageDraw.Draw(picture).text((0, 0), text, font=font, embedded_color=True)
    return picture


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="where to write the pictures")
    parser.add_argument("--size", type=int, default=32, help="side in pixels; 32 by default")
    parser.add_argument("--classes", action="store_true", help="one folder for each kind")
    parser.add_argument("--uneven", action="store_true", help="many sizes and shapes")
    parser.add_argument("--font", default=FONT, help="path of the font file")
    given = parser.parse_args()
    count = 0
    for number, (kind, text, picture) in enumerate(emoji(given.font)):
        folder = given.folder / kind if given.classes else given.folder
        folder.mkdir(parents=True, exist_ok=True)
        small = uneven(picture, number) if given.uneven else squared(picture, given.size)
        small.save(folder / f"{'-'.join(f'{ord(letter):x}' for letter in text)}.png")
        count += 1
    print(f"{count} pictures in {given.folder}")


if __name__ == "__main__":
    main()
