"""The locked list of what the container image installs, held against what setup.cfg asks for."""

import configparser
import re
import tomllib
from importlib import metadata
from pathlib import Path

from attrs import frozen
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "docker" / "requirements.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ADVISORIES = ROOT / "tests" / "data" / "advisories.toml"
REFRESH = "; make docker/requirements.txt anew: the command is in its first lines"


def requirements(rows: str) -> list[Requirement]:
    """What some rows of setup.cfg ask for."""
    return [Requirement(row) for row in rows.splitlines() if row and not row.startswith("#")]


def asked_for() -> list[Requirement]:
    """What setup.cfg wants in the image: the proxy itself and hiredis."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = parser["options.extras_require"]
    return requirements(parser["options"]["install_requires"] + "\n" + extras["redis"])


def named() -> list[Requirement]:
    """Every requirement by name: of the proxy, of each extra, and of building it."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    every = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    # A row for Pythons that coverart does not run on builds nothing: it ends in a refusal.
    return [
        each
        for each in requirements("\n".join([*every, *build]))
        if each.marker is None or str(each.marker) != 'python_version < "3.11"'
    ]


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """What is locked: each requirement with its hashes, by name."""
    text = LOCK.read_text().replace("\\\n", " ")
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line.partition(" --hash=")[0])
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is locked twice"
            found[name] = requirement, re.findall(r"--hash=(\S+)", line)
    return found


def version_of(pin: Requirement) -> Version:
    """The one version that a pin allows."""
    (only,) = pin.specifier
    assert only.operator == "==", f"{pin} allows more than one version"
    return Version(only.version)


def lowest(requirement: Requirement) -> Version | None:
    """The lowest version that a requirement lets in, if it says so."""
    bounds = [one for one in requirement.specifier if one.operator in {">=", "==", "~="}]
    return max((Version(one.version) for one in bounds), default=None)


@frozen
class Advisory:
    """A known vulnerability of a package, as tests/data/advisories.toml has it."""

    package: str
    name: str
    fixed: Version
    what: str
    page: str

    def __str__(self) -> str:
        return f"{self.name}, {self.what}; fixed in {self.fixed}"


def advisories() -> list[Advisory]:
    """What is known, in the file's order."""
    return [
        Advisory(package, name, Version(said.pop("fixed")), **said)
        for package, known in tomllib.loads(ADVISORIES.read_text()).items()
        for name, said in known.items()
    ]


def on_linux(python: str, extra: str = "") -> dict[str, str]:
    """Where a marker is asked: CPython of that version in the image."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "extra": extra,
    }


class LockTests(SynchronousTestCase):
    """docker/requirements.txt."""

    def test_what_is_asked_for_is_locked_within_its_bounds(self) -> None:
        """Every requirement of setup.cfg has a pin that it allows, on every Python."""
        pins = locked()
        for requirement in asked_for():
            name = canonicalize_name(requirement.name)
            self.assertIn(name, pins, f"{requirement} is not locked{REFRESH}")
            pin, _ = pins[name]
            self.assertIn(version_of(pin), requirement.specifier, f"{pin}{REFRESH}")
            for python in PYTHONS:
                self.assertTrue(pin.marker is None or pin.marker.evaluate(on_linux(python)), pin)

    def test_every_pin_has_hashes(self) -> None:
        """One version each, and SHA-256 alone vouches for its files."""
        for name, (pin, hashes) in locked().items():
            self.assertTrue(version_of(pin))
            self.assertGreater(len(hashes), 0, name)
            for one in hashes:
                self.assertRegex(one, r"\Asha256:[0-9a-f]{64}\Z")

    def test_nothing_but_packages_is_named(self) -> None:
        """No server, address, option or folder of the machine that made it: it installs anywhere."""
        head, _, rest = LOCK.read_text().partition("\nattrs==")
        self.assertIn("uv pip compile", head)
        for text in (head, rest):
            self.assertNotRegex(text, r"://| @ |/(home|tmp|root|opt)/")
        self.assertNotRegex(rest, r"(?m)^\s*--(?!hash=sha256:)")

    def test_what_the_locked_packages_ask_for_is_locked_too(self) -> None:
        """As `pip check` would say of the image, for those of its versions that are here."""
        pins = locked()
        looked_at = 0
        for name, (pin, _) in pins.items():
            try:
                here = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue
            if Version(here.version) != version_of(pin):
                continue
            looked_at += 1
            for python in PYTHONS:
                for row in here.requires or []:
                    wanted = Requirement(row)
                    if wanted.marker is None or wanted.marker.evaluate(on_linux(python)):
                        other = canonicalize_name(wanted.name)
                        self.assertIn(other, pins, f"{name} asks for {wanted}")
                        self.assertIn(version_of(pins[other][0]), wanted.specifier, name)
        self.assertGreater(looked_at, 0, f"no locked version is installed here{REFRESH}")


class AdvisoryTests(SynchronousTestCase):
    """tests/data/advisories.toml: the floor under the lock and under every lower bound."""

    def test_nothing_is_locked_that_is_known_to_be_vulnerable(self) -> None:
        """Each pin is the fixed version of all that is known of its package, or a later one."""
        pins = {name: pin for name, (pin, _) in locked().items()}
        known = [(pins[one.package], one) for one in advisories() if one.package in pins]
        wrong = [f"{pin}: {one}" for pin, one in known if version_of(pin) < one.fixed]
        self.assertEqual(wrong, [], "\n".join(wrong))
        self.assertGreater(len(known), 0)

    def test_no_lower_bound_lets_in_what_is_known_to_be_vulnerable(self) -> None:
        """Who installs with pip has no lock; for them what is named has a bound that is fixed."""
        known = [
            (requirement, one)
            for one in advisories()
            for requirement in named()
            if one.package == canonicalize_name(requirement.name)
        ]
        wrong = [
            f"{requirement}: {one}"
            for requirement, one in known
            if (bound := lowest(requirement)) is None or bound < one.fixed
        ]
        self.assertEqual(wrong, [], "\n".join(wrong))
        self.assertGreater(len(known), 0)

    def test_each_is_of_a_package_of_ours_and_says_where_it_is_from(self) -> None:
        """In order, under names that the lock or setup.cfg has, so that none is passed over."""
        ours = set(locked()) | {canonicalize_name(one.name) for one in named()}
        known = advisories()
        for one in known:
            self.assertIn(one.package, ours, f"{one}: nothing of that name is installed")
            self.assertTrue(one.what, one.name)
            self.assertRegex(one.page, r"\A(https://\S+|\S+: \S+ of [0-9.]+)\Z", one.name)
        order = [(one.package, one.fixed) for one in known]
        self.assertEqual(order, sorted(order))
