"""Quod Libet (Debian): its cover plugin for MusicBrainz, as the player loads it."""

from pathlib import Path

import quodlibet

quodlibet.init_cli()
import gi

# What the player asks for as it starts with a window.
for module, version in (("Gtk", "3.0"), ("Soup", "2.4"), ("PangoCairo", "1.0")):
    gi.require_version(module, version)
from gi.repository import Gio, GLib
from quodlibet.ext.covers.musicbrainz import MusicBrainzCover
from quodlibet.formats import AudioFile
from quodlibet.plugins.cover import cover_dir
from told import Task

task = Task()
Path(cover_dir).mkdir(parents=True, exist_ok=True)


def fetch(mbid):
    loop, told = GLib.MainLoop(), []
    song = AudioFile({"~filename": "/music/1.mp3", "musicbrainz_albumid": mbid})
    plugin = MusicBrainzCover(song, Gio.Cancellable())
    for signal in ("fetch-success", "fetch-failure"):
        plugin.connect(
            signal, lambda _, what, signal=signal: (told.append((signal, what)), loop.quit())
        )
    plugin.fetch_cover()
    GLib.timeout_add_seconds(20, loop.quit)
    loop.run()
    return told[0] if told else ("nothing in 20 s", None), Path(plugin.cover_path)


(signal, _), path = fetch(task.release)
task.that("fetch_cover", signal == "fetch-success", signal)
if path.exists():
    task.same("the stored cover", path.read_bytes(), "front")
(signal, why), path = fetch(task.absent)
task.that("no art", signal == "fetch-failure" and not path.exists(), f"{signal}: {why}")
task.end()
