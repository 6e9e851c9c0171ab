"""The disk: full, read-only, not permitted, gone and back; no file descriptors left."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
from pathlib import Path
from typing import Any

from coverart.store.image_store import ImageStore
from coverart.store.symlinks import Links
from tests.stories.faults.matrix import Row
from tests.stories.faults.stage import Stage
from tests.support.disk import fill_up
from tests.support.programs import run_command
from tests.support.talk import connect, start, until, within

CANT = r"the cache can't store files now; try again in \d+ s"
MEGABYTE = 1 << 20


# Doubled: the store's calls to the system fail as told


class Failing:
    """Makes calls of a part fail with one error until mended."""

    def __init__(self, part: ImageStore | Links, code: int) -> None:
        self._part: Any = part
        self._error = OSError(code, os.strerror(code))
        self._changed: list[str] = []

    def whenever(self, name: str, *, after: int = 0) -> None:
        """
        Make a call fail.

        :param after: so many times it still works, the first half of the data is written then.
        """
        real = getattr(self._part, name)
        calls = []

        def fail(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) <= after:
                return real(*args, **kwargs)
            if name == "append":
                temporary, data = args
                real(temporary, data[: len(data) // 2])
            raise self._error

        setattr(self._part, name, fail)
        self._changed.append(name)

    def mend(self) -> None:
        for name in self._changed:
            delattr(self._part, name)
        self._changed.clear()


async def doubled(stage: Stage, *, code: int, call: str) -> None:
    """One call of the system fails, for all that is stored; what is held is served."""
    proxy = await stage.proxy()
    held = stage.thumbnail(3)
    await stage.ask(proxy.port, held.path)
    await proxy.settled()
    before = proxy.files()
    failing = Failing(proxy.cache.store, code)
    failing.whenever(call)
    things = [stage.thumbnail(), stage.listing(), stage.large()]
    for thing in things:
        seen = await stage.ask(proxy.port, thing.path)
        await proxy.settled()
        early = thing.name == "large original" and call == "put_in_place"
        if early or thing is things[0]:
            # It was sent before the disk said no.
            stage.whole(seen, thing, "MISS", of=thing.name)
        else:
            stage.unstored(seen, thing, errno.errorcode[code], of=thing.name)
        stage.at_once(seen)
    asked = stage.sim.counts.requests("node")
    stage.claim("client", "each fetched once", asked == 1 + len(things), f"{asked} requests")
    said = os.strerror(code)
    told = [line for line in stage.log.about(os.fspath(proxy.root)) if "are not stored" in line]
    stage.claim("log", f"one line: … {said}", len(told) == 1 and said in told[0], told)
    stage.whole(await stage.ask(proxy.port, held.path), held, "HIT", of="held")
    await until(lambda: not proxy.unfinished(), "temporary files are removed")
    stage.claim("disk", "nothing new, finished or not", proxy.files() == before, proxy.files())
    await stage.exact(proxy)
    failing.mend()
    for thing in things:
        stage.whole(await stage.ask(proxy.port, thing.path), thing, "MISS", "after", of="")
    await proxy.settled()
    await stage.exact(proxy, "after")


async def no_link(stage: Stage) -> None:
    """The image can be stored, its name can't be linked."""
    proxy = await stage.proxy()
    failing = Failing(proxy.cache.store.links, errno.ENOSPC)
    failing.whenever("make")
    thing = stage.thumbnail()
    seen = await stage.ask(proxy.port, thing.path)
    stage.whole(seen, thing, "MISS", of="")
    stage.at_once(seen)
    await proxy.settled()
    stage.claim("disk", "the image, no link", (len(proxy.files()), proxy.links()) == (1, []))
    await stage.exact(proxy)
    stage.logged(f"can't link .*{os.strerror(errno.ENOSPC)}", thing.path, text="can't link …")
    failing.mend()
    stage.whole(await stage.ask(proxy.port, thing.path), thing, "HIT", "after", of="")


# Real


def small_disk(stage: Stage, size_bytes: int) -> Path:
    """A file system of so many bytes, to be the cache directory."""
    root = stage.folder / "cache"
    root.mkdir()
    run_command("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", os.fspath(root))
    # Lazily: a row that ended early may have left something open on it.
    stage.at_the_end(lambda: run_command("umount", "-l", os.fspath(root)))
    return root


async def full(stage: Stage) -> None:
    """A file system that is full: first a large image finds no room, then nothing does."""
    root = small_disk(stage, 2 * MEGABYTE)
    proxy = await stage.proxy()
    held, large, thing = stage.thumbnail(3), stage.large(), stage.thumbnail()
    await stage.ask(proxy.port, held.path)
    await proxy.settled()
    before = proxy.files()
    seen = await stage.ask(proxy.port, large.path)
    await proxy.settled()
    stage.unstored(seen, large, "disk-full", of="large")
    stage.at_once(seen)
    stage.logged("are not stored .* nearly full", os.fspath(root), text="covers are not stored")
    await until(lambda: not proxy.unfinished(), "temporary files are removed")
    filler = fill_up(root)
    seen = await stage.ask(proxy.port, thing.path)
    stage.unstored(seen, thing, "disk-full", of="thumbnail")
    stage.whole(await stage.ask(proxy.port, held.path), held, "HIT", of="held")
    await until(lambda: not proxy.unfinished(), "temporary files are removed")
    files = [name for name in proxy.files() if name != "filler"]
    stage.claim("disk", "nothing new, finished or not", files == before, files)
    filler.unlink()
    await stage.exact(proxy)
    stage.whole(await stage.ask(proxy.port, thing.path), thing, "MISS", "after", of="")
    await proxy.settled()
    await stage.exact(proxy, "after")


async def read_only(stage: Stage) -> None:
    """A file system that is remounted read-only, as after an error of the disk."""
    root = small_disk(stage, 8 * MEGABYTE)
    proxy = await stage.proxy()
    held, thing = stage.thumbnail(3), stage.thumbnail()
    await stage.ask(proxy.port, held.path)
    await proxy.settled()
    before = proxy.files()
    run_command("mount", "-o", "remount,ro", os.fspath(root))
    stage.unstored(await stage.ask(proxy.port, thing.path), thing, "EROFS", of="thumbnail")
    seen = await stage.ask(proxy.port, held.path)
    stage.whole(seen, held, "HIT", of="held")
    stage.at_once(seen)
    ready = (await proxy.get("/ready")).status
    stage.claim("client", "/ready: 503", ready == 503, ready)
    proxy.now.advance(2 * 86_400)
    stage.whole(await stage.ask(proxy.port, held.path), held, "STALE", of="aged")
    await proxy.settled()
    await proxy.cleanup.sweep()
    stage.claim("disk", "as before", proxy.files() == before, proxy.files())
    await stage.exact(proxy)
    said = os.strerror(errno.EROFS)
    stage.logged(f"are not stored .*{said}", os.fspath(root), text=said)
    run_command("mount", "-o", "remount,rw", os.fspath(root))
    stage.whole(await stage.ask(proxy.port, thing.path), thing, "MISS", "after", of="")
    await proxy.settled()
    await proxy.cleanup.sweep()
    await stage.exact(proxy, "after")


async def moved_away(stage: Stage, *, mounted: bool) -> None:
    """
    The cache directory goes while it is served, and comes back with all that was on it.

    :param mounted: it was a mount: an empty directory is in its place meanwhile.
    """
    proxy = await stage.proxy()
    things = [stage.thumbnail(n) for n in (0, 1, 3, 8)]
    for thing in things:
        await stage.ask(proxy.port, thing.path)
    await proxy.settled()
    away = stage.folder / "away"
    proxy.root.rename(away)
    if mounted:
        proxy.root.mkdir()
    await proxy.cleanup.sweep(slices=4096)
    lost = (await proxy.cache.index.totals()).files
    stage.claim("index", "forgets nothing for that", lost == len(things), f"{lost} files")
    stage.logged(f"{proxy.root}.* is gone", os.fspath(proxy.root), text="DIRECTORY is gone")
    seen = await stage.ask(proxy.port, things[0].path)
    stage.whole(seen, things[0], "MISS", of="")
    stage.at_once(seen)
    await proxy.settled()
    stage.claim("disk", "made anew, for what is asked for", len(proxy.files()) == 1)
    await proxy.cleanup.sweep(slices=4096)
    await stage.exact(proxy, "index")
    shutil.rmtree(proxy.root)
    away.rename(proxy.root)
    await proxy.cleanup.sweep()
    await stage.exact(proxy, "after")
    for thing in things:
        stage.whole(await stage.ask(proxy.port, thing.path), thing, "HIT", "after", of="")


async def not_permitted(stage: Stage) -> None:
    """The cache directory loses its permissions, first to write, then to read."""
    victim = await stage.victim({"as_anybody": True})
    held, thing = stage.thumbnail(3), stage.thumbnail()
    await stage.ask(victim.port, held.path)
    await until(victim.links, "it is stored and linked")
    before = victim.files()
    folders = [victim.root, *(Path(each) for each, _, _ in os.walk(victim.root))]

    def permit(mode: int) -> None:
        for folder in folders:
            folder.chmod(mode)

    stage.at_the_end(lambda: permit(0o755))
    permit(0o555)
    seen = await stage.ask(victim.port, thing.path)
    stage.unstored(seen, thing, "EACCES", of="thumbnail")
    stage.at_once(seen)
    stage.whole(await stage.ask(victim.port, held.path), held, "HIT", of="held")
    file = victim.root / before[0]
    file.chmod(0)
    seen = await stage.ask(victim.port, held.path)
    stage.refused(seen, 503, CANT, of="held, but unreadable")
    file.chmod(0o644)
    permit(0o755)
    stage.claim("disk", "as before", victim.files() == before, victim.files())
    said = victim.log.read_text()
    stage.claim("log", os.strerror(errno.EACCES), os.strerror(errno.EACCES) in said, said)
    stage.claim("log", "no traceback", "Traceback" not in said, said)
    stage.whole(await stage.ask(victim.port, held.path), held, "HIT", "after", of="")
    stage.whole(await stage.ask(victim.port, thing.path), thing, "MISS", "after", of="")
    await victim.exact(stage.claim)


async def unreadable(stage: Stage, *, code: int) -> None:
    """What is held can't be opened."""
    proxy = await stage.proxy()
    held = stage.thumbnail(3)
    await stage.ask(proxy.port, held.path)
    await proxy.settled()
    before = proxy.files()
    failing = Failing(proxy.cache.store, code)
    failing.whenever("open")
    seen = await stage.ask(proxy.port, held.path)
    stage.refused(seen, 503, CANT, of="")
    stage.at_once(seen)
    stage.claim("disk", "as before", proxy.files() == before, proxy.files())
    await stage.exact(proxy)
    said = os.strerror(code)
    mbid = held.path.split("/")[2]
    stage.logged(f"can't serve .*: {said}", mbid, text=f"can't serve FILE: {said}")
    failing.mend()
    stage.whole(await stage.ask(proxy.port, held.path), held, "HIT", "after", of="")


async def crowd(stage: Stage) -> None:
    """Clients would take all descriptors; those who are connected are answered meanwhile."""
    victim = await stage.victim({"nofile": 48})
    held, thing = stage.thumbnail(3), stage.thumbnail()
    await stage.ask(victim.port, held.path)
    asking = [await connect(victim.port) for _ in range(2)]
    # More than there are descriptors: the kernel holds those who are not accepted.
    others = [await connect(victim.port) for _ in range(60)]
    await until(lambda: "no more are accepted" in victim.log.read_text(), "it takes no more")
    stage.claim("log", "N connections are open; no more are accepted", True)
    for wire, wanted, how in ((asking[0], held, "HIT"), (asking[1], thing, "MISS")):
        seen = await stage.ask(victim.port, wanted.path, wire)
        stage.whole(seen, wanted, how, of="connected before")
        stage.at_once(seen, of="connected before")
    waiting = start(stage.ask(victim.port, held.path))
    for wire in others:
        wire.leave()
    stage.whole(await within(waiting), held, "HIT", of="those who wait, when others left")
    await until(lambda: len(victim.links()) == 2, "it is stored and linked")
    whole = len(victim.files()) == 2 and not victim.unfinished()
    stage.claim("disk", "the whole files", whole, victim.files())
    said = victim.log.read_text()
    stage.claim("log", "no traceback, no EMFILE", not re.search("Traceback|EMFILE", said), said)
    stage.whole(await stage.ask(victim.port, thing.path), thing, "HIT", "after", of="")
    await victim.exact(stage.claim)


CALLS = {
    "begin": "making a file",
    "append": "writing",
    "put_in_place": "renaming",
}
ROWS: tuple[Row, ...] = (
    *(
        Row(
            group="disk",
            name=f"{what}, {words} (doubled)",
            play=functools.partial(doubled, code=code, call=call),
        )
        for what, code in (("full", errno.ENOSPC), ("failing", errno.EIO))
        for call, words in CALLS.items()
    ),
    Row(
        group="disk",
        name="read-only (doubled)",
        play=functools.partial(doubled, code=errno.EROFS, call="begin"),
    ),
    Row(group="disk", name="full, linking (doubled)", play=no_link),
    Row(group="disk", name="full (a tmpfs)", play=full),
    Row(group="disk", name="read-only (a tmpfs)", play=read_only),
    Row(
        group="disk",
        name="the directory is moved away",
        play=functools.partial(moved_away, mounted=False),
    ),
    Row(
        group="disk",
        name="the directory is unmounted",
        play=functools.partial(moved_away, mounted=True),
    ),
    Row(group="disk", name="permissions are lost", play=not_permitted),
    *(
        Row(group="disk", name=f"{what} (doubled)", play=functools.partial(unreadable, code=code))
        for what, code in (
            ("what is held can't be opened, EIO", errno.EIO),
            ("no descriptor to open what is held", errno.EMFILE),
        )
    ),
    Row(
        group="disk",
        name="no descriptor to make a file (doubled)",
        play=functools.partial(doubled, code=errno.EMFILE, call="begin"),
    ),
    Row(group="disk", name="clients at the limit of descriptors", play=crowd),
)
