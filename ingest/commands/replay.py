"""`dlq replay`: what processes that are gone left on disk, put to the store as a server would.

Owns the making of the server's own parts, `Recovery` over a `Spool` and a `Backlog`, for one pass after the other until
nothing is stored any more. So it is create-only, judges a key's dead letter and segment together, and salvages and
quarantines what is damaged. Every file is tried at least once; a file that the store did not take is named with the
store's reason.

Promises to take the lock of each slot that it works on, and to leave slots alone that a process holds. "Nothing to
replay" is said only if nothing is on disk in either place. Never knows what an earlier process learned about a file.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import time
from typing import TYPE_CHECKING, Final

from ingest.commands.report import progress
from ingest.commands.shelf import Shelf
from ingest.delivery import Aside, Attempts, Carrier, Course, Phase, Recovery, TornLetters
from ingest.delivery.choice import choose
from ingest.delivery.torn import AT_ONCE
from ingest.disk import Lane, Slot
from ingest.format import KeyFactory, codec, parse_key
from ingest.ledger import Closing, Ledger, Post, Side, is_of_ledger
from ingest.spool import Backlog, Letter, Places, Spool, Whereabouts
from ingest.store import Head, Refusal, create_store
from ingest.telemetry import DropReason, Metrics
from ingest.threads import pool

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.commands.report import Report
    from ingest.config import Settings
    from ingest.disk import Filesystem
    from ingest.spool import Held, Waiting
    from ingest.store import ObjectStore, Outcome


TELL_AGAIN: Final = (1.0, 4.0)
"""Seconds before the second try to tell hours, and the third: nobody may come by again before a volume goes."""
MOST_TOLD: Final = 20
"""Files that were not taken, of which people are told one by one; the document has them all."""


class _Told(Aside):
    """Remembers why each file that is put off was not taken the last time."""

    __slots__ = ("failed",)

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.failed: dict[str, Outcome] = {}

    def put_off(self, key: str, outcome: Outcome, *, object_key: str = "") -> None:
        self.failed[key] = outcome
        super().put_off(key, outcome, object_key=object_key)

    def forget(self, key: str) -> None:
        self.failed.pop(key, None)
        super().forget(key)

    def why(self, *, refused: bool) -> dict[str, str]:
        """Return the cause by key: of those that the store answered it will not take, or of all others."""
        return {
            key: " ".join(str(outcome.error).split())
            for key, outcome in self.failed.items()
            if isinstance(outcome.error, Refusal) is refused
        }


class _OfHour:
    """The files of one hour, of all that wait somewhere."""

    def __init__(self, waiting: Waiting, hour: str) -> None:
        self._waiting = waiting
        self._hour = hour

    @property
    def scanning(self) -> bool:
        """There are files that are not in the books yet."""
        return self._waiting.scanning

    async def next(self) -> Letter | None:
        """Lend the next file of the hour; None at the end of each pass."""
        while (letter := await self._waiting.next()) is not None:
            if parse_key(letter.key).partition == self._hour:
                return letter
            async with letter:
                pass
        return None

    async def find(self, key: str) -> Letter | Whereabouts:
        """Lend the file of this key, or tell why not."""
        return await self._waiting.find(key)


async def replay(
    fs: Filesystem,
    settings: Settings,
    report: Report,
    hour: str | None,
    what: str = "replay",
    *,
    salvages: bool = False,
) -> int:
    """Put what waits, and tell what stays; 1 if something does. `what`: the word of the command.

    `salvages`: half a dead letter waits for no journal any more, and what is sound in it is put.
    """
    # Each slot costs a descriptor until the end, and the store needs some as well.
    at_most = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 1)
    slots, unread = Slot.adopt_free(fs, settings.dlq_dir, at_most=at_most, passes_over=is_of_ledger)
    dead_journals = Slot.adopt_free(fs, settings.journal_dir, at_most=at_most - len(slots), passes_over=is_of_ledger)
    unread += dead_journals.unread
    done = len(slots) + len(dead_journals.slots)
    found = done > 0
    journals = dead_journals.slots
    if settings.manifests:
        # What a process has left to be told, though none of its files waits any more.
        slots += Slot.adopt_free(fs, settings.dlq_dir, at_most=at_most - done).slots
        journals += Slot.adopt_free(fs, settings.journal_dir, at_most=at_most - done).slots
    metrics, aside = Metrics(), _Told()
    untold: set[str] = set()
    if slots or journals:
        slots = slots or [Slot.take_first_free(fs, settings.dlq_dir)]  # a spool has one of its own
        untold = await _recover(fs, settings, slots, journals, metrics, aside, hour, what, salvages=salvages)
    left = Shelf(fs, settings, hour, free_only=True)
    groups = list(left.measured())
    files, events = sum(map(len, groups)), sum(letter.events for group in groups for letter in group)
    # The lock of a slot may be what cannot be read, both times.
    errors = {str(error): error for error in (*unread, *left.unread)}
    for line in errors:
        report.say(line)
    for root in left.held:
        report.say(f"{root} is held by a running process, which recovers its files itself: left alone")
    for path in left.unfinished:
        report.say(f"{path} stays, half-written: its batch was found nowhere. --salvage puts what is sound in it")
    for instance in sorted(untold):
        report.say(f"{instance or 'hours'}: not told of, and its ledger stays: run it again before the volume goes")
    if files and done == at_most:
        report.say(
            f"{done} slots are done, as many as the limit of descriptors allows; there may be more: run it again"
        )
    refused, away = aside.why(refused=True), aside.why(refused=False)
    _tell(report, "refused", refused)
    _tell(report, "not put", away)
    dropped = metrics.books.events_dropped
    text = (
        f"{metrics.books.events_stored} events stored in {settings.store_shown}, "
        f"{metrics.files_quarantined} corrupt files quarantined, "
        f"{dropped[DropReason.CORRUPT]} events lost in them, {dropped[DropReason.EXPIRED]} expired; "
        f"{files} files with {events} events stay"
    )
    stays = bool(left.held or errors or files or left.unfinished or untold)
    return report.end(
        1 if stays else 0,
        text if found or stays else f"nothing to {what}",
        dry_run=False,
        store=settings.store_shown,
        events_stored=metrics.books.events_stored,
        files_stored=metrics.files_reuploaded,
        files_stored_before=metrics.puts_already_stored,
        files_quarantined=metrics.files_quarantined,
        events_lost=dropped[DropReason.CORRUPT],
        events_expired=dropped[DropReason.EXPIRED],
        files_left=files,
        events_left=events,
        refused=[{"key": key, "error": error} for key, error in refused.items()],
        not_put=[{"key": key, "error": error} for key, error in away.items()],
        held=[str(root) for root in left.held],
        unfinished=[str(path) for path in left.unfinished],
        untold=sorted(untold),
        unreadable=[{"path": error.subject, "error": line} for line, error in errors.items()],
    )


async def _recover(
    fs: Filesystem,
    settings: Settings,
    slots: list[Slot],
    dead_journals: list[Slot],
    metrics: Metrics,
    aside: Aside,
    hour: str | None,
    what: str,
    *,
    salvages: bool,
) -> set[str]:
    """Recover until nothing is left that the store takes, and let the slots go; return of whom is not told."""
    lane = Lane("dlq")
    places = Places(fs, (settings.journal_dir, lane), (settings.dlq_dir, lane))
    token = secrets.token_hex(8)
    with pool(2) as executor:
        store = create_store(settings, Head(codec.HEAD_BYTES, codec.event_count), fs=fs, executor=executor)
        told = Ledger(fs, sync=settings.durability == "fsync", kept=settings.manifests)
        note, is_settled = told.note, told.is_settled
        dlq = Spool(
            settings,
            fs,
            slots,
            metrics,
            lane,
            executor,
            places,
            token=token,
            salvages=salvages,
            note=note,
            is_settled=is_settled,
        )
        backlog = Backlog(fs, None, metrics, lane, executor, places, token=token, note=note, is_settled=is_settled)
        try:
            await store.start()
            await backlog.adopt(dead_journals)
            await dlq.scan()
            found = dlq.files + backlog.files
            with progress(what, found) as show:
                course = Course()
                attempts = Attempts(settings, store, metrics, course, clock=time.monotonic)
                carrier = Carrier(
                    settings,
                    dlq if hour is None else _OfHour(dlq, hour),
                    backlog if hour is None else _OfHour(backlog, hour),
                    attempts,
                    aside,
                    metrics,
                    time.time,
                )
                recovery = Recovery(
                    carrier,
                    attempts.breaker,
                    course,
                    on_stored=lambda: show(found - dlq.files - backlog.files),
                    clock=time.monotonic,
                )
                course.enter(Phase.HURRYING)
                await recovery.run()
                torn = TornLetters(settings, dlq, store, attempts.breaker, metrics, time.time)
                for _ in range(0, len(await dlq.torn()), AT_ONCE):
                    await torn.look()
            if not settings.manifests:
                return set()
            return await _close_hours(settings, store, metrics, lane, executor, told, dlq, backlog, token)
        finally:
            dlq.close()
            backlog.close()
            for slot in dead_journals:
                slot.release()  # those that were not adopted, should the store not start
            lane.abandon()
            await store.close()


async def _close_hours(
    settings: Settings,
    store: ObjectStore,
    metrics: Metrics,
    lane: Lane,
    executor: Executor,
    told: Ledger,
    dlq: Spool,
    backlog: Backlog,
    token: str,
) -> set[str]:
    """Tell of the hours of which nothing waits any more in these slots, as a server that recovered them would.

    Return the processes of which something is still to be told.
    """

    async def held_in_journal() -> dict[Path, Held]:
        return backlog.held()

    keys = KeyFactory(settings.raw_prefix, settings.partition_tz, token=token)
    post = Post(store, metrics, keys.instance, limit=settings.s3_timeout, clock=time.monotonic)
    sides = (
        Side("journal", lane, told, held_in_journal, backlog.release_emptied),
        Side("dlq", lane, told, dlq.held, backlog.release_emptied),
    )
    closing = Closing(settings, keys, post, metrics, sides, executor=executor, in_memory=dict, refused=set)
    untold = await closing.settle()
    for pause in TELL_AGAIN:
        if not untold or post.is_denied or not metrics.store.up:
            break
        await asyncio.sleep(pause)
        untold = await closing.settle()
    return untold


def _tell(report: Report, what: str, causes: dict[str, str]) -> None:
    for key, error in list(causes.items())[:MOST_TOLD]:
        report.say(f"{key}: {what}: {error}")
    if len(causes) > MOST_TOLD:
        report.say(f"and {len(causes) - MOST_TOLD} more {what}")


async def rehearse(fs: Filesystem, settings: Settings, report: Report, hour: str | None, what: str = "replay") -> int:
    """Tell what `replay` would do, from the files alone: the store is not asked, and nothing is changed."""
    shelf = Shelf(fs, settings, hour, free_only=True)
    files = events = corrupt = lost = 0
    lane = Lane("dlq")
    with pool(2) as executor:
        try:
            for group in shelf.with_progress(what):
                copies = await shelf.judge([letter for letter in group if shelf.measure(letter)], lane, executor)
                if not copies:
                    continue
                choice = choose(copies)
                files += len(copies)
                events += choice.best.events
                corrupt += sum(not copy.contents.found.sound for copy in copies)
                lost += choice.lost
                report.say(f"{choice.best.letter.path}: {choice.best.events} events")
        finally:
            lane.abandon()
    unread = shelf.tell(report)
    text = (
        f"dry run: {files} files with {events} events would be put in {settings.store_shown}, "
        f"{corrupt} corrupt files quarantined, {lost} events lost in them; nothing is changed"
    )
    is_nothing = not (files or shelf.held or shelf.unfinished or unread)
    return report.end(
        1 if shelf.held or unread else 0,
        f"nothing to {what}" if is_nothing else text,
        dry_run=True,
        store=settings.store_shown,
        files=files,
        events=events,
        files_to_quarantine=corrupt,
        events_lost=lost,
        **shelf.facts(),
    )
