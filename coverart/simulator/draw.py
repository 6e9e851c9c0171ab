"""
Draw the covers: real JPEG, PNG, GIF and PDF files, always the same for the same image.

An original is drawn from its image's id and its thumbnails are true down-scales of that drawing.
A drawing takes a tenth of a second and a large one several, so a service draws in threads and
keeps what it drew, within a bound.  For load tests `variants` limits how many different drawings
there are; a comment stamped into each file keeps all of them different.
"""

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from random import Random
from typing import Generic, TypeVar

import attrs
from PIL import Image as Pixels
from PIL import ImageChops, ImageDraw, ImageFont, ImageOps

from coverart.simulator.catalogue import Image
from coverart.simulator.stamp import Stampable, stampable

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
_QUALITY = 90
_LARGE_QUALITY = 98
_THUMBNAIL_QUALITY = 85
_PAGES = 3
_FRAMES = 5
_EPOCH = time.gmtime(0)
_WORDS = (
    "Amber",
    "Ballad",
    "Cinder",
    "Delta",
    "Echo",
    "Fable",
    "Garden",
    "Harbour",
    "Iris",
    "Juniper",
    "Kestrel",
    "Lantern",
    "Meridian",
    "Nocturne",
    "Orchid",
    "Paper",
    "Quarry",
    "River",
    "Saffron",
    "Tundra",
    "Umbra",
    "Velvet",
    "Willow",
    "Yonder",
    "Zephyr",
)


@attrs.frozen(kw_only=True)
class Picture:
    """What there is to draw: the same picture always becomes the same bytes."""

    seed: int
    width: int
    height: int
    kind: str
    animated: bool = False
    quality: int = _QUALITY


def picture_of(image: Image, size: int | None, variants: int = 0) -> Picture:
    """
    Say which picture a file of an image shows.

    :param variants: how many different pictures there are; 0 means one per image, and only then do
        the thumbnails follow from its own original.
    """
    if not variants:
        return Picture(
            seed=image.id,
            width=image.width,
            height=image.height,
            kind=image.ext,
            animated=image.animated,
            quality=_LARGE_QUALITY if image.weight == "large" else _QUALITY,
        )
    seed = image.id % variants
    if size is not None:
        width = _VARIANT_WIDTHS["jpg"]
        return Picture(seed=seed, width=width, height=width, kind="jpg")
    width = 3000 if image.weight == "large" else _VARIANT_WIDTHS[image.ext]
    return Picture(
        seed=seed,
        width=width,
        height=width,
        kind=image.ext,
        animated=image.animated,
        quality=_LARGE_QUALITY if image.weight == "large" else _QUALITY,
    )


_VARIANT_WIDTHS = {"jpg": 1300, "png": 800, "gif": 640, "pdf": 1200}


def canvas(picture: Picture) -> Pixels.Image:
    """Draw a picture at its full size: a gradient, shapes, two words, and grain."""
    random = Random(picture.seed)
    extent = (picture.width, picture.height)
    dark, light = _colour(random, 20, 110), _colour(random, 130, 245)
    shade = random.choice((Pixels.linear_gradient, Pixels.radial_gradient))("L")
    if random.random() < 0.5:
        shade = ImageOps.invert(shade)
    drawing = ImageOps.colorize(shade, dark, light).resize(extent, Pixels.Resampling.BILINEAR)
    pen = ImageDraw.Draw(drawing)
    for _ in range(random.randint(4, 12)):
        _shape(pen, random, extent)
    title = f"{random.choice(_WORDS)} {random.choice(_WORDS)}"
    font = ImageFont.load_default(size=max(12, picture.width // 11))
    place = (picture.width // 14, random.randint(0, picture.height * 3 // 4))
    pen.text(place, title, fill=_colour(random, 200, 255), font=font)
    return _grained(drawing, random)


def _colour(random: Random, low: int, high: int) -> tuple[int, int, int]:
    return random.randint(low, high), random.randint(low, high), random.randint(low, high)


def _shape(pen: ImageDraw.ImageDraw, random: Random, extent: tuple[int, int]) -> None:
    width, height = extent
    left, top = random.randint(-width // 8, width), random.randint(-height // 8, height)
    right = left + random.randint(width // 20, width // 2)
    bottom = top + random.randint(height // 20, height // 2)
    colour = _colour(random, 0, 255)
    kind = random.randrange(4)
    if kind == 0:
        pen.ellipse((left, top, right, bottom), fill=colour)
    elif kind == 1:
        pen.rectangle((left, top, right, bottom), fill=colour)
    elif kind == 2:
        pen.polygon((left, bottom, (left + right) // 2, top, right, bottom), fill=colour)
    else:
        pen.arc((left, top, right, bottom), 0, random.randint(90, 360), colour, width // 40)


def _grained(drawing: Pixels.Image, random: Random) -> Pixels.Image:
    """
    Lay grain of several sizes over a drawing, as scans of print have it.

    Grain of one pixel alone would vanish from the thumbnails and leave them lighter than real ones.
    """
    grain: Pixels.Image | None = None
    for cells in _GRAIN:
        # Whole tiles of noise, since a byte for each pixel of a large scan takes too long.
        tile = Pixels.frombytes("L", (cells, cells), random.randbytes(cells * cells))
        layer = tile.resize(drawing.size, Pixels.Resampling.BICUBIC)
        grain = layer if grain is None else Pixels.blend(grain, layer, 0.5)
    if grain is None:
        return drawing
    strength = random.uniform(0.30, 0.42)
    grain = Pixels.blend(Pixels.new("L", drawing.size, 128), grain, strength)
    return ImageChops.overlay(drawing, Pixels.merge("RGB", (grain, grain, grain)))


_GRAIN = (120, 300, 640, 1200)


def thumbnail(drawing: Pixels.Image, size: int) -> bytes:
    """Scale a drawing down to at most `size` pixels a side, as the archive's JPEG thumbnails."""
    small = drawing.copy()
    small.thumbnail((size, size), Pixels.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=_THUMBNAIL_QUALITY)
    return out.getvalue()


def original(picture: Picture, drawing: Pixels.Image) -> bytes:
    """Write a drawing as a file of the picture's kind."""
    out = io.BytesIO()
    if picture.kind == "png":
        drawing.save(out, "PNG", compress_level=1)
    elif picture.kind == "gif":
        frames = [drawing.quantize(128, Pixels.Quantize.FASTOCTREE)]
        if picture.animated:
            turns = range(1, _FRAMES)
            frames += [ImageChops.offset(frames[0], turn * 20, turn * 5) for turn in turns]
        frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=120, loop=0)
    elif picture.kind == "pdf":
        pages = [
            canvas(attrs.evolve(picture, seed=-picture.seed - page)) for page in range(1, _PAGES)
        ]
        # Pillow would write the time of day into the file.
        drawing.save(
            out, "PDF", save_all=True, append_images=pages, creationDate=_EPOCH, modDate=_EPOCH
        )
    else:
        drawing.save(out, "JPEG", quality=picture.quality)
    return out.getvalue()


class Kept(Generic[_K, _V]):
    """A cache bounded by weight that forgets what was not used for longest; safe across threads."""

    def __init__(self, max_bytes: int, weigh: Callable[[_V], int]) -> None:
        self._max_bytes = max_bytes
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[_K, _V] = OrderedDict()
        self.size_bytes = 0

    def get(self, key: _K) -> _V | None:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: _K, value: _V) -> None:
        with self._lock:
            if key in self._values:
                self.size_bytes -= self._weigh(self._values.pop(key))
            self._values[key] = value
            self.size_bytes += self._weigh(value)
            while self.size_bytes > self._max_bytes and len(self._values) > 1:
                self.size_bytes -= self._weigh(self._values.popitem(last=False)[1])


class Studio:
    """
    Gives the bytes of any image, and remembers drawings within a bound.

    :param variants: see `picture_of`.
    :param max_bytes: weight of the rendered files it keeps.
    """

    def __init__(self, variants: int = 0, max_bytes: int = 64 * 2**20) -> None:
        self.variants = variants
        self._files: Kept[tuple[Picture, int | None], Stampable] = Kept(
            max_bytes, lambda file: file.size_bytes
        )
        # The sizes of one cover tend to be asked for together.
        self._canvases: Kept[Picture, Pixels.Image] = Kept(
            max_bytes // 2, lambda drawing: 4 * drawing.width * drawing.height
        )

    def kept(self, picture: Picture, size: int | None) -> Stampable | None:
        """Give a rendered file if it is still there; `size` None means the original."""
        return self._files.get((picture, size))

    def rendered(self, picture: Picture, size: int | None) -> Stampable:
        """Give a rendered file, drawing it if need be; safe to call from any thread."""
        file = self._files.get((picture, size))
        if file is None:
            drawing = self._canvases.get(picture)
            if drawing is None:
                drawing = canvas(picture)
                self._canvases.put(picture, drawing)
            if size is None:
                file = stampable(picture.kind, original(picture, drawing))
            else:
                file = stampable("jpg", thumbnail(drawing, size))
            self._files.put((picture, size), file)
        return file

    def archive_bytes(self, image: Image, size: int | None) -> bytes:
        """
        Give the exact bytes the archive sends for an image.

        It blocks for as long as the drawing takes, a tenth of a second or more.
        """
        return stamp(self.rendered(picture_of(image, size, self.variants), size), image, size)


def stamp(file: Stampable, image: Image, size: int | None) -> bytes:
    """Make a rendered file that image's own."""
    return file.stamped(f"coverart simulator {image.id} {size or 'original'}")


def archive_bytes(image: Image, size: int | None, *, variants: int = 0) -> bytes:
    """Give the exact bytes the archive sends for an image; see `Studio.archive_bytes`."""
    return Studio(variants).archive_bytes(image, size)
