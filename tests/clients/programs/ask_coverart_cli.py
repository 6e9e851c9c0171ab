"""coverart-cli: its provider, as its command calls it; it asks musicbrainz.org for the group first."""

from coverart_cli.providers.musicbrainz import MusicBrainzProvider
from told import Task

task = Task()
found = MusicBrainzProvider().fetch("The Artist", "The Album")
task.that("found", found is not None, getattr(found, "image_url", ""))
if found is not None:
    # front-1000: no such size, so the archive sends the original.
    task.same("front-1000", found.image_bytes, "group")
task.end()
