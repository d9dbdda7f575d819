"""What a job must not tell is in no file of a root, no log record, no error and no pickle of one:
its environment, its arguments, and the token of its control plane.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.harness._small_job import new_folder
from tests.protocol._conversations import PATIENT, Inbox

from stepseal import errors
from stepseal.protocol import Address, SocketHub, SocketLink, failure_of
from stepseal.protocol import _messages as messages
from stepseal.protocol._wire import pack_message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENVIRONMENT, ARGUMENT, TOKEN = "canary-env-7f3a", "canary-argv-91c2", "canary-token-4be8"
JOB = """
import json, logging, sys, pickle
import torch
import stepseal as ss
from stepseal.session import _job

said = []
class Keep(logging.Handler):
    def emit(self, record):
        said.append(logging.Formatter().format(record) + repr(record.__dict__))
logging.getLogger().addHandler(Keep())
logging.getLogger().setLevel(0)

def attempt(call):
    try:
        call()
    except Exception as error:
        said.append(repr(error) + str(error) + repr(pickle.dumps(error)) + repr(error.__dict__))

root = sys.argv[1]
state = {"w": torch.arange(4.0)}
with ss.Checkpointer(root, mode="async") as ckpt:
    ckpt.add("model", state)
    ckpt.add("rng", ss.RNG())
    ckpt.restore()
    ckpt.save(1, metrics={"loss": 1.0}, tags=["a"], cut={"policy": 3}).wait()
    attempt(lambda: ckpt.save(1).wait())
    attempt(lambda: ckpt.save(-1))
state["v"] = torch.arange(3)
with ss.Checkpointer(root) as ckpt:
    ckpt.add("model", state)
    attempt(ckpt.restore)
run = ss.open(root)
attempt(lambda: run.step(9))
said.append(repr(run.step(1).manifest))
open(root + "/step-1/__0_0.distcp", "r+b").write(b"x" * 100)
said.append(repr(run.step(1).verify()))
attempt(lambda: run.step(1).tensors())
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[str, Path]]:
    """Return all that a job said, and its root."""
    with new_folder() as folder:
        done = subprocess.run(
            [sys.executable, "-c", JOB, str(folder / "root"), f"--api-key={ARGUMENT}"],
            env={
                **os.environ,
                "PYTHONPATH": ":".join(sys.path),
                "AWS_SECRET_ACCESS_KEY": ENVIRONMENT,
                "WANDB_API_KEY": ENVIRONMENT,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(json.loads(done.stdout)) > 4
        yield done.stdout + done.stderr, folder / "root"


@pytest.mark.slow
@pytest.mark.parametrize("secret", [ENVIRONMENT, ARGUMENT])
def test_environment_and_arguments_are_in_no_file_and_no_message(
    secret: str, told: tuple[str, Path]
) -> None:
    said, root = told
    assert secret not in said
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert secret.encode() not in path.read_bytes(), path


def test_the_token_is_in_no_text_of_an_address_or_a_message() -> None:
    address = Address("host", 1, TOKEN)
    hello = messages.Hello("a", TOKEN, "0")
    for value in (address, hello, copy.copy(hello), [hello], {"m": hello}):
        assert TOKEN not in f"{value!r} {value}"


def test_the_token_is_in_no_error_and_no_log_of_the_control_plane(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inbox = Inbox()
    hub = SocketHub("127.0.0.1", ("a", "b"), TOKEN, PATIENT, "1")
    hub.start(inbox)
    said: list[str] = []
    with caplog.at_level(logging.DEBUG):
        for name, version in (("a", "1"), ("a", "1"), ("b", "2"), ("stranger", "1")):
            peer = socket.create_connection((hub.address.host, hub.address.port), timeout=30)
            with peer:
                hello = messages.Hello(name, TOKEN, version)
                peer.sendall(
                    pack_message(messages.encode_message(hello))
                    + pack_message(b"garbage" + b"x" * 9)
                )
                while data := peer.recv(4096):
                    said.append(repr(data))
        hub.close()
    said += [record.getMessage() + repr(record.__dict__) for record in caplog.records]
    while not inbox.taken.empty():
        said.append(repr(inbox.next()))
    assert "runs stepseal" in "".join(said)
    assert TOKEN not in "".join(said)
    with pytest.raises(errors.CoordinatorLost) as caught:
        SocketLink(hub.address, "a", PATIENT, "1")
    assert TOKEN not in repr(caught.value) + repr(pickle.dumps(caught.value))
    assert TOKEN not in repr(failure_of(caught.value))
