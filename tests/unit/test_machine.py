"""The cache with the index in memory, at hand or far away, whatever happens in whatever order."""

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from coverart.model import Entity, ImageRequest
from tests.machine import LISTINGS, A, CacheMachine, name


class MachineTests(SynchronousTestCase):
    """tests/machine.py over MemoryIndex."""

    def test_every_promise_holds(self) -> None:
        """Right bytes, exact totals, nothing left over: see the machine's own checks."""
        run_state_machine_as_test(
            CacheMachine,
            settings=settings(
                max_examples=30,
                stateful_step_count=40,
                # The same stories each time; `python -m bench.machine` tells new ones.
                derandomize=True,
                database=None,
                # A shortest story takes minutes to find: that is the command's business.
                phases=[Phase.generate],
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


class FoundByTheMachineTests(SynchronousTestCase):
    """What went wrong once, step by step; the machine checks each answer."""

    def machine(self, *, far: bool = False) -> CacheMachine:
        """One that has begun."""
        machine = CacheMachine()
        self.addCleanup(machine.teardown)
        machine.begin(far)
        return machine

    def test_a_shrunken_image_is_not_served_by_a_new_name(self) -> None:
        """An image known by its id was cut short on the disk; its front, never asked for, is whole."""
        machine = self.machine()
        machine.ask(image(1), at_end=True)
        os.truncate(machine.root / machine._names()[0], 100)
        machine.ask(image("front"), at_end=True)

    def test_a_file_found_short_is_not_lost_again_once_it_is_whole(self) -> None:
        """Two who find a listing cut short at once: the slower one leaves the other's new file."""
        machine = self.machine(far=True)
        listing = LISTINGS[0]
        machine.ask(listing, at_end=True)
        os.truncate(machine.root / machine._names()[0], 0)
        machine.refresh(listing)
        machine.ask(listing, at_end=True)

    def test_an_evicted_file_that_was_cut_short_is_not_found_again(self) -> None:
        """Eviction leaves what was stored since, not what is left of a file that shrank."""
        machine = self.machine()
        machine.ask(image(1), at_end=True)
        os.truncate(machine.root / machine._names()[0], 100)
        machine.sweep(0)
        machine._drain()
        machine.ask(image(1), at_end=True)


def image(of: int | str, size: int = 250) -> ImageRequest:
    """An image of the first release."""
    return ImageRequest(alias=name(Entity.RELEASE, A, of), size=size)
