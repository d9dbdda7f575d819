"""Every decoder of hostile bytes gives a typed error, or a value that stands for exactly these
bytes, soon; and the campaign notices decoders from which one check was taken.
"""

from __future__ import annotations

import pytest
from tests.campaigns.fuzz._targets import FUZZ_CORPUS, TARGETS
from tests.campaigns.fuzz.run import VARIANTS, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_decoders_withstand_edited_inputs_and_broken_ones_are_noticed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = run("fast")
    with capsys.disabled():
        print(f"\n{row.text()}")
    assert row.good, (row.violations, row.missed)
    assert len(row.caught) == len(VARIANTS)
    assert row.cases > 100 * len(TARGETS)


def test_the_kept_corpus_is_small_and_belongs_to_targets() -> None:
    files = [path for path in FUZZ_CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    assert {path.parent.name for path in files} <= TARGETS.keys()


@pytest.mark.nightly
@pytest.mark.timeout(3 * 3600)
def test_decoders_withstand_guided_fuzzing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris", reason="needs atheris: pip install stepseal[fuzz]")
    row = run("nightly")
    with capsys.disabled():
        print(f"\n{row.text()}", *row.notes, sep="\n  ")
    assert row.good, (row.violations, row.missed)
