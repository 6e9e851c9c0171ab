"""Rhythmbox (Debian): its art search plugin; it asks musicbrainz.org for the release first."""

import sys

import gi

gi.require_version("Gtk", "3.0")
gi.require_version("RB", "3.0")
PLUGINS = "/usr/lib/x86_64-linux-gnu/rhythmbox/plugins"
sys.path[:0] = [f"{PLUGINS}/rb", f"{PLUGINS}/artsearch"]
from gi.repository import RB, GLib
from musicbrainz import MusicBrainzSearch
from told import Task

# Its module sends what is printed to the player's log.
sys.stdout = sys.__stdout__
task = Task()


class Store:
    def __init__(self):
        self.stored = []

    def store_raw(self, key, source, data):
        self.stored.append(data.get_data())


def search(mbid):
    loop, store = GLib.MainLoop(), Store()
    key = RB.ExtDBKey.create_lookup("album", "The Album")
    key.add_field("artist", "The Artist")
    key.add_info("musicbrainz-albumid", mbid)
    MusicBrainzSearch().search(key, 0, store, lambda *_: loop.quit())
    GLib.timeout_add_seconds(20, loop.quit)
    loop.run()
    return store.stored


found = search(task.release)
task.that("search", len(found) == 1, f"{len(found)} stored")
if found:
    task.same("the stored cover", found[0], "front")
task.that("no art", not search(task.absent), "nothing stored")
task.end()
