"""The fault matrix's own rules: what is not so is told, and no column stays empty."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.stories.faults.matrix import COLUMNS, HELD, Broken, Claims, Outcome, Row, render


async def _play(_: object) -> None:
    """Never called here."""


ROW = Row(group="disk", name="full", play=_play)


def full() -> Claims:
    """A claim in each column."""
    claims = Claims()
    for column in COLUMNS:
        claims.claim(column, f"as {column} should", True)
    return claims


class ClaimsTests(SynchronousTestCase):
    """Claims are checked when they are made."""

    def test_not_so(self) -> None:
        """A claim that is not true ends the row with what was seen in its place."""
        with self.assertRaises(Broken) as raised:
            Claims().claim("client", "503", False, "200 HIT", of="thumbnail")
        said = str(raised.exception)
        for words in ("client", "503", "thumbnail", "200 HIT"):
            self.assertIn(words, said)

    def test_empty_column(self) -> None:
        """A row that says nothing in a column is broken."""
        claims = full()
        claims.check_full()
        del claims.made["log"]
        self.assertRaisesRegex(Broken, "log", claims.check_full)

    def test_cell(self) -> None:
        """What holds of all is said once; what differs, with what it is said of."""
        claims = Claims()
        claims.claim("client", "503", True, of="thumbnail")
        claims.claim("client", "503", True, of="listing")
        self.assertEqual(claims.cell("client"), "503")
        claims.claim("client", "cut", True, of="large")
        self.assertEqual(claims.cell("client"), "listing, thumbnail: 503; large: cut")


class TableTests(SynchronousTestCase):
    """The table as it is printed."""

    def test_verdicts(self) -> None:
        """Held, broken and not made here are told apart, and counted."""
        table = render(
            ("disk", "nginx"),
            (
                Outcome(row=ROW, claims=full()),
                Outcome(row=ROW, claims=Claims(), broken="client: not 503 | 200"),
                Outcome(row=ROW, claims=Claims(), not_here="mount: not permitted"),
            ),
        )
        lines = table.splitlines()
        self.assertTrue(any(line.endswith(f"| {HELD} |") for line in lines))
        self.assertIn("BROKEN: client: not 503 / 200 |", table)
        self.assertIn("NOT MADE HERE: mount: not permitted |", table)
        self.assertEqual(lines[-1], "1 rows held, 1 BROKEN, 1 NOT MADE HERE")
        self.assertIn("no rows", table)
        self.assertEqual({line.count("|") for line in lines if line.startswith("|")}, {9})
