"""
What reads words from outside, with one piece of them repeated very often.

`python -m tests.support.pumped` goes through every target of targets.py, every pattern of the
package and every pattern of nginx.conf. Work that grows with the length of what is read ends in
seconds; work that grows with its square would take hours. So whoever starts this needs no watch,
only a limit of processor time (RLIMIT_CPU): the last line says what was under way at its end.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverart
from tests.support.targets import SEEDS, TARGETS

TIMES = 100_000
"""The square is 10^10 steps: half a minute or more, for each single try."""
PUMPS = (*" \t0a-./_,;:=\"'*[{%@\n", "0-", "a.", "/a", '",', "W/", " ,", "\\u", "-0,")
NGINX = Path(coverart.__file__).parent.parent / "nginx" / "nginx.conf"


def patterns() -> Iterator[tuple[str, Callable[[Any], object]]]:
    """Every pattern that a module of the package holds, and those of nginx.conf, as they are used."""
    for module in pkgutil.walk_packages(coverart.__path__, "coverart."):
        if module.name.startswith("coverart.simulator"):
            continue
        for name, held in vars(importlib.import_module(module.name)).items():
            for each in held.values() if isinstance(held, dict) else (held,):
                if isinstance(each, re.Pattern):
                    yield f"{module.name}.{name}", each.fullmatch
                elif isinstance(getattr(each, "__self__", None), re.Pattern):
                    yield f"{module.name}.{name}", each
    for text in re.findall(r'^\s*"~\*?(.+?)"(?: |$)', NGINX.read_text(), re.MULTILINE):
        filled = re.sub("@[A-Z_]+@", "front|back|[1-9][0-9]{0,17}", text)
        yield f"nginx.conf: {text}", re.compile(filled.replace("(?<", "(?P<")).search


def hostile(seeds: tuple[bytes, ...]) -> Iterator[bytes]:
    """Each seed, up to each place where another kind of byte begins, then a piece many times."""
    for seed in seeds:
        kinds = [(byte < 48) + 2 * (byte > 57) for byte in seed]
        turns = [at for at in range(1, len(seed)) if kinds[at] != kinds[at - 1]]
        # The first few of each kind of place: an MBID has many that are alike.
        for at in (0, *turns[:9], *turns[-4:], len(seed)):
            for pump in PUMPS:
                yield seed[:at] + pump.encode() * (TIMES // len(pump)) + b"x" + seed[at:]


def tries() -> Iterator[tuple[str, Callable[[bytes], object], tuple[bytes, ...]]]:
    """What is tried, by name, and its seeds."""
    for name, target in TARGETS.items():
        yield name, target, SEEDS[name]
    texts = tuple(itertools.chain(*SEEDS.values()))
    short = tuple(seed for text in texts for seed in text.split(b"\n") if seed)[:9]
    requests = (*(seed + b" GET" for seed in SEEDS["path"]), b"10.1.2.3 10.1.2.3 ", b"1 0 /")
    for name, used in patterns():
        binary = isinstance(getattr(used, "__self__").pattern, bytes)  # noqa: B009
        seeds = requests if name.startswith("nginx") else short
        yield name, used if binary else _decoded(used), seeds


def _decoded(used: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: used(data.decode("latin-1"))


def main() -> None:
    """Go through all of it."""
    for name, target, seeds in tries():
        print(name, flush=True)
        for data in hostile(seeds):
            target(data)
    print("done")


if __name__ == "__main__":
    main()
