"""A journal keeps what is done of a long campaign, and only of the same code; see `_journal`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.harness import _journal
from tests.campaigns.harness._journal import Journal

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Share:
    number: int
    at: tuple[str, ...] = ()


@dataclass
class Report:
    struck: set[str] = field(default_factory=set)


FIRST = (Share(1, ("a", "b")), Report({"x", "y"}))
SECOND = (Share(2), Report())


def open_at(path: Path | None) -> Journal[Share, Report]:
    return Journal(path, Share, Report)


def test_what_is_done_is_there_again_with_the_time_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    journal = open_at(tmp_path / "file")
    now_s = 107.0
    journal.add(*FIRST)
    now_s = 1000.0
    second = open_at(tmp_path / "file")
    now_s = 1003.0
    second.add(*SECOND)
    again = open_at(tmp_path / "file")
    assert again.reports == dict([FIRST, SECOND])
    assert again.seconds == 10.0


@pytest.mark.parametrize("num_bytes", range(1, 12))
def test_a_torn_line_is_done_again(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "file"
    journal = open_at(path)
    journal.add(*FIRST)
    journal.add(*SECOND)
    path.write_bytes(path.read_bytes()[:-num_bytes])
    torn = open_at(path)
    assert torn.reports == dict([FIRST])
    torn.add(*SECOND)
    assert open_at(path).reports == dict([FIRST, SECOND])


def test_what_was_found_of_other_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_at(tmp_path / "file").add(*FIRST)
    monkeypatch.setattr(_journal, "sources", lambda: "other")
    with pytest.raises(ValueError, match="is of other code"):
        open_at(tmp_path / "file")


def test_without_a_file_nothing_stays() -> None:
    open_at(None).add(*FIRST)
    assert open_at(None).reports == {}
