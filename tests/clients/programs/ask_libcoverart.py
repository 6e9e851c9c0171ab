"""libcoverart (Debian), by its C interface, as goobox and others use it: listing, front, an image by id."""

import ctypes

from told import Task

task = Task()
library = ctypes.CDLL("libcoverart.so.1")
library.caa_coverart_new.restype = ctypes.c_void_p
for name in ("releaseinfo", "fetch_front"):
    call = getattr(library, f"caa_coverart_{name}")
    call.restype, call.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
library.caa_coverart_fetch_image.restype = ctypes.c_void_p
library.caa_coverart_fetch_image.argtypes = (
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_int,
)
library.caa_coverart_get_lasthttpcode.argtypes = (ctypes.c_void_p,)
library.caa_imagedata_size.argtypes = (ctypes.c_void_p,)
library.caa_imagedata_data.argtypes = (ctypes.c_void_p,)
library.caa_imagedata_data.restype = ctypes.c_void_p
client = library.caa_coverart_new(b"coverart-clients-1")


def data(image):
    if not image:
        return b""
    return ctypes.string_at(library.caa_imagedata_data(image), library.caa_imagedata_size(image))


release, image = task.release.encode(), task.image.encode()
task.that("releaseinfo", bool(library.caa_coverart_releaseinfo(client, release)))
task.same("fetch_front", data(library.caa_coverart_fetch_front(client, release)), "front")
task.same(
    "fetch_image 500",
    data(library.caa_coverart_fetch_image(client, release, image, 500)),
    "front-500",
)
none = library.caa_coverart_fetch_front(client, task.absent.encode())
code = library.caa_coverart_get_lasthttpcode(client)
task.that("no art", not none and code == 404, code)
task.end()
