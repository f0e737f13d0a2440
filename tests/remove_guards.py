"""Take out each guard in turn, and see that its test notices.

A guard is a line that does nothing on a good day: a sync, the order of two calls, a lock, a roll-back, a create-only
condition. A test suite may well be green without it. Each row of `GUARDS` names one: the file, the exact text, what
stands in its place when it is taken out, and the tests that must fail then.

`make guards`, or `python -m tests.remove_guards [words of a row's name]`. It works on copies, one a core, and takes one
guard at a time out of each. It exits with 1 when a text is not found exactly once, when a test fails though nothing is
taken out, or when a guard can be taken out unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[1]
WORKERS = os.cpu_count() or 1
FAILED = 1
"""Pytest's exit code for tests that ran and failed; any other says that they could not be run."""


class Guard(NamedTuple):
    """`edits`: pairs of a text, which stands in the file exactly once, and its replacement."""

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


def _guard(name: str, file: str, text: str, replacement: str, *tests: str) -> Guard:
    return Guard(name, f"ingest/{file}", ((text, replacement),), tuple(f"tests/{test}" for test in tests))


DURABLE = "disk/test_disk.py::"
JOURNAL = "intake/test_journal.py::"
NAMES = "intake/test_names.py::"
SLOTS = "spool/test_slots.py::"
DLQ = "spool/test_letters.py::"
RECOVERY = "delivery/test_recovery.py::"
REFUSED = "delivery/test_refused.py::"
RIVALS = "delivery/test_rivals.py::"
COPIES = "spool/test_copies.py::"
TORN = "spool/test_torn.py::"
LAKE = "lake/test_compact.py::"
EXPIRY = "delivery/test_expiry.py::"
S3 = "store/test_s3.py::"
READS = "store/test_reads.py::"
LEDGER = "ledger/test_files.py::"
COMMANDS = "commands/test_dlq.py::"
CLOSING = "ledger/test_closing.py::"
SOCKET = "disk/test_socket_file.py::"
STORES = "store/test_conformance.py::"

GUARDS: tuple[Guard, ...] = (
    # The name of a Unix socket.
    _guard(
        "of two that start at once one looks at a dead socket",
        "disk/socket_file.py",
        "            _lock(fs, folder)\n",
        "",
        SOCKET + "test_of_two_that_start_at_once_over_a_dead_one_one_listens",
    ),
    _guard(
        "a live socket is not stolen",
        "disk/socket_file.py",
        " or not self._is_left_over()",
        "",
        SOCKET + "test_a_live_one_is_not_stolen_its_backlog_full_or_not",
    ),
    _guard(
        "another's socket is not removed",
        "disk/socket_file.py",
        "            if Identity.of(self._fs.lstat(self.path)) == self._identity:\n                self._fs.unlink",
        "            if self._fs.lstat(self.path):\n                self._fs.unlink",
        SOCKET + "test_what_another_put_in_its_place_is_not_removed",
    ),
    # Append, and its roll-back.
    _guard(
        "a short write is continued",
        "disk/append.py",
        "        if done < len(data):\n            write_all(fs, fd, data, done)\n",
        "",
        DURABLE + "test_append_writes_all_when_the_kernel_takes_it_in_pieces",
    ),
    _guard(
        "a failed append is rolled back",
        "disk/append.py",
        "        fs.truncate(fd, size)\n        if sync:",
        "        if sync:",
        DURABLE + "test_an_append_that_fails_is_rolled_back",
        JOURNAL + "test_a_write_that_fails_is_rolled_back_and_refused",
    ),
    _guard(
        "the roll-back is synced",
        "disk/append.py",
        "        if sync:\n            fs.fdatasync(fd)\n    except OSError as error:\n        torn",
        "    except OSError as error:\n        torn",
        DURABLE + "test_a_synced_roll_back_is_not_undone_by_a_power_cut",
    ),
    _guard(
        "the journal asks for a synced roll-back",
        "intake/journal.py",
        "sync_roll_back=self.deferred",
        "sync_roll_back=False",
        JOURNAL + "test_what_was_rolled_back_does_not_come_back_with_a_power_cut",
    ),
    _guard(
        "segments are opened to append",
        "disk/append.py",
        "os.O_WRONLY | os.O_APPEND, path.parent",
        "os.O_WRONLY, path.parent",
        JOURNAL + "test_a_write_that_fails_is_rolled_back_and_refused",
    ),
    _guard(
        "a new file takes no name that is taken",
        "disk/folders.py",
        "flags | os.O_CREAT | os.O_EXCL",
        "flags | os.O_CREAT",
        DURABLE + "test_create_refuses_a_name_that_is_taken",
    ),
    # Publish: temporary, sync, rename, sync of the folder.
    _guard(
        "a temporary is synced",
        "disk/publish.py",
        '            if sync:\n                operation = "fdatasync"\n                fs.fdatasync(fd)\n',
        "",
        DURABLE + "test_at_every_power_cut_the_old_or_the_whole_new_file_has_the_name",
    ),
    Guard(
        "the bytes are synced before the rename, not after it",
        "ingest/disk/publish.py",
        (
            ("            if sync:\n                operation", "            if False:\n                operation"),
            (
                "    if sync:\n        _sync_name(fs, path.parent)\n\n\ndef publish_new",
                "    late = fs.open(path, os.O_WRONLY)\n    fs.fdatasync(late)\n    fs.close(late)\n"
                "    if sync:\n        _sync_name(fs, path.parent)\n\n\ndef publish_new",
            ),
        ),
        (f"tests/{DURABLE}test_at_every_power_cut_the_old_or_the_whole_new_file_has_the_name",),
    ),
    _guard(
        "the folder is synced after the rename",
        "disk/publish.py",
        "    if sync:\n        _sync_name(fs, path.parent)\n\n\ndef publish_new",
        "\n\ndef publish_new",
        DURABLE + "test_what_publish_returned_for_survives_a_power_cut",
    ),
    _guard(
        "a publish that fails leaves no temporary",
        "disk/publish.py",
        "        discard(fs, temporary)\n        raise StorageError.of(operation",
        "        raise StorageError.of(operation",
        DURABLE + "test_a_publish_that_fails_leaves_the_old_file_and_nothing_else",
    ),
    _guard(
        "create-only is a link, which refuses a name that exists",
        "disk/publish.py",
        "fs.link(temporary, path)",
        "fs.rename(temporary, path)",
        DURABLE + "test_create_only_never_touches_what_is_there",
        STORES + "test_create_only_never_replaces",
    ),
    _guard(
        "a name that exists is synced before it is called stored",
        "disk/publish.py",
        "            sync_folder(fs, path.parent)\n            return False",
        "            return False",
        DURABLE + "test_stored_already_is_said_only_of_a_name_that_survives_a_power_cut",
    ),
    _guard(
        "the folder is synced after the link",
        "disk/publish.py",
        "            sync_folder(fs, path.parent)\n        except StorageError:\n            # A try",
        "            pass\n        except StorageError:\n            # A try",
        DURABLE + "test_at_every_power_cut_a_new_name_has_the_whole_file_or_does_not_exist",
    ),
    _guard(
        "a link whose folder cannot be synced is taken back",
        "disk/publish.py",
        "            discard(fs, path)\n            raise\n        return True",
        "            raise\n        return True",
        DURABLE + "test_a_create_whose_name_cannot_be_synced_is_taken_back_and_can_be_tried_again",
    ),
    _guard(
        "whoever compares a version holds the lock until it is replaced",
        "store/directory.py",
        "with locked(self._fs, self._root / LOCK):",
        "if True:",
        STORES + "test_of_many_who_replace_one_version_one_wins",
    ),
    # Compaction.
    _guard(
        "a pointer is replaced only if it is the one that was read",
        "lake/shelf.py",
        "made.encode(), version, JSON)",
        "made.encode(), (await self.current(made.hour))[1], JSON)",
        LAKE + "test_who_comes_second_with_the_same_objects_finds_it_done",
    ),
    _guard(
        "rows are compared with what the heads declare",
        "lake/sources.py",
        "    if counted.lines != source.events:\n",
        "    if False:\n",
        LAKE + "test_an_object_that_is_not_what_its_head_says_is_named_and_nothing_is_published",
    ),
    _guard(
        "the parts of a pointer are not swept",
        "lake/shelf.py",
        "[key for key in old if key not in named[hour]]",
        "old",
        LAKE + "test_what_a_pointer_names_is_never_swept_however_old",
    ),
    _guard(
        "the former generation has its 48 hours",
        "lake/shelf.py",
        "if hour in young:",
        "if False:",
        LAKE + "test_parts_that_no_pointer_names_go_after_48_hours_of_its_generation",
    ),
    _guard(
        "a sweep goes by the store's clock",
        "lake/sweep.py",
        "min(now, by.clock()) - KEPT",
        "by.clock() - KEPT",
        LAKE + "test_the_clock_of_a_machine_shortens_nobody_s_48_hours",
    ),
    _guard(
        "a sweep removes nothing on a doubtful pointer",
        "lake/shelf.py",
        "Unneeded([], doubts) if doubts else Unneeded(unneeded, [])",
        "Unneeded(unneeded, doubts)",
        LAKE + "test_a_pointer_of_parts_that_are_not_there_is_named_and_nothing_is_swept",
    ),
    _guard(
        "a sweep knows a table's files however it spells their place",
        "lake/iceberg.py",
        'return "/".join(path.rsplit("/", 4)[1:])',
        "return path",
        "lake/test_sweep.py::test_a_part_of_a_table_is_known_however_the_table_spells_its_place",
    ),
    _guard(
        "a sweep does not believe a table that names nothing in its folder",
        "lake/iceberg.py",
        "if named.isdisjoint(_place(one.key) for one in every):",
        "if False:",
        "lake/test_sweep.py::test_a_table_that_names_nothing_in_its_folder_is_not_believed",
    ),
    _guard(
        "a key in a folder inside the hour is no object of it",
        "lake/sources.py",
        "return (parsed.prefix, parsed.partition) == (prefix, hour)",
        "return True",
        LAKE + "test_copies_in_a_folder_inside_the_hour_are_left_out_and_told",
    ),
    _guard(
        "fewer events need a second list",
        "lake/compact.py",
        "    if not await is_listed_again(to.store, to.raw_prefix, hour, frozen):\n",
        "    if False:\n",
        LAKE + "test_a_list_that_lacks_objects_by_mistake_takes_no_event_out_of_force",
    ),
    # Folders.
    _guard(
        "a new folder's name is synced",
        "disk/folders.py",
        "not in synced):\n            sync_folder(fs, folder.parent)\n",
        "not in synced):\n",
        DURABLE + "test_folders_survive_a_power_cut_once_they_are_made",
    ),
    _guard(
        "a folder found in place is synced too",
        "disk/folders.py",
        "made or synced is None or folder not in synced",
        "made",
        DURABLE + "test_a_folder_that_a_killed_process_left_unsynced_is_synced",
    ),
    _guard(
        "what is above the root is synced",
        "disk/folders.py",
        "        if _mkdir(fs, folder) and sync:\n            sync_folder(fs, folder.parent)\n",
        "        _mkdir(fs, folder)\n",
        DURABLE + "test_folders_survive_a_power_cut_once_they_are_made",
    ),
    _guard(
        "a folder that was pruned under our feet is made again",
        "disk/folders.py",
        "if error.errno != errno.ENOENT or root is None or attempt == PUBLISH_ATTEMPTS:",
        "if True:",
        DURABLE + "test_publish_makes_a_folder_again_that_was_pruned_under_its_hands",
    ),
    # Slots.
    _guard(
        "a slot is held by a lock",
        "disk/slots.py",
        "fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        DURABLE + "test_no_two_hold_one_slot",
        JOURNAL + "test_two_processes_have_two_slots_and_leave_each_other_alone",
    ),
    _guard(
        "a slot without files is let go",
        "disk/slots.py",
        "if _holds_files(fs, slot.path, found.unread, passes_over):",
        "if True:",
        DURABLE + "test_only_free_slots_with_files_are_adopted",
        DURABLE + "test_a_slot_emptied_between_the_look_and_the_lock_is_left_alone",
    ),
    _guard(
        "a segment that a process may be writing is not read",
        "commands/shelf.py",
        "        if not free:\n            if segments",
        "        if False:\n            if segments",
        "commands/test_waiting.py::test_f1_of_two_slots_the_one_that_a_process_holds_is_left_alone",
    ),
    _guard(
        "what is given up by hand is held while it is removed",
        "commands/discard.py",
        "            locks.callback(slot.release)\n",
        "            slot.release()\n",
        "commands/test_waiting.py::test_discard_holds_the_slot_while_it_removes",
    ),
    _guard(
        "nothing is given up while a process holds its slot",
        "commands/discard.py",
        "                return root\n",
        "                continue\n",
        "commands/test_waiting.py::test_discard_removes_nothing_while_a_process_holds_one_of_the_slots",
    ),
    # Write, sync, acknowledge.
    _guard(
        "a tick is written before it is answered",
        "intake/admission.py",
        " or not self._journal.write(batch, data):\n",
        ":\n",
        JOURNAL + "test_a_tick_is_one_write_before_it_is_answered",
        JOURNAL + "test_kill_9_keeps_every_acknowledged_event",
    ),
    _guard(
        "an event is in a batch of its own hour",
        "intake/admission.py",
        "if into is not None and not into.batch.partition.start <= seconds < into.batch.partition.end:",
        "if False:",
        JOURNAL + "test_an_event_is_in_the_segment_of_its_own_hour",
    ),
    _guard(
        "an event is in a batch of its own hour: where the open one is found at once",
        "intake/admission.py",
        "if into is not None and into.start <= turn.seconds < into.end:",
        "if into is not None:",
        JOURNAL + "test_an_event_is_in_the_segment_of_its_own_hour",
    ),
    _guard(
        "what was refused is cut from the batch",
        "intake/batch.py",
        "        self.tail_size = self.tail_events = 0\n\n    def view",
        "        pass\n\n    def view",
        JOURNAL + "test_what_was_written_behind_a_failed_sync_is_refused_with_it",
    ),
    _guard(
        "fsync answers after the sync",
        "intake/journal.py",
        "self.deferred = sync",
        "self.deferred = False",
        JOURNAL + "test_fsync_answers_after_the_sync_and_not_before",
        JOURNAL + "test_the_first_acknowledgement_of_a_segment_survives_a_power_cut_with_name_and_folders",
    ),
    _guard(
        "the lines are synced",
        "intake/journal.py",
        "                if segment.fd is not None:\n                    self._fs.fdatasync(segment.fd)\n",
        "",
        JOURNAL + "test_the_first_acknowledgement_of_a_segment_survives_a_power_cut_with_name_and_folders",
    ),
    _guard(
        "the segment's name is synced",
        "intake/journal.py",
        "                    self._fs.fsync_dir(segment.path.parent)\n",
        "",
        JOURNAL + "test_the_first_acknowledgement_of_a_segment_survives_a_power_cut_with_name_and_folders",
    ),
    _guard(
        "the segment's folders are synced",
        "intake/journal.py",
        "make_dirs(self._fs, segment.path.parent, segment.root, sync=True)",
        "make_dirs(self._fs, segment.path.parent, segment.root, sync=False)",
        JOURNAL + "test_the_first_acknowledgement_of_a_segment_survives_a_power_cut_with_name_and_folders",
    ),
    _guard(
        "the segment's folders are synced again for each segment",
        "intake/journal.py",
        "make_dirs(self._fs, segment.path.parent, segment.root, sync=True)",
        'make_dirs(self._fs, segment.path.parent, segment.root, sync=True, synced=vars(self).setdefault("on", set()))',
        JOURNAL + "test_the_folder_of_an_hour_that_was_emptied_is_synced_when_it_is_made_again",
    ),
    _guard(
        "a batch is submitted after its last sync",
        "intake/journal.py",
        "if batch.tail_events or batch in self._broken:",
        "if batch in self._broken:",
        JOURNAL + "test_a_batch_is_submitted_only_after_its_last_sync",
    ),
    # The ledger.
    _guard(
        "the ledger is told of a segment before it goes",
        "disk/removals.py",
        "        first()\n",
        "",
        LEDGER + "test_the_ledger_tells_of_a_segment_before_it_goes_whenever_the_process_is_killed",
    ),
    _guard(
        "the ledger is told of a dead letter before it goes",
        "spool/letters.py",
        "        self._note(self.slots.root(path), lines)\n        self._remove(path, lent.size)\n",
        "        self._remove(path, lent.size)\n        self._note(self.slots.root(path), lines)\n",
        LEDGER + "test_the_ledger_of_the_slot_tells_of_a_dead_letter_before_it_goes",
    ),
    _guard(
        "a ledger's line is synced",
        "ledger/files.py",
        "            self._fs.fdatasync(fd)\n",
        "            pass\n",
        LEDGER + "test_a_line_that_note_returned_for_survives_a_power_cut_with_its_name",
    ),
    _guard(
        "a ledger's name is synced",
        "ledger/files.py",
        "            self._fs.fsync_dir(path.parent)\n",
        "            pass\n",
        LEDGER + "test_a_line_that_note_returned_for_survives_a_power_cut_with_its_name",
    ),
    _guard(
        "a ledger's torn line is cut off",
        "ledger/files.py",
        "            self._fs.truncate(fd, end)\n",
        "            pass\n",
        LEDGER + "test_a_torn_line_is_cut_off_before_the_next_one_is_written",
    ),
    # Hours that are complete.
    _guard(
        "an hour of which something waits is not told",
        "ledger/closing.py",
        "in_memory.get(hour) or self._waits(hour, seen) or await",
        "await",
        CLOSING + "test_an_hour_of_which_something_waits_is_open_and_says_so_until_it_is_stored",
    ),
    _guard(
        "a slot with a file that cannot be read closes nothing",
        "ledger/closing.py",
        "            if not slot.held.sure:\n",
        "            if False:\n",
        CLOSING + "test_files_that_cannot_be_read_leave_their_hours_open",
    ),
    _guard(
        "a slot is kept until what its process left is told",
        "spool/backlog.py",
        " and self._is_settled(slot.path):\n",
        ":\n",
        CLOSING + "test_a_slot_is_kept_until_what_its_process_left_is_told_and_then_let_go",
    ),
    _guard(
        "a ledger that has grown since it was told stays",
        "ledger/files.py",
        "            if file.path in self._kept or self._sizes.get(file.path, file.size) != file.size:\n",
        "            if False:\n",
        LEDGER + "test_a_file_that_has_grown_since_it_was_listed_is_not_removed",
    ),
    # When the disk fails.
    _guard(
        "a descriptor whose sync failed is given up",
        "intake/journal.py",
        "                self._fail(batch, segment, error)\n        for segment in outcome",
        "                batch.cut()\n                self._commits.refuse(batch)\n"
        "                self._latch.trip(error)\n        for segment in outcome",
        JOURNAL + "test_a_failed_fdatasync_is_never_retried_and_the_batch_is_rewritten_and_published",
    ),
    _guard(
        "nobody is refused while the lines are on the disk",
        "intake/journal.py",
        "        if not self._broken:\n            self._commits.holds_back = False\n"
        "            self._commits.answer()\n",
        "        self._commits.answer()\n",
        JOURNAL + "test_a_refusal_is_told_only_when_its_lines_are_gone_from_the_disk",
    ),
    _guard(
        "a broken segment is cut at once",
        "intake/journal.py",
        "                self._fs.truncate(segment.fd, batch.size)\n",
        "                pass\n",
        JOURNAL + "test_a_segment_that_cannot_be_rewritten_is_at_least_cut",
    ),
    _guard(
        "a torn tail is rewritten before the refusals are answered",
        "intake/journal.py",
        "            self._commits.holds_back = not self.deferred\n",
        "",
        JOURNAL + "test_a_torn_tail_is_rewritten_before_anybody_is_refused",
    ),
    _guard(
        "a rewrite is published",
        "intake/mending.py",
        "publish(self._fs, path, lines, root=root)",
        "publish(self._fs, path, lines, root=root, sync=False)",
        JOURNAL + "test_a_failed_fdatasync_is_never_retried_and_the_batch_is_rewritten_and_published",
    ),
    _guard(
        "a batch that cannot be rewritten is sealed",
        "intake/journal.py",
        "        batch.on_broken()\n",
        "        pass\n",
        JOURNAL + "test_a_segment_that_cannot_be_rewritten_is_uploaded_from_memory_and_stays_until_it_is_stored",
    ),
    _guard(
        "a broken segment is no backlog",
        "intake/journal.py",
        "if segment is None or segment.state in (SegmentState.BROKEN, SegmentState.REMOVED):",
        "if segment is None or segment.state is SegmentState.REMOVED:",
        JOURNAL + "test_a_broken_segment_is_no_backlog_and_its_batch_keeps_its_place",
    ),
    _guard(
        "a lost name is noticed",
        "intake/journal.py",
        "(in_doubt or segment in lost or segment.root != root)",
        "(in_doubt or segment.root != root)",
        NAMES + "test_c9_a_segment_that_cannot_be_written_anew_uploads_from_memory",
    ),
    _guard(
        "a lost lock is noticed",
        "intake/journal.py",
        "            if lock is Name.LOST:\n",
        "            if False:\n",
        NAMES + "test_c9_a_lock_that_is_removed_while_nothing_is_open_is_taken_again",
    ),
    _guard(
        "a slot that is held is not tried",
        "disk/slots.py",
        "            if base / str(number) in held:\n                continue\n            try:\n",
        "            try:\n",
        SLOTS + "test_a_slot_whose_lock_is_removed_is_never_adopted_by_the_process_that_holds_it",
    ),
    _guard(
        "nothing is saved in a slot that another holds",
        "spool/letters.py",
        "        self._hold_own()\n        path = dlq_path(self.slots.own, key)\n",
        "        path = dlq_path(self.slots.own, key)\n",
        SLOTS + "test_nothing_is_saved_in_a_slot_that_another_process_took_a_moment_ago",
    ),
    _guard(
        "nothing is written anew in a slot that another holds",
        "intake/mending.py",
        "        with lines:\n            self._hold_slot()\n",
        "        with lines:\n",
        NAMES + "test_c9_a_slot_that_another_process_made_anew_is_left_to_it",
    ),
    _guard(
        "the lines are kept, compressed, for as long as the segment may have to be written anew",
        "delivery/encoding.py",
        "        batch.packed = encoding.result()\n        batch.release_buffer()\n        size = len(batch.packed)\n",
        "        batch.release_buffer()\n        size = len(encoding.result())\n",
        NAMES + "test_c9_a_batch_that_neither_store_nor_disk_takes_is_written_anew_from_its_compressed_lines",
    ),
    _guard(
        "what could not be written anew is tried again",
        "intake/journal.py",
        "                await self._rewrite_late()\n",
        "                pass\n",
        NAMES + "test_c9_what_could_not_be_written_anew_is_written_when_the_disk_takes_it",
    ),
    _guard(
        "a file of another inode is not the lock",
        "disk/slots.py",
        "has_name(self._fs, lock, Identity.of(held))",
        "has_name(self._fs, lock, None)",
        DURABLE + "test_c9_a_lock_that_lost_its_name_is_noticed_and_taken_again",
    ),
    _guard(
        "the latch keeps the disk in peace",
        "intake/journal.py",
        "        if self._latch.on:\n            return False\n        segment = batch.segment",
        "        segment = batch.segment",
        JOURNAL + "test_while_latched_the_disk_is_left_in_peace_but_for_the_probe",
    ),
    _guard(
        "a probe is synced",
        "intake/mending.py",
        "            self._fs.fdatasync(fd)\n        finally:",
        "        finally:",
        JOURNAL + "test_a_probe_that_cannot_be_synced_does_not_unlatch",
    ),
    _guard(
        "a segment that could not be closed is written anew",
        "intake/journal.py",
        "        if error is not None and not self.deferred:",
        "        if False:",
        JOURNAL + "test_a_segment_that_is_not_known_to_be_written_when_it_is_closed_is_written_anew",
    ),
    # A batch on its way.
    _guard(
        "a segment goes after its object is stored",
        "delivery/upload.py",
        "            outcome = await self.attempts.put(",
        "            self._journal.release(batch)\n            outcome = await self.attempts.put(",
        JOURNAL + "test_the_segment_stays_until_the_object_is_stored",
    ),
    Guard(
        "a segment goes after its dead letter is published",
        "ingest/delivery/saving.py",
        (
            ("from enum import Enum\n", "import asyncio\nfrom enum import Enum\n"),
            (
                "        is_last = self._course.phase >= Phase.DISK_ONLY\n",
                "        is_last = self._course.phase >= Phase.DISK_ONLY\n        self._journal.release(batch)\n"
                "        await asyncio.sleep(0.5)\n",
            ),
        ),
        (f"tests/{JOURNAL}test_the_segment_stays_until_the_dead_letter_is_published",),
    ),
    _guard(
        "without a dead letter the segment is kept in the books",
        "delivery/saving.py",
        "return Fate.BACKLOG if self._journal.retain(batch) else Fate.KEPT",
        "return Fate.KEPT",
        JOURNAL + "test_a_dlq_that_fails_leaves_the_segment_as_backlog_and_it_is_recovered_like_a_dead_letter",
    ),
    _guard(
        "a dead letter is synced",
        "spool/letters.py",
        "self.slots.tree_of(path).publish(path, body, only_copy=self._only_copies)",
        "disk.publish.publish(self._fs, path, body, root=self.slots.own, sync=False)",
        DLQ + "test_a_save_is_published_temporary_synced_renamed_folder_synced",
    ),
    _guard(
        "a save that failed leaves no file that nobody counts",
        "spool/letters.py",
        "            self._take_away(path)\n            raise",
        "            raise",
        DLQ + "test_a_save_whose_folder_cannot_be_synced_is_not_lent_even_if_it_cannot_be_removed",
    ),
    _guard(
        "no hour is settled while the volume is away",
        "spool/settling.py",
        "        elif self._slots.volume_is_there(folder):\n",
        "        else:\n",
        "spool/test_settling.py::test_nothing_leaves_the_books_while_it_is_not_known_what_the_volume_holds",
    ),
    _guard(
        "the ledger is told of an eviction before the file goes",
        "spool/letters.py",
        "            self._note(self.slots.root(path), lines)\n        if not self._unlink(path):\n",
        "        gone = self._unlink(path)\n        self._note(self.slots.root(path), lines)\n        if not gone:\n",
        "spool/test_faults.py::test_evict_finds_the_files_that_can_go_behind_those_that_cannot",
    ),
    _guard(
        "room for a dead letter is reserved",
        "spool/letters.py",
        "        self.holdings.add(path, saved)\n",
        "",
        DLQ + "test_saves_at_once_do_not_pass_the_limit_together",
    ),
    # What a crash left.
    _guard(
        "the own segments are not recovered",
        "spool/backlog.py",
        "            if self._token in path.name:\n",
        "            if False:\n",
        JOURNAL + "test_the_own_segments_are_never_recovered",
    ),
    _guard(
        "the own temporaries are left alone",
        "spool/backlog.py",
        "            if self._token in path.name:\n",
        "            if self._token in path.name and not path.name.startswith('.'):\n",
        JOURNAL + "test_a_temporary_of_this_process_is_not_taken_for_one_that_was_left",
    ),
    _guard(
        "a rewrite whose dead letter is published is no segment",
        "spool/backlog.py",
        "if not is_copy and _key(root, target) and not exists(self._fs, target):",
        "if _key(root, target) and not exists(self._fs, target):",
        JOURNAL + "test_a_rewrite_that_was_not_published_is_removed_if_its_dead_letter_is_there",
    ),
    _guard(
        "a torn dead letter is not salvaged while its segment is there",
        "spool/temporaries.py",
        "if target is None or has_segment or disk.exists(self._fs, target):",
        "if target is None or disk.exists(self._fs, target):",
        DLQ + "test_a_temporary_whose_key_has_a_segment_is_removed",
    ),
    _guard(
        "a torn dead letter is not salvaged where a journal may have its batch",
        "spool/temporaries.py",
        "if not (found.sound or self._salvages or disk.is_only_copy(temporary)):",
        "if False:",
        TORN + "test_e12_half_a_dead_letter_is_no_batch_while_its_host_is_gone",
        TORN + "test_e8_half_a_dead_letter_waits_for_a_volume_that_is_not_mounted",
    ),
    _guard(
        "a torn dead letter goes only when its whole batch is stored",
        "delivery/torn.py",
        "return 0 < torn.declared <= (codec.event_count(head) or 0)",
        "return bool(codec.event_count(head))",
        TORN + "test_e12_a_torn_dead_letter_goes_upon_evidence_only",
    ),
    _guard(
        "the segment is looked for in every slot",
        "spool/places.py",
        "        for slot in slots:\n",
        "        for slot in []:\n",
        COPIES + "test_a11_a_corrupt_dead_letter_waits_for_a_segment_that_another_process_holds",
    ),
    _guard(
        "what comes from a disk is created, never put",
        "delivery/attempt.py",
        "return STORED if await self._store.create(key, body, metadata) else ALREADY_THERE",
        "return STORED if not await self._store.put(key, body, metadata) else ALREADY_THERE",
        RECOVERY + "test_recovery_never_replaces_what_is_stored",
        JOURNAL + "test_recovery_never_replaces_what_is_stored_with_less",
    ),
    _guard(
        "what exists is replaced by more of its batch only",
        "store/directory.py",
        "        if found >= wanted:\n",
        "        if False:\n",
        "store/test_conformance.py::test_create_only_never_replaces",
    ),
    _guard(
        "what exists on S3 is replaced by more of its batch only",
        "store/s3.py",
        "        if found >= wanted:\n            return False\n",
        "",
        "store/test_conformance.py::test_create_only_never_replaces",
    ),
    _guard(
        "nothing is put without a sound line",
        "delivery/carrying.py",
        "        if best.contents.body is not None:\n"
        "            outcome = await self._create(letter.key, best.contents.body, best)",
        "        if True:\n            outcome = await self._create(letter.key, best.contents.body or b'', best)",
        JOURNAL + "test_a_segment_without_a_whole_line_is_removed_and_nothing_is_put",
    ),
    _guard(
        "the original is quarantined before the file goes",
        "delivery/carrying.py",
        "            if copy.contents.found.sound:\n                continue\n",
        "            continue\n",
        JOURNAL + "test_a_bad_line_is_quarantined_and_the_sound_ones_are_stored",
        RECOVERY + "test_a_quarantine_that_fails_keeps_the_file_and_is_tried_again",
    ),
    _guard(
        "of two copies the longer one is put",
        "delivery/choice.py",
        "key=lambda copy: (copy.events, _verifies(copy))",
        "key=lambda copy: (_verifies(copy), copy.events)",
        RIVALS + "test_the_longer_segment_is_put_though_the_dlq_file_verifies",
        COPIES + "test_c11_two_copies_of_a_key_count_as_one_batch",
    ),
    _guard(
        "of two copies as long the dead letter that verifies is put",
        "delivery/choice.py",
        "key=lambda copy: (copy.events, _verifies(copy))",
        "key=lambda copy: copy.events",
        RIVALS + "test_the_dlq_file_is_put_if_it_verifies",
    ),
    _guard(
        "a file expires only after its put has failed",
        "delivery/carrying.py",
        "        best = choice.best\n",
        "        best = choice.best\n        if self._is_expired(letter):\n            self._expire(letter)\n"
        "            return Step.EXPIRED\n",
        EXPIRY + "test_an_old_file_expires_only_after_its_put_has_failed",
    ),
    _guard(
        "a refusal is a verdict by contrast",
        "store/outcome.py",
        "if contrast and isinstance(error, Refusal)",
        "if isinstance(error, Refusal)",
        REFUSED + "test_without_contrast_a_refusal_is_an_outage",
    ),
    _guard(
        "recovery does not feed the breaker",
        "delivery/attempt.py",
        "if feeds_breaker or permit.is_probe:",
        "if True:",
        REFUSED + "test_puts_of_recovery_that_come_to_nothing_never_open_the_breaker",
    ),
    _guard(
        "409 and 412 never count",
        "delivery/attempt.py",
        "elif is_of_one or outcome.is_conflict:",
        "elif is_of_one:",
        REFUSED + "test_409_and_412_to_batches_never_count",
    ),
    _guard(
        "a file that was put off waits",
        "delivery/carrying.py",
        "            if not self.aside.is_due(letter.key):\n                return Step.WAITS\n",
        "",
        REFUSED + "test_a4_live_batches_do_not_notice_files_whose_prefix_is_denied",
    ),
    _guard(
        "a drain tries the store",
        "delivery/attempt.py",
        "            self.breaker.hurry()\n",
        "            pass\n",
        "delivery/test_drain.py::test_a7_a_drain_tries_a_store_that_is_back_whatever_the_breaker_knew",
    ),
    _guard(
        "a drain makes a pass of its own",
        "delivery/recovery.py",
        "elif not stored and not self._began_before:",
        "elif not stored:",
        "delivery/test_drain.py::test_a7_a_refused_file_that_is_the_probe_leaves_no_other_on_the_disk",
    ),
    _guard(
        "a refused probe does not end a drain",
        "delivery/breaker.py",
        "self._open(0.0 if self._hurries else self._pause)",
        "self._open(self._pause)",
        "delivery/test_drain.py::test_a7_a_refused_file_that_is_the_probe_leaves_no_other_on_the_disk",
    ),
    _guard(
        "no file expires by a clock that the store disputes",
        "delivery/carrying.py",
        " and not doubts_clock(outcome.error)",
        "",
        EXPIRY + "test_a_file_does_not_expire_by_a_clock_that_the_store_disputes",
    ),
    # Stores.
    _guard(
        "what came unasked is no answer",
        "store/transport.py",
        "if connection.protocol is None or connection.protocol.should_close:",
        "if False:",
        "store/test_transport.py::test_what_came_unasked_is_no_answer_to_the_next_put",
    ),
    _guard(
        "an answer about another body is no evidence",
        "store/evidence.py",
        "if told != checksum and _CRC32.fullmatch(told):",
        "if False:",
        "store/test_transport.py::test_an_answer_that_tells_of_another_body_is_no_evidence",
    ),
    _guard(
        "what is no batch is not already there on S3",
        "store/s3.py",
        "        if found is None:\n            raise _strange(key, head)\n",
        "        if found is None:\n            return False\n",
        STORES + "test_a_create_neither_replaces_nor_trusts_what_is_no_batch",
    ),
    _guard(
        "what is no batch is not already there in a directory",
        "store/directory.py",
        '            raise Refusal("create", path, _NOT_OURS, transient=False)\n',
        "            return False\n",
        STORES + "test_a_create_neither_replaces_nor_trusts_what_is_no_batch",
    ),
    _guard(
        "the first create that is stored is sent once more",
        "store/s3.py",
        "if self._creates is _Creates.UNPROVEN:",
        "if False:",
        S3 + "test_a5_a_store_that_ignores_the_condition_is_asked_what_it_holds_from_then_on",
    ),
    _guard(
        "S3 is asked to refuse a key that exists",
        "store/s3.py",
        'arguments["IfNoneMatch"] = "*"',
        "pass",
        S3 + "test_create_asks_the_store_to_refuse_a_key_that_exists",
    ),
    _guard(
        "412 is stored already",
        "store/s3.py",
        "            if verdict == _PRECONDITION_FAILED:",
        "            if False:",
        S3 + "test_412_means_that_the_key_is_stored_already",
    ),
    _guard(
        "412 needs S3's own code",
        "store/s3.py",
        "            if verdict == _PRECONDITION_FAILED:",
        "            if verdict[0] == _PRECONDITION_FAILED[0]:",
        S3 + "test_a1_a_412_without_the_stores_own_code_is_a_failed_try",
    ),
    _guard(
        "a page is no put that was stored",
        "store/evidence.py",
        '    if status_of(answer) != _OK or answer["ContentLength"] != 0 or not _has_strong_etag(answer):\n',
        '    if not answer.get("ETag"):\n',
        S3 + "test_a10_a_200_that_is_no_stores_is_not_taken_for_stored",
    ),
    _guard(
        "a page is no object that was read",
        "store/evidence.py",
        "    if is_page or not _has_strong_etag(answer):\n",
        "    if False:\n",
        READS + "test_what_is_no_object_of_a_store_is_away_and_neither_short_nor_missing",
    ),
    _guard(
        "a page is no listing",
        "store/evidence.py",
        "if status_of(answer) != _OK or answer.get(ROOT) != LISTING_ROOT:",
        "if False:",
        READS + "test_what_is_no_page_of_a_listing_is_no_listing",
    ),
    _guard(
        "a listing that stands still ends",
        "store/evidence.py",
        "if page.token in self._tokens:",
        "if False:",
        READS + "test_a_listing_that_does_not_go_on_ends",
    ),
    _guard(
        "a folder is no object that is already there",
        "store/directory.py",
        "self._check(path)  # only an object is already there",
        "pass",
        "store/test_directory.py::test_what_is_no_file_is_no_object_and_holds_nobody",
    ),
    _guard(
        "a page is no object that was found",
        "store/s3.py",
        "if wanted is not None and found is not None:\n            return found >= wanted",
        "if True:\n            return (found or 0) >= (wanted or 0)",
        S3 + "test_a2_what_is_no_object_of_ours_is_no_evidence",
    ),
    _guard(
        "the directory store creates",
        "store/directory.py",
        "        if self._tree.publish_new(path, body):\n",
        "        if self._tree.publish(path, body) is None:\n",
        STORES + "test_create_only_never_replaces",
    ),
    # The operator's commands.
    _guard(
        "an export replaces no file",
        "commands/export.py",
        "    if publish_new(fs, path, body, root=folder):\n",
        "    from ingest.disk.publish import publish\n\n    if publish(fs, path, body, root=folder) is None:\n",
        COMMANDS + "test_export_replaces_nothing_and_says_which_names_have_other_bytes",
    ),
    _guard(
        "an export keeps away from the server's directories",
        "commands/export.py",
        "        if overlap(target, folder):\n",
        "        if False:\n",
        COMMANDS + "test_export_never_goes_where_the_server_has_its_files",
    ),
    _guard(
        "a queue is emptied only into a store that is there",
        "commands/dlq.py",
        "            case _:\n                require_store(fs, settings)\n",
        "            case _:\n",
        COMMANDS + "test_a_queue_is_never_emptied_into_a_directory_that_is_not_there",
    ),
)


def main(words: list[str]) -> int:
    """Take out each guard whose name has these words; return the exit code."""
    chosen = [guard for guard in GUARDS if all(word in guard.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="estat-guards-") as name, ThreadPoolExecutor(WORKERS) as workers:
        copies: Queue[Path] = Queue()
        for number in range(WORKERS):
            copies.put(_copy(Path(name, str(number))))

        def with_a_copy(work: Callable[[Path, T], bool | int], item: T) -> bool | int:
            copy = copies.get()
            try:
                return work(copy, item)
            finally:
                copies.put(copy)

        tests = sorted({test for guard in chosen for test in guard.tests})
        shares = [share for share in (tests[number::WORKERS] for number in range(WORKERS)) if share]
        if any(workers.map(partial(with_a_copy, _run), shares)):
            _tell("Some of the tests fail with every guard in its place.")
            return 1
        unnoticed = list(workers.map(partial(with_a_copy, _is_noticed), chosen)).count(False)
    _tell(f"{len(chosen)} guards, {unnoticed} of them can be taken out unnoticed.")
    return int(bool(unnoticed))


def _copy(copy: Path) -> Path:
    for part in ("ingest", "tests"):
        shutil.copytree(REPOSITORY / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / part, copy / part)
    return copy


def _is_noticed(copy: Path, guard: Guard) -> bool:
    source = copy / guard.file
    original = source.read_text()
    changed = original
    for text, replacement in guard.edits:
        if changed.count(text) != 1:
            _tell(f"NOT FOUND  {guard.name}: {guard.file} has this text {changed.count(text)} times:\n{text}")
            return False
        changed = changed.replace(text, replacement)
    source.write_text(changed)
    try:
        outcomes = {test: _run(copy, [test]) for test in guard.tests}
    finally:
        source.write_text(original)
    for test, code in outcomes.items():
        if code != FAILED:
            _tell(f"UNNOTICED  {guard.name}: {test} ended with {code}")
            return False
    _tell(f"noticed    {guard.name}")
    return True


def _run(copy: Path, tests: list[str]) -> int:
    # Without the plugins that no such test needs: to load them takes longer than to run it.
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "pytest_timeout", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, FAILED):
        _tell(done.stdout[-3000:] + done.stderr[-3000:])
    return done.returncode


def _tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is what it is run for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
