"""beets: `beet fetchart` on a library with an album of the release, and one without art."""

import os
import subprocess
import sys
from pathlib import Path

from beets.library import Item, Library
from told import Task

task = Task()
home = Path(task.folder, "beets")
music = home / "music"
music.mkdir(parents=True)
config = home / "config.yaml"
config.write_text(
    f"directory: {music}\nlibrary: {home}/library.db\nplugins: [fetchart]\n"
    "fetchart:\n  sources: [coverart]\n"
)
library = Library(str(home / "library.db"), str(music))
for name, mbid in (("held", task.release), ("absent", task.absent)):
    (music / name).mkdir()
    track = music / name / "1.mp3"
    track.touch()
    item = Item(path=os.fsencode(track), album=name, albumartist="A", title="T", mb_albumid=mbid)
    library.add_album([item])
library._close()
done = subprocess.run(
    [str(Path(sys.executable).with_name("beet")), "-vv", "-c", str(config), "fetchart"],
    env={**os.environ, "BEETSDIR": str(home)},
    capture_output=True,
    text=True,
    check=False,
)
covers = sorted(str(path.relative_to(music)) for path in music.glob("*/cover.*"))
task.that("beet fetchart", done.returncode == 0, covers)
if covers:
    task.same(covers[0], (music / covers[0]).read_bytes(), "front")
task.that(
    "one album has a cover", covers == ["held/cover.jpg"], done.stderr[-600:] if not covers else ""
)
task.end()
