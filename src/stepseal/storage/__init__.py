"""Where bytes are: keys and bytes on one root, never steps or ranks.

A key is a safe relative path such as `a/b/c`; `""` is the root directory itself. `Storage` has all
operations that change a root, so a wrapper sees every change. `LocalStorage` is a POSIX directory.
The functions combine these operations into durable writes, conditional puts and tree walks.
Authors of other backends can use the checks of keys and buffers, and the error messages.
"""

# ruff: noqa: I001 - isort would give each name a line, and a face stays under 40 lines

from stepseal.storage._access import Access
from stepseal.storage._buffers import byte_view
from stepseal.storage._compose import (
    create_durable, exists, make_dirs, put_if_absent, read_bytes, remove_tree, replace_durable,
    sweep_temporaries, walk_files,
)  # fmt: skip
from stepseal.storage._keys import check_key, check_pair, split_key
from stepseal.storage._local import LocalStorage
from stepseal.storage._local_root import root_path
from stepseal.storage._mounts import Mount
from stepseal.storage._refusals import refused, short_read, wrong_kind
from stepseal.storage._syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, Syscalls
from stepseal.storage._verbs import (
    Entry, FreeSpace, KeyExists, KeyNotFound, NotSupported, ReadHandle, Storage, SyncReport,
    WriteHandle,
)  # fmt: skip

__all__ = [
    "Storage", "ReadHandle", "WriteHandle", "Entry", "KeyNotFound", "KeyExists", "NotSupported",
    "FreeSpace", "SyncReport", "Mount", "Syscalls", "RENAME_EXCHANGE", "RENAME_NOREPLACE",
    "Access", "LocalStorage", "root_path",
    "exists", "make_dirs", "read_bytes", "create_durable", "put_if_absent", "replace_durable",
    "remove_tree", "sweep_temporaries", "walk_files",
    "byte_view", "check_key", "check_pair", "split_key", "refused", "short_read", "wrong_kind",
]  # fmt: skip
