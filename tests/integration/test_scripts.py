"""test.sh and validate.sh against a proxy behind the shipped nginx, and against none."""

from __future__ import annotations

import os
import subprocess

import pytest_twisted
from twisted.internet.threads import deferToThread

from coverart.simulator.faults import Rule, Status
from tests.support.running import ROOT, free_port
from tests.support.talk import LOCAL


async def said(script: str, url: str, **variables: str) -> tuple[int, str]:
    """The exit code of a script, and what it printed."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / script), url],
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    done = await deferToThread(run)
    return done.returncode, done.stdout + done.stderr


def names(sim) -> dict[str, str]:
    """A release and a group that the simulated archive has."""
    return {
        "RELEASE": sim.catalogue.release(0).mbid,
        "GROUP": sim.catalogue.release_group(0).mbid,
    }


@pytest_twisted.ensureDeferred
async def test_all_is_well(sim, run, nginx) -> None:
    """Behind nginx and without it, every check passes, and the load is stood."""
    front = await nginx(await run(COVER_ART_ACCEL="/cache-files/"))
    alone = await run("alone")
    for url in (front.url, alone.url):
        code, text = await said("test.sh", url, **names(sim))
        assert code == 0, text
        assert "FAIL" not in text
        code, text = await said(
            "validate.sh", url, REQUESTS="60", MOST_P99_MS="60000", **names(sim)
        )
        assert code == 0, text
        assert text.endswith("PASS\n")


@pytest_twisted.ensureDeferred
async def test_all_is_well_by_redirects(sim, run, nginx) -> None:
    """Where a front is answered by a redirect to its image, all this is so too."""
    mode = {"COVER_ART_IMAGE_MODE": "redirect"}
    front = await nginx(await run(COVER_ART_ACCEL="/cache-files/", **mode), **mode)
    alone = await run("alone", **mode)
    for url in (front.url, alone.url):
        code, text = await said("test.sh", url, **names(sim))
        assert code == 0, text
        code, text = await said(
            "validate.sh", url, REQUESTS="60", MOST_P99_MS="60000", **names(sim)
        )
        assert code == 0, text


@pytest_twisted.ensureDeferred
async def test_something_is_wrong(sim, run) -> None:
    """An archive in trouble fails the check, too little speed the load; no proxy at all is a 2."""
    proxy = await run()
    code, text = await said("validate.sh", proxy.url, REQUESTS="60", MOST_P99_MS="0", **names(sim))
    assert code == 1, text
    assert "FAIL: too slow" in text
    sim.faults.add(Rule(hop="*", does=Status(code=503)))
    other = {"RELEASE": sim.catalogue.release(1).mbid, "GROUP": names(sim)["GROUP"]}
    code, text = await said("test.sh", proxy.url, **other)
    assert code == 1, text
    assert "FAIL  a thumbnail comes: expected 200, got 503" in text
    code, text = await said("validate.sh", proxy.url, **other)
    assert code == 2, text
    nobody = f"http://{LOCAL}:{free_port()}"
    assert (await said("test.sh", nobody))[0] == 2
    assert (await said("validate.sh", nobody))[0] == 2
