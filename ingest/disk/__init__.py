"""Every touch of a disk: the seam, the order of write, sync and rename, and the locks of slots.

`append` and `publish` are the names of files here, so their functions are imported from there.
"""

from ingest.disk.append import create
from ingest.disk.errors import NameInDoubt, StorageError, TornTail
from ingest.disk.filesystem import Entries, Filesystem
from ingest.disk.folders import make_dirs, prune, sync_file
from ingest.disk.lane import Lane
from ingest.disk.publish import TEMPORARY_SUFFIX, is_only_copy, published_path
from ingest.disk.reading import (
    Folders,
    Identity,
    Kind,
    Reader,
    exists,
    files_below,
    has_name,
    is_folder,
    leads_nowhere,
    new_folders,
    read_file,
)
from ingest.disk.removals import Removals
from ingest.disk.scratch import scratch_folder, usual_base
from ingest.disk.slots import ADOPT_AT_ONCE, LOCK_NAME, Slot, kept_free, locked, slot_folders
from ingest.disk.socket_file import SocketFile
from ingest.disk.tree import Tree

__all__ = [
    "ADOPT_AT_ONCE",
    "LOCK_NAME",
    "TEMPORARY_SUFFIX",
    "Entries",
    "Filesystem",
    "Folders",
    "Identity",
    "Kind",
    "Lane",
    "NameInDoubt",
    "Reader",
    "Removals",
    "Slot",
    "SocketFile",
    "StorageError",
    "TornTail",
    "Tree",
    "create",
    "exists",
    "files_below",
    "has_name",
    "is_folder",
    "is_only_copy",
    "kept_free",
    "leads_nowhere",
    "locked",
    "make_dirs",
    "new_folders",
    "prune",
    "published_path",
    "read_file",
    "scratch_folder",
    "slot_folders",
    "sync_file",
    "usual_base",
]
