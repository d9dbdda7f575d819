"""One rank on a host whose name, and what the name leads to, changes from scene to scene.

Arguments: folder for roots and results, scenes as JSON. A scene has `name`, `hostname` and `names`
(one for each rank: the host's name, and lines of its hosts file), `host` and `port` (the control
arguments), and `taken` (a port that rank 0 takes before). A result is one line of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import stepseal as ss
from stepseal import errors

DEADLINES = ss.Deadlines(connect_s=20, close_s=200)
"""Whoever waits in `close` for a rank that never came is seen by the time that it takes."""


def listening() -> set[tuple[str, str]]:
    """Return the addresses of this host that something listens on, with their ports."""
    found = set()
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        place, state = line.split()[1], line.split()[3]
        if state == "0A":
            address, port = place.split(":")
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), port))
    return found


def play(scene: dict[str, Any], rank: int, folder: Path) -> dict[str, Any]:
    socket.sethostname(scene["hostname"][rank])
    Path(os.environ["STEPSEAL_NAMES"]).write_text(
        "127.0.0.1 localhost\n" + scene["names"][rank], "ascii"
    )
    taken = scene.get("taken")
    blocker = None
    if taken and rank == 0:
        blocker = socket.create_server(("", taken), family=socket.AF_INET)
    port = scene.get("port")
    result: dict[str, Any] = {"scene": scene["name"]}
    before = listening()
    dist.barrier()
    begun = time.monotonic()
    try:
        with ss.Checkpointer(
            folder / f"root-{scene['name']}",
            deadlines=DEADLINES,
            control_host=scene.get("host"),
            control_port=range(*port) if isinstance(port, list) else port,
        ) as ckpt:
            result["listening"] = sorted(address for address, _ in listening() - before)
            ckpt.add("state", {"w": torch.zeros(2)})
            ckpt.restore()
            result["saved"] = ckpt.save(1).wait().step
    except errors.CheckpointError as error:
        result |= {"kind": error.kind, "text": str(error), "problems": error.problems}
    result["took_s"] = time.monotonic() - begun
    if blocker is not None:
        blocker.close()
    dist.barrier()
    return result


def main() -> None:
    folder, scenes = Path(sys.argv[1]), json.loads(sys.argv[2])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    with (folder / f"results.{rank}").open("w", buffering=1) as results:
        for scene in scenes:
            print(json.dumps(play(scene, rank, folder)), file=results)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
