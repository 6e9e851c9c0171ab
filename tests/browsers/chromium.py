"""A Chromium without a window, spoken to over a pipe (the Chrome DevTools Protocol, NUL between messages)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.programs import NotInstalled

PATIENCE_S = 30.0
PDF_VIEWER = "chrome-extension://mhjfbmdgcfjbbpaeojofohoefgiehjai/"
"""Where the browser's own viewer of PDFs lives."""
_AS_3_AND_4 = """
import os, sys
from fcntl import F_DUPFD, fcntl
reads, writes = [fcntl(int(each), F_DUPFD, 10) for each in sys.argv[1:3]]
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads 3 and writes 4."""


def find_chromium() -> str:
    """:raises NotInstalled: there is none."""
    for name in (os.environ.get("CHROMIUM", "chromium"), "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    raise NotInstalled("chromium, or another by the variable CHROMIUM")


class Chromium:
    """The browser; its calls block."""

    def __init__(self, folder: Path) -> None:
        """:param folder: its profile and what it writes to standard error."""
        theirs, to_it = os.pipe()
        from_it, ours = os.pipe()
        folder.mkdir()
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _AS_3_AND_4,
                    str(theirs),
                    str(ours),
                    find_chromium(),
                    "--headless=new",
                    "--remote-debugging-pipe",
                    f"--user-data-dir={folder / 'profile'}",
                    "--no-first-run",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--disable-background-networking",
                    # Its own sandbox, which root can't have.
                    *(["--no-sandbox"] if os.geteuid() == 0 else []),
                    "about:blank",
                ],
                pass_fds=(theirs, ours),
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        os.close(theirs)
        os.close(ours)
        self._to_it = to_it
        self._from_it = from_it
        self._number = 0
        self._replies: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self._came = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        pending = b""
        while data := os.read(self._from_it, 65_536):
            *messages, pending = (pending + data).split(b"\0")
            with self._came:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._replies[message["id"]] = message
                    else:
                        self.events.append(message)
                self._came.notify_all()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method. :raises RuntimeError: it failed, or never answered."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to_it, json.dumps(message).encode() + b"\0")
        with self._came:
            if not self._came.wait_for(lambda: number in self._replies, PATIENCE_S):
                raise RuntimeError(f"{method}: no answer in {PATIENCE_S:g} s")
            reply = self._replies.pop(number)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    def open(self, url: str) -> Page:
        """A page of its own; what earlier ones were sent is not kept for it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, target)
        page.forget()
        page.go(url)
        return page

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


class Page:
    """One page, what it does, and what the browser says of it and all that it embeds."""

    def __init__(self, browser: Chromium, target: str) -> None:
        self._browser = browser
        self._target = target
        self._sessions = [self._attach(target)]
        self._attached = {target}

    def go(self, url: str) -> None:
        """Open that URL, and wait until the page is there."""
        self._browser.call("Page.navigate", self._sessions[0], url=url)
        self.until(lambda: self.does("document.readyState") == "complete", url)

    def forget(self) -> None:
        """Have the browser ask anew for all that it was sent."""
        self._browser.call("Network.clearBrowserCache", self._sessions[0])

    def does(self, expression: str, session: str | None = None) -> Any:
        """What an expression comes to, a Promise its value. :raises RuntimeError: it throws."""
        came = self._browser.call(
            "Runtime.evaluate",
            session or self._sessions[0],
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in came:
            said = came["exceptionDetails"]
            raise RuntimeError(said.get("exception", {}).get("description", said["text"]))
        return came["result"].get("value")

    def pages_of_pdf(self) -> int:
        """How many pages the PDF has that the browser shows in this page; 0 if it shows none."""
        found = 0
        for target in self._browser.call("Target.getTargets", filter=[{}])["targetInfos"]:
            if target["type"] != "iframe":
                continue
            if target["targetId"] not in self._attached:
                self._attached.add(target["targetId"])
                self._sessions.append(self._attach(target["targetId"]))
            if target["url"].startswith(PDF_VIEWER):
                session = self._attach(target["targetId"])
                found += self.does(
                    "document.querySelector('pdf-viewer')?.documentDimensions"
                    "?.pageDimensions.length ?? 0",
                    session,
                )
                self._browser.call("Target.detachFromTarget", sessionId=session)
        return found

    def until(self, is_so: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> None:
        """Look now and then until something is so. :raises RuntimeError: it never is."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                raise RuntimeError(f"never: {what}")
            time.sleep(0.05)

    def console(self) -> list[str]:
        """All that the browser told so far: of the network, of policies, by scripts."""
        told = []
        for event in self._browser.events:
            if event.get("sessionId") not in self._sessions:
                continue
            of = event["params"]
            if event["method"] == "Log.entryAdded":
                entry = of["entry"]
                told.append(f"{entry['level']}: {entry['text'].strip()} {entry.get('url', '')}")
            elif event["method"] == "Runtime.consoleAPICalled":
                words = [str(word.get("value", word.get("description"))) for word in of["args"]]
                told.append(f"{of['type']}: {' '.join(words)}")
            elif event["method"] == "Runtime.exceptionThrown":
                told.append(f"error: {of['exceptionDetails']['text']}")
        return told

    def has_dialog(self) -> bool:
        """Say whether a script opened a dialog."""
        return any(e["method"] == "Page.javascriptDialogOpening" for e in self._browser.events)

    def dialogs(self) -> list[str]:
        """What was said in dialogs that a script opened; each is closed."""
        told = []
        for event in list(self._browser.events):
            if event["method"] == "Page.javascriptDialogOpening":
                told.append(event["params"]["message"])
                self._browser.events.remove(event)
                self._browser.call("Page.handleJavaScriptDialog", event["sessionId"], accept=True)
        return told

    def close(self) -> None:
        """Close it."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _attach(self, target: str) -> str:
        session: str = self._browser.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Log", "Runtime"):
            self._browser.call(f"{domain}.enable", session)
        return session
