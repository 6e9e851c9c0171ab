"""What `python -m bench.walk` counts, of events, of MONITOR's lines and of strace's."""

from twisted.trial.unittest import SynchronousTestCase

from bench.walk_counts import (
    CALL,
    DEFERRED,
    HAND_OVER,
    LOOK_UP,
    RESUMED,
    SYMLINK,
    TIMER,
    Counts,
    Walked,
    count,
    middle,
    redis_commands,
    system_calls,
    table,
)

STRACE = """\
7 newfstatat(AT_FDCWD, "/bench/walk/1/begin", 0x7f, 0) = -1 ENOENT (No such file or directory)
7 read(3, "quiet", 8192) = 5
8 epoll_wait(4,  <unfinished ...>
9 futex(0x55, FUTEX_WAKE_PRIVATE, 1) = 1
8 <... epoll_wait resumed>[], 7, 10) = 0
9 fsync(18)                         = 0
8 mmap(NULL, 262144, PROT_READ, MAP_PRIVATE, -1, 0) = 0x7f
8 --- SIGCHLD {si_signo=SIGCHLD} ---
7 newfstatat(AT_FDCWD, "/bench/walk/1/end", 0x7f, 0) = -1 ENOENT (No such file or directory)
8 write(1, "x", 1) = 1
"""


class CountTests(SynchronousTestCase):
    """From what was recorded to figures."""

    def test_calls_and_modules(self) -> None:
        """Calls change module within a thread only; what goes on after an await is no new call."""
        events = [
            (1, CALL, "web", "get"),
            (1, CALL, "cache", "get"),
            (2, CALL, "store", "write"),
            (1, CALL, "cache", "look"),
            (2, CALL, "store", "rename"),
            (1, RESUMED, "web", "get"),
            (1, CALL, "web", "send"),
        ]
        counts = count(events, redis=0, system_calls=None)
        self.assertEqual((counts.calls, counts.modules, counts.changes), (6, 3, 2))

    def test_the_rest(self) -> None:
        """Every other kind is counted by itself and is no call."""
        events = [
            (1, kind, "", "")
            for kind, times in (
                (LOOK_UP, 1),
                (TIMER, 2),
                (DEFERRED, 3),
                (HAND_OVER, 4),
                (SYMLINK, 5),
            )
            for _ in range(times)
        ]
        self.assertEqual(
            count(events, redis=6, system_calls=7),
            Counts(
                look_ups=1,
                timers=2,
                deferreds=3,
                hand_overs=4,
                symlinks=5,
                redis=6,
                system_calls=7,
            ),
        )

    def test_middle(self) -> None:
        """The round with the median of calls, whole; of an even number the lower one."""
        rounds = [Counts(calls=calls, timers=timers) for calls, timers in ((9, 1), (5, 2), (6, 3))]
        self.assertEqual(middle(rounds), rounds[2])
        self.assertEqual(middle(rounds[:2]), rounds[1])


class RedisTests(SynchronousTestCase):
    """From MONITOR's lines to commands."""

    def test_scripts_are_one(self) -> None:
        """What a script does inside the server is not sent by anyone."""
        lines = [
            '+1795543289.790544 [0 unix:/tmp/a b.sock] "evalsha" "0a" "0" "k\\" ]"\n',
            '+1795543289.790545 [0 lua] "HSET" "k" "v"\n',
            '+1795543289.790546 [3 127.0.0.1:5000] "GET" "[0 lua] \\"x\\""\n',
            "+OK\n",
        ]
        self.assertEqual(redis_commands(lines), ["EVALSHA", "GET"])


class SystemCallTests(SynchronousTestCase):
    """From strace's lines to a number."""

    def test_between_marks(self) -> None:
        """Once each, without locks, memory, signals, and the thread that controls the walk."""
        lines = STRACE.splitlines(keepends=True)
        self.assertEqual(system_calls(lines, "/walk/1/begin", "/walk/1/end", 7), 2)

    def test_not_there_yet(self) -> None:
        """Without the second mark there is no number, not a smaller one."""
        lines = STRACE.splitlines(keepends=True)[:-2]
        self.assertIsNone(system_calls(lines, "/walk/1/begin", "/walk/1/end", 7))


class TableTests(SynchronousTestCase):
    """Figures beside their budgets."""

    def test_over(self) -> None:
        """What is over its budget is named; the budget itself is within."""
        row = Walked(
            kind="miss", counts=Counts(calls=251, timers=6), budget={"calls": 250, "timers": 6}
        )
        self.assertEqual(row.over, ["calls"])
        told = table([row, Walked(kind="purge", counts=Counts(), budget={})])
        self.assertIn("251 of 250", told)
        self.assertIn("6 of 6", told)
        self.assertIn("n/a", told)
        self.assertTrue(told.splitlines()[2].endswith(" calls"))
        self.assertTrue(told.splitlines()[3].endswith(" -"))
