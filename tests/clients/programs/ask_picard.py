"""Picard: the program itself, without a screen, loads the release and downloads its cover."""

import os
import subprocess
import sys
import time
from pathlib import Path

from told import Task

task = Task()
home = Path(task.folder)
temporary = home / "tmp"
temporary.mkdir()
(home / "picard.ini").write_text("[setting]\ncheck_for_updates=false\nshow_new_user_dialog=false\n")
options = ("--stand-alone-instance", "--no-restore", "--no-plugins", "--debug")
log = home / "log"
picard = subprocess.Popen(
    [
        str(Path(sys.executable).with_name("picard")),
        *(*options, "--config-file", str(home / "picard.ini")),
        *("-e", "LOAD", f"mbid://release/{task.release}"),
    ],
    env={**os.environ, "XDG_RUNTIME_DIR": str(home), "TMPDIR": str(temporary)},
    stdout=log.open("wb"),
    stderr=subprocess.STDOUT,
)
deadline = time.monotonic() + 40
# What it logs when a cover is stored, in a temporary file that lasts as long as the program.
while time.monotonic() < deadline and "Image processing for" not in log.read_text():
    time.sleep(0.2)
covers = [path.read_bytes() for path in temporary.glob("picard*.jpg")]
picard.terminate()
try:
    picard.wait(20)
except subprocess.TimeoutExpired:
    picard.kill()
for line in log.read_text().splitlines():
    if "CAA" in line or "Downloading" in line:
        print(line)
task.that("covers downloaded", len(covers) == 1, len(covers))
for cover in covers:
    # Its setting for the size says 500 unless the user changes it.
    task.same("the cover", cover, "front-500")
if not covers:
    print(log.read_text()[-5000:])
task.end()
