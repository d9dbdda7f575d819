"""Foreign DCP folders that try to run code, to leave their folder, or to take all memory.

`python -m tests.session._hostile_dcp FOLDER` makes each of them below FOLDER, imports it under an
audit hook, and prints what happened as JSON. With `--naive` it lets pickle load what it can.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.session._hostile_pickles import (
    GADGETS,
    HUGE,
    INERT,
    MARK,
    TENSORS,
    TOUCH,
    VALUES,
    record,
)
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import stepseal as ss

Change = Callable[[Path], None]
PAYLOAD = "__0_0.distcp"
WATCHED = (
    "os.system", "os.exec", "os.posix_spawn", "os.putenv", "subprocess.Popen", "exec", "compile",
    "import", "pickle.find_class", "socket.", "shutil.", "ctypes.dlopen", "builtins.input",
    "marshal.", "os.remove", "os.rename", "os.fork",
)  # fmt: skip


def with_index(change: Callable[[Metadata], None]) -> Change:
    """Change the index as DCP itself sees it."""

    def apply(folder: Path) -> None:
        path = folder / ".metadata"
        metadata: Metadata = pickle.loads(path.read_bytes())
        change(metadata)
        path.write_bytes(pickle.dumps(metadata))

    return apply


def place(**fields: object) -> Change:
    """Change where the tensor lies."""

    def change(metadata: Metadata) -> None:
        key = MetadataIndex("w", [0, 0], 0)
        old = metadata.storage_data[key]
        known = {name: getattr(old, name) for name in ("relative_path", "offset", "length")}
        metadata.storage_data[key] = _StorageInfo(**{**known, **fields})

    return with_index(change)


def _entry(metadata: Metadata) -> Any:  # noqa: ANN401 - of torch
    return metadata.state_dict_metadata["w"]


def _share(metadata: Metadata) -> None:
    metadata.storage_data[MetadataIndex("v", [0], 0)] = metadata.storage_data[
        MetadataIndex("w", [0, 0], 0)
    ]


def _grow(metadata: Metadata) -> None:
    size = torch.Size([1 << 58, 8])
    _entry(metadata).size = _entry(metadata).chunks[0].sizes = size


def _set(**fields: object) -> Change:
    def change(metadata: Metadata) -> None:
        for name, value in fields.items():
            setattr(_entry(metadata), name, value)

    return with_index(change)


def _chunk(**fields: object) -> Change:
    def change(metadata: Metadata) -> None:
        for name, value in fields.items():
            setattr(_entry(metadata).chunks[0], name, value)

    return with_index(change)


def _nested_gadget(folder: Path) -> None:
    """Hide the gadget where DCP allows anything."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = _Evil()
    path.write_bytes(pickle.dumps(metadata))


class _Evil:
    def __reduce__(self) -> Any:  # noqa: ANN401 - of pickle
        return exec, (TOUCH,)


def _symlink(folder: Path) -> None:
    payload = folder / PAYLOAD
    payload.rename(folder.parent / "outside")
    payload.symlink_to(folder.parent / "outside")


def _fifo(folder: Path) -> None:
    (folder / PAYLOAD).unlink()
    os.mkfifo(folder / PAYLOAD)


def _truncate(folder: Path) -> None:
    with (folder / PAYLOAD).open("r+b") as file:
        file.truncate(1000)


INDEX: dict[str, Change] = {
    "nested_in_planner_data": _nested_gadget,
    "path_up": place(relative_path="../outside/x"),
    "path_absolute": place(relative_path="/etc/passwd"),
    "path_dot": place(relative_path="./__0_0.distcp"),
    "path_nul": place(relative_path="a\0b"),
    "path_is_int": place(relative_path=7),
    "beyond_the_file": place(offset=1 << 40),
    "length_huge": place(length=HUGE),
    "length_huge_sum": place(offset=HUGE - 1, length=HUGE - 1),
    "length_zero": place(length=0),
    "offset_negative": place(offset=-1),
    "offset_is_bool": place(offset=True),
    "transformed": place(transform_descriptors=["zstd"]),
    "shared_record": with_index(_share),
    "shape_huge": _set(size=torch.Size([HUGE, 4])),
    "shape_and_chunk_huge": with_index(_grow),
    "chunk_outside": _chunk(sizes=torch.Size([9, 9])),
    "chunk_small": _chunk(sizes=torch.Size([1, 3])),
    "chunks_none": _set(chunks=[]),
    "chunks_no_list": _set(chunks=None),
    "properties_none": _set(properties=None),
    "symlink": _symlink,
    "fifo": _fifo,
    "truncated": _truncate,
    "missing_payload": lambda folder: (folder / PAYLOAD).unlink(),
    "no_place": with_index(lambda m: m.storage_data.clear()),
}


def put_record(fqn: str, data: bytes, tensor_fqn: str = "w") -> Change:
    """Put a record of its own file in the place of the tensor's, or of the value's."""

    def apply(folder: Path) -> None:
        (folder / "__9_9.distcp").write_bytes(data)
        info = _StorageInfo("__9_9.distcp", 0, len(data))
        is_tensor = fqn == "w"
        key = MetadataIndex(tensor_fqn, [0, 0], 0) if is_tensor else MetadataIndex(fqn)
        with_index(lambda m: m.storage_data.update({key: info}))(folder)

    return apply


def put_index(data: bytes) -> Change:
    def apply(folder: Path) -> None:
        (folder / ".metadata").write_bytes(data)

    return apply


def corpus() -> dict[str, Change]:
    """Return every hostile folder as a change of a good one."""
    cases = {f"index/{name}": change for name, change in INDEX.items()}
    for name, data in (*GADGETS.items(), *INERT.items()):
        cases[f"index/{name}"] = put_index(data)
        if name != "self_containing":
            cases[f"tensor/{name}"] = put_record("w", record(data))
            cases[f"value/{name}"] = put_record("n.a", record(data))
    for name in ("no_metadata", "memo_of_millions"):  # good values
        cases.pop(f"value/{name}", None)
    cases["value/self_containing"] = put_record("n.a", record(INERT["self_containing"]))
    cases |= {f"tensor/{name}": put_record("w", data) for name, data in TENSORS.items()}
    cases |= {f"value/{name}": put_record("n.a", data) for name, data in VALUES.items()}
    return cases


def make_good(folder: Path) -> None:
    """Write a good folder with stock DCP."""
    state = {"w": torch.arange(6.0).view(2, 3), "v": torch.ones(2), "n": {"a": (1, 2.5, None)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_save(state, checkpoint_id=str(folder))


class Watch:
    """Collects audit events while it is on."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.events is not None and event.startswith(WATCHED):
            self.events.append(f"{event} {args!r:.100}")


def picture(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((p.name, p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.iterdir())


def try_import(folder: Path, root: Path, watch: Watch) -> dict[str, object]:
    before, rss = picture(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, watch.events = time.process_time(), []
    try:
        ss.import_dcp(folder, root, step=1)
        outcome, message = "imported", ""
    except ss.errors.CheckpointError as error:
        outcome, message = type(error).__name__, str(error)
    except BaseException as error:
        outcome, message = f"untyped {type(error).__name__}", str(error)[:300]
    events, watch.events = watch.events, None
    return {
        "outcome": outcome,
        "message": message,
        "events": events,
        "seconds": time.process_time() - started,
        "grown_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss) / 1024,
        "unchanged": picture(folder) == before,
        "executed": Path(MARK).exists(),
        "root_made": root.exists(),
    }


def main(place_: str, naive: bool) -> None:
    os.chdir(place_)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    good = Path("good")
    make_good(good)
    if naive:
        found = {}
        for name, data in GADGETS.items():
            Path(MARK).unlink(missing_ok=True)
            try:
                pickle.loads(data)
            except Exception as error:
                print(name, repr(error), file=sys.stderr)
            found[name] = Path(MARK).exists()
        print(json.dumps(found))
        return
    watch = Watch()
    report = {"good": try_import(good, Path("root"), watch)}
    for name, change in corpus().items():
        folder = Path("cases") / name / "checkpoint"
        shutil.copytree(good, folder)
        change(folder)
        report[name] = try_import(folder, Path("roots") / name, watch)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], "--naive" in sys.argv)
