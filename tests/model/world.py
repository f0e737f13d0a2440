"""A small world in which collectors live and die, every step of it chosen by the test.

`World` has one disk (`CrashableDisk`), one store (`MemoryStore`), one clock, and the processes that share them.
`Process` is the `Collector` that the server builds, less the wire: a tick of events goes in through `commit`, answers
come out in `answers`. `Ledger` is the model: what a client may rely on, in sets of event numbers.

Nothing happens by itself. The event loop of a process runs until it has nothing to do and then stops; what it handed to
an executor waits until it is told to run, so that whatever a thread may be late with, it can be late with here; time
passes when told to. A process dies before any call to the file system that the test names, in the loop or in an
executor, and then nothing of it reaches the disk or the store any more, except puts that were under way: they may land
whenever the test likes.

Who may lose what, at the death of a process (the table of docs/shutdown.md):

    kill        memory: all that is neither stored nor in the DLQ. journal, fsync: nothing
    power cut   fsync: nothing. memory, journal: all that is neither stored nor in the DLQ

One thing is left out: on this disk a folder whose sync has failed can never be synced again, and whoever tries is told
that it went well. File systems abort when that fails, and take no more writes. After such a failure a power cut may
take what is not stored.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from structlog.testing import capture_logs

from ingest.collector import ADOPT_SECONDS
from ingest.config import settings as config
from ingest.disk import TEMPORARY_SUFFIX
from ingest.disk.errors import StorageError
from ingest.disk.filesystem import Filesystem
from ingest.format import codec, ledger
from ingest.format.keys import parse_key, partition_of
from ingest.format.manifest import parse_name, read
from ingest.lake.judging import UNKNOWN, Kind, Said, Seen, judge
from ingest.ledger import entries_in, is_of_ledger
from tests.model.ledger import Ledger, events_in, numbers_in
from tests.model.loop import Died
from tests.model.process import Process
from tests.model.time import START, Time
from tests.stand_ins.disk import CrashableDisk
from tests.stand_ins.fakes import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingest.config.settings import Settings
    from ingest.format.ledger import Fate
    from ingest.format.manifest import Name
    from ingest.lake.judging import Finding, Verdict
    from tests.model.store import PutFate
    from tests.stand_ins.disk import Choice, Rule


@dataclass(slots=True)
class Fuse:
    """How many calls of a kind are left until somebody dies."""

    left: int
    operation: str
    when: Callable[[Path], bool]
    power: Choice | None


class WorldDisk(CrashableDisk):
    """The disk of all; it remembers whether it was ever told to do other than well."""

    was_told_to_fail = False
    failed_to_remove = False

    def on(self, *operations: str, **which: Any) -> Rule:
        self.was_told_to_fail = True
        self.failed_to_remove |= "unlink" in operations
        return super().on(*operations, **which)


def looked_after(process: Process) -> list[Path]:
    """Return the temporaries that a process has found and is not done with."""
    temporaries = process.dlq._letters.temporaries
    return [*temporaries._kept, *temporaries._spent, *temporaries._torn, *(path for _, path in temporaries._found)]


class World:
    """A disk, a store, a clock, and processes. `variables` are those of the environment."""

    def __init__(self, folder: Path, *, wall: float = START, **variables: object) -> None:
        self.root = folder
        self.fs = WorldDisk(folder)
        self.store = MemoryStore()
        self.time = Time(wall)
        self.ledger = Ledger()
        self.processes: list[Process] = []
        self.numbers = 0
        self.events = 0
        self.settings = settings(folder, **variables)
        self.late_puts = 0
        """How many of the next puts hang until they are given up, and land whenever `land` says."""
        self.landing: list[Callable[[], None]] = []
        self.put_fates: deque[PutFate] = deque()
        """What the next puts meet."""
        self.refused_keys: set[str] = set()
        self.documents: dict[str, bytes] = {}
        """Manifests and the registry, apart from the objects."""
        self.documents_fail: Exception | None = None
        self.documents_hang = False
        self.documents_land = False
        """Whether they are taken though the store is down for objects."""
        self.document_tries = 0
        self.fuse: Fuse | None = None
        self.struck: Process | None = None
        self.folder_sync_failed = False
        self.lines_may_be_lost = self.settings.durability == "memory"
        """A line of a ledger may be lost with its process, or with the power."""
        self.cut_off: set[str] = set()
        """The tokens of processes that a power cut has ended."""
        self.hung = False
        """The disk answers no thread until it is well again."""
        self.unhandled: list[str] = []
        self.reached: Counter[str] = Counter()
        """How often each state was seen, and each log event told."""
        self._capture = capture_logs()
        self.logs = self._capture.__enter__()
        self._seen_replaced = 0

    def close(self) -> None:
        """Leave nothing running."""
        for process in list(self.processes):
            self.bury(process)
        self._capture.__exit__(None, None, None)
        self.reached.update(told["event"] for told in self.logs)

    # Life and death.

    def start(self, *, run: bool = True, **variables: object) -> Process | None:
        """Start a process; None when the disk does not let it."""
        chosen = settings(self.root, **variables) if variables else self.settings
        self.numbers += 1
        process = Process(self, self.numbers, chosen)
        self.processes.append(process)
        try:
            process.wire()
        except (StorageError, Died) as error:
            if isinstance(error, StorageError):
                self.bury(process)
            else:
                self._see_who_died()
            return None
        process.begin()
        if run:
            self.run()
        return process if process in self.processes else None

    def kill(self, process: Process) -> None:
        """SIGKILL: what is on the disk, synced or not, stays."""
        process.disk.dead = True
        self._see_who_died()

    def power_cut(self, choice: Choice) -> None:
        """End every process and take from the disk what was not synced, but for what `choice` keeps."""
        for process in list(self.processes):
            process.disk.dead = True
            self.cut_off.add(f"{process.number:016x}")
            self.bury(process)
        self.fs.crash(choice)
        if self.settings.durability != "fsync" or self.folder_sync_failed:
            # Nothing is promised of what is not stored and in no dead-letter file, and a roll-back was not synced.
            self.lines_may_be_lost = True
            held = self.stored_numbers().keys() | (set() if self.folder_sync_failed else self.ledger.safe)
            self.ledger.demote(self.ledger.owed - held)
            if self.settings.durability == "journal":
                self.ledger.demote(set(self.ledger.refused))

    def bury(self, process: Process) -> None:
        """Take a dead process out of the world, its puts under way left to chance."""
        process.disk.dead = True
        if process in self.processes:
            self.processes.remove(process)
        self.landing += process.link.under_way.values()
        process.discard()
        self.ledger.lose_answers(process.number)
        self.ledger.demote(process.not_rewritten() & self.ledger.refused)
        # A disk that dropped lines after it had taken them (`close`) leaves them in memory, until all is rewritten.
        if process.settings.durability == "memory" or (process.settings.durability == "journal" and self.fs.has_let_go):
            held = self.stored_numbers().keys() | self.ledger.safe
            own = {number for number in self.ledger.owed if self.ledger.owner[number] == process.number}
            self.ledger.demote(own - held)

    # The passing of time.

    def run(self) -> None:
        """Let every loop and every thread go on until nothing is left to do at this instant."""
        while True:
            self.run_loops()
            busy = [process for process in self.processes if process.jobs and not self.hung]
            if not busy:
                return
            for process in busy:
                if not process.disk.dead:
                    process.run_job()

    def run_loops(self) -> None:
        """Let the loops go on, the threads not."""
        self._see_who_died()
        for process in list(self.processes):
            if not process.disk.dead:
                process.loop.settle()
        self._see_who_died()

    def run_job(self, which: int = 0) -> bool:
        """Run one of the jobs that threads could be at work on; False if there is none."""
        choices = [(process, n) for process in self.processes for n in range(process.choices)]
        if self.hung or not choices:
            return False
        process, n = choices[which % len(choices)]
        process.run_job(n)
        self.run_loops()
        return True

    def advance(self, seconds: float, *, threads: bool = True) -> None:
        """Let time pass, timer by timer."""
        run = self.run if threads else self.run_loops
        end = self.time.monotonic + seconds
        while True:
            run()
            wakes = [process.loop.wakes_at for process in self.processes if process.loop.wakes_at is not None]
            if not wakes or min(wakes) > end:
                break
            self.time.monotonic = max(self.time.monotonic, min(wakes)) + 1e-6
        self.time.monotonic = max(self.time.monotonic, end)
        run()

    def wait_for(self, condition: Callable[[], bool], *, seconds: float, step: float = 0.25) -> bool:
        """Let time pass until the condition holds, for so long at most."""
        end = self.time.monotonic + seconds
        self.run()
        # Asked once a step, because asking may change what holds: it sends an event, say.
        while not (holds := condition()) and self.time.monotonic < end:
            self.advance(step)
        return holds

    def _see_who_died(self) -> None:
        if self.struck is not None:
            struck, self.struck = self.struck, None
            fuse, self.fuse = self.fuse, None
            if fuse is not None and fuse.power is not None:
                self.power_cut(fuse.power)
                return
            struck.disk.dead = True
        for process in [process for process in self.processes if process.disk.dead]:
            self.bury(process)

    def burn(
        self,
        calls: int = 0,
        operation: str = "",
        *,
        when: Callable[[Path], bool] = lambda _: True,
        power: Choice | None = None,
    ) -> None:
        """Let whoever makes the nth such call to the file system from now on, counted from 0, die before it.

        With `power` everybody dies, and what it picks of what was not synced is kept.
        """
        self.fuse = Fuse(calls, operation, when, power)

    def meet(self, process: Process, operation: str, path: Path) -> None:
        """Take note of a call to the file system; somebody may not live to make it."""
        fuse = self.fuse
        if fuse is None or fuse.operation not in ("", operation) or not fuse.when(path):
            return
        if fuse.left == 0:
            self.struck = process
            for dying in self.processes if fuse.power is not None else [process]:
                dying.disk.dead = True
        fuse.left -= 1

    # The store.

    def land(self, which: int = 0) -> None:
        """Let one of the puts arrive that were given up, or whose process is gone."""
        if self.landing:
            self.landing.pop(which % len(self.landing))()

    def stored_numbers(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for key, body in self.store.objects.items():
            if key.startswith("raw/"):
                found.update(numbers_in(body))
        return found

    # What must be true.

    def check(self) -> None:
        """What holds at every instant."""
        for process in self.processes:
            assert process.metrics.books.unaccounted() == 0, (process.number, process.metrics)
            assert process.metrics.books.differing() == {}, (process.number, process.metrics)
            assert not process.unhandled, process.unhandled
            self.reached.update(process.states())
        for key, old, new in self.store.replaced[self._seen_replaced :]:
            assert set(numbers_in(old)) <= set(numbers_in(new)), f"{key} was replaced by less"
        self._seen_replaced = len(self.store.replaced)
        self._hold_ledgers()

    def heal(self) -> None:
        """Let disk and store be well from now on."""
        self.hung = False
        self.fs.heal()
        self.fs.capacity = None
        self.store.down = False
        self.fuse = None
        self.late_puts = 0
        self.put_fates.clear()
        self.refused_keys.clear()
        store_fates(self.store).clear()

    def take_events(self) -> None:
        """See that every process takes events again, and that nothing stays in it or on its disk once they are stored.

        Files that were set aside are due when another of their prefix is stored.
        """
        self.heal()
        for process in list(self.processes):
            assert self.wait_for(process.takes_an_event, seconds=120, step=5), (process.number, process.figures())
            process.seal()
        self._see_nothing_stays()
        self.give_up_torn()
        if self.processes:
            assert self.wait_for(lambda: not self.left_by_others(), seconds=4000, step=5), self.left_by_others()

    def give_up_torn(self) -> None:
        """Do as an operator who knows that no journal is left: remove the halves whose batches were found nowhere.

        No event may be owed of which nothing else is left: that is seen when the store is held against the ledger.
        """
        if any(self.torn()):
            self.advance(2 * ADOPT_SECONDS)
            for path in self.torn():
                self.fs.unlink(path)

    def _never_promised(self, finding: Finding) -> bool:
        """Tell whether a number is missing whose segment's name was not synced when the power went.

        A later one's name may have survived. No event in it was acknowledged, for all that were are in the store.
        """
        instance = finding.key.partition(" ")[0]
        return finding.kind is Kind.GAP and any(instance.endswith(token) for token in self.cut_off)

    def torn(self) -> list[Path]:
        """Every half of a dead letter that waits for its batch."""
        return [torn.path for process in self.processes for torn in process.dlq._letters.temporaries.torn()]

    def left_by_others(self) -> list[str]:
        """Every file on the disk that none of the living writes, but for what could not be removed.

        A probe, or the temporary of a save or a salvage that failed, lies until the next start then.
        """
        own = {".probe.", *(process.token for process in self.processes)}
        left = [name for name in self.files() if not any(token in name for token in own)]
        if not self.fs.failed_to_remove:
            return left
        known = {path.name for process in self.processes for path in looked_after(process)}
        return [name for name in left if not name.endswith(TEMPORARY_SUFFIX) or name.rpartition("/")[2] in known]

    def recover(self) -> None:
        """Let all be well again, and let what is on the disk be recovered; then hold the store against the ledger."""
        self.heal()
        for process in list(self.processes):
            process.seal()
        # The processes at work come to an end with their work, and a fresh one takes what they left.
        self._see_nothing_stays()
        self.check()
        for process in list(self.processes):
            process.stop()
        last = self.start(dlq_max_age="0s", dlq_max_size_bytes=1 << 40, durability=self.settings.durability)
        assert last is not None
        assert self.wait_for(lambda: not last.pending and not last.scanning, seconds=600, step=5), last.figures()
        self.advance(2 * ADOPT_SECONDS)
        self.give_up_torn()
        assert self.wait_for(lambda: not last.pending and not last.scanning, seconds=600, step=5), last.figures()
        self.check()
        while self.landing:
            self.land()
        self.check()
        last.stop()
        self.hold()

    def _see_nothing_stays(self) -> None:
        assert self.wait_for(lambda: not any(process.pending for process in self.processes), seconds=4000, step=5), [
            process.figures() for process in self.processes
        ]
        assert not any(process.collector.budget.batches for process in self.processes), "bytes that nobody gave back"

    def hold(self) -> None:
        """Hold the store against the ledger, when there is nothing left to recover."""
        ledger, stored = self.ledger, self.stored_numbers()
        assert not any(ledger.flying.values()), "somebody was never answered"
        doubled = {number: count for number, count in stored.items() if count > 1}
        assert not doubled, f"doubled: {doubled}"
        lost = ledger.owed - stored.keys()
        assert not lost, f"lost: {sorted(lost)}"
        refused = ledger.refused & stored.keys()
        assert not refused, f"refused, and stored: {sorted(refused)}"
        for key, body in self.store.objects.items():
            if not key.startswith("raw/"):
                continue
            parsed, metadata = parse_key(key), self.store.metadata[key]
            events = events_in(body)
            assert events, f"{key} holds nothing"
            assert codec.event_count(body) == metadata.events == len(events)
            assert (metadata.first_ts, metadata.last_ts) == (events[0]["ts"], events[-1]["ts"]), key
            assert metadata.instance == f"{parsed.host}-{parsed.token}"
            for event in events:
                assert partition_of(event["ts"], self.settings.partition_tz).path == parsed.partition
                assert self.ledger.second[event["body"]] == event["ts"]
        assert self.files() == [], "recovery left files"
        listed = [one for document in self.manifests() for one in (*document["objects"], *document["none"])]
        told = self.told().keys() | {one["key"] for one in listed}  # given up, too: its put may land after that
        untold = [key for key in self.store.objects if key.startswith("raw/") and key not in told]
        if self.lines_may_be_lost or self.fs.was_told_to_fail:
            return
        assert not untold, f"in no ledger: {untold}"
        for verdict in self.verdicts():
            findings = [one for one in verdict.findings if not self._never_promised(one)]
            assert findings == [], verdict
            unknown = [one for one in verdict.still_open if one.why != UNKNOWN]
            assert not unknown, f"nothing waits, and an hour is open: {verdict}"

    def files(self) -> list[str]:
        """Every file on the disk but the locks of slots and their ledgers."""
        found = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in found if path.name != "lock" and not is_of_ledger(path))

    def told(self) -> dict[str, Fate]:
        """What the ledgers on the disk say, by key."""
        files = [*self.root.glob("dlq/*/.ledger/dt=*"), *self.root.glob("dlq/journal/*/.ledger/dt=*")]
        return ledger.settle(entry for path in files for entry in entries_in(Filesystem(), path))

    def manifests(self) -> list[dict[str, Any]]:
        """All that was put."""
        return [document for name, document in self._documents().items() if name.kind is None]

    def verdicts(self) -> list[Verdict]:
        """What `reconcile` says of each hour that has objects."""
        documents = {name: Said(f"{name}", document) for name, document in self._documents().items()}
        found = []
        for hour in sorted({parse_key(key).partition for key in self.store.objects if key.startswith("raw/")}):
            there = {
                key: Seen(len(body), codec.event_count(body))
                for key, body in self.store.objects.items()
                if key.startswith(f"raw/{hour}/")
            }
            told = {name: document for name, document in documents.items() if name.hour == hour}
            registry = {name: document for name, document in documents.items() if not name.hour}
            found.append(judge(hour, there, told, registry))
        return found

    def _documents(self) -> dict[Name, dict[str, Any]]:
        found = {}
        for key, body in self.documents.items():
            name = parse_name("raw_manifest", key)
            if name is not None:
                document = read(name, body)
                assert document is not None, f"{key} is not what its name says: {body!r}"
                found[name] = document
        return found

    def _hold_ledgers(self) -> None:
        """A ledger never says *stored* of what is not, nor more than is; nor does a manifest."""
        for document in self.manifests():
            for one in document["objects"]:
                events = codec.event_count(self.store.objects[one["key"]])
                assert events is not None
                assert events >= one["events"], f"a manifest says more of {one['key']} than is stored"
        for key, fate in self.told().items():
            if fate.stored is None:
                continue
            assert key in self.store.objects, f"a ledger says that {key} is stored"
            body = self.store.objects[key]
            events = codec.event_count(body)
            assert events is not None
            assert events >= fate.stored.events, f"a ledger says more of {key} than is stored"
            if events == fate.stored.events:
                assert ledger.parse(ledger.stored(key, events, body)[:-1]) == fate.stored, key


def settings(folder: Path, **variables: object) -> Settings:
    environ = {"DLQ_DIR": str(folder / "dlq"), "STORE_DIR": str(folder / "objects"), "DISK_RESERVE": "0"}
    return config.load(environ | {name.upper(): str(value) for name, value in variables.items()})


def store_fates(store: MemoryStore) -> deque[Any]:
    return store._fates
