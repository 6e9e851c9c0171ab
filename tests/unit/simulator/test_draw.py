"""The covers the simulated archive draws, and the comments that keep them apart."""

import hashlib
import io
from pathlib import Path

import attrs
from PIL import Image as Pixels
from PIL import ImageChops, ImageStat
from twisted.trial.unittest import SynchronousTestCase

from coverart.simulator.catalogue import Catalogue
from coverart.simulator.draw import Kept, Studio, archive_bytes
from coverart.simulator.stamp import stampable

DATA = Path(__file__).parents[2] / "data"
SAMPLES = {
    "jpg": DATA / "rocket.jpg",
    "png": DATA / "brick.png",
    "gif": DATA / "python.gif",
    "pdf": DATA / "hello-world.pdf",
}


def opened(data: bytes):
    image = Pixels.open(io.BytesIO(data))
    image.load()
    return image


class DrawingTests(SynchronousTestCase):
    """Real files that are always the same."""

    catalogue = Catalogue(seed=5, releases=100)

    def front(self, index: int):
        front = self.catalogue.release(index).front
        assert front is not None
        return front

    def test_formats(self) -> None:
        """Each original is a whole file of its kind, with as many frames or pages as it should."""
        studio = Studio()
        for index, kind, frames in [(0, "JPEG", 1), (1, "PNG", 1), (2, "GIF", None), (3, "GIF", 5)]:
            image = self.front(index)
            drawing = opened(studio.archive_bytes(image, None))
            self.assertEqual(drawing.format, kind)
            self.assertEqual(drawing.size, (image.width, image.height))
            if frames:
                self.assertEqual(getattr(drawing, "n_frames", 1), frames)
        pdf = studio.archive_bytes(self.front(4), None)
        self.assertTrue(pdf.startswith(b"%PDF-"))
        self.assertIn(b"/Count 3", pdf)

    def test_thumbnails_are_downscales(self) -> None:
        """A thumbnail is a JPEG of the original, scaled down, and as heavy as the archive's."""
        image, studio = self.front(0), Studio()
        whole = opened(studio.archive_bytes(image, None)).convert("RGB")
        for size, low, high in [(250, 8, 20), (500, 35, 80), (1200, 150, 450)]:
            data = studio.archive_bytes(image, size)
            small = opened(data)
            self.assertEqual((small.format, max(small.size)), ("JPEG", size))
            self.assertTrue(low * 1000 < len(data) < high * 1000, (size, len(data)))
            difference = ImageChops.difference(small, whole.resize(small.size))
            self.assertLess(max(ImageStat.Stat(difference).mean), 12)

    def test_same_every_time(self) -> None:
        """Nothing but the image decides the bytes: not the studio, the order, nor the time of day."""
        for index in (0, 3, 4):
            image, studio = self.front(index), Studio()
            studio.archive_bytes(image, 250)
            self.assertEqual(studio.archive_bytes(image, None), archive_bytes(image, None))

    def test_no_two_alike(self) -> None:
        """Different images have different bytes."""
        studio = Studio()
        images = [self.front(0), self.front(1), self.front(7)]
        self.assertEqual(len({studio.archive_bytes(image, 250) for image in images}), 3)

    def test_large_original(self) -> None:
        """The large ones are several MB."""
        data = archive_bytes(self.front(11), None)
        self.assertTrue(3_000_000 < len(data) < 12_000_000, len(data))

    def test_variants(self) -> None:
        """With one variant, thousands of covers are one drawing and yet all differ."""
        studio = Studio(variants=1)
        images = [
            attrs.evolve(image, underived=())
            for index in range(100)
            for image in self.catalogue.release(index).images
        ]
        files = [studio.archive_bytes(image, 250) for image in images]
        self.assertEqual(len({hashlib.sha256(file).digest() for file in files}), len(images))
        self.assertEqual(len({opened(file).tobytes() for file in files}), 1)

    def test_bounded(self) -> None:
        """What is kept stays within its bound, and what is used goes last."""
        kept: Kept[str, bytes] = Kept(10, len)
        for key in "abc":
            kept.put(key, b"1234")
            kept.get("a")
        self.assertEqual([kept.get(key) is not None for key in "abc"], [True, False, True])
        self.assertEqual(kept.size_bytes, 8)
        kept.put("a", b"12")
        self.assertEqual(kept.size_bytes, 6)


class StampTests(SynchronousTestCase):
    """A comment makes a file unique and harms it in no reader."""

    def test_foreign_files(self) -> None:
        """Files drawn by others read the same with a comment in them, and hold its text."""
        for kind, path in SAMPLES.items():
            with self.subTest(kind=kind):
                data = path.read_bytes()
                stamped = stampable(kind, data).stamped("coverart simulator 12345678901 250")
                self.assertIn(b"12345678901", stamped)
                self.assertEqual(stamped[:3], data[:3])
                if kind == "pdf":
                    self.assertTrue(stamped.startswith(data))
                else:
                    self.assertEqual(opened(stamped).tobytes(), opened(data).tobytes())

    def test_wrong_kind(self) -> None:
        """Bytes of another kind are refused."""
        with self.assertRaises(ValueError):
            stampable("png", SAMPLES["jpg"].read_bytes())
