"""What a program is told (a JSON file that CLIENT_TASK names), and how it says what it saw."""

import hashlib
import json
import os
import sys


class Task:
    def __init__(self):
        with open(os.environ["CLIENT_TASK"]) as file:
            told = json.load(file)
        self.base = told["base"]
        self.folder = told["folder"]
        self.release = told["release"]
        self.group = told["group"]
        self.absent = told["absent"]
        self.image = told["image"]
        self.recording = told["recording"]
        self._sha256 = told["sha256"]
        self._wrong = 0

    def same(self, what, body, name):
        """Say whether these are the archive's bytes of an image."""
        right = hashlib.sha256(body).hexdigest() == self._sha256[name]
        self.that(what, right, f"{len(body)} bytes" + ("" if right else ", NOT the archive's"))

    def that(self, what, right, saw=""):
        print(f"{'ok' if right else 'WRONG'}: {what}: {saw}", flush=True)
        self._wrong += not right

    def end(self):
        sys.exit(1 if self._wrong else 0)
