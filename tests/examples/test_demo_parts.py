"""The parts of the demo, and all of it once with a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples.demo.compare import bits, component_digest, tensor_differences
from examples.demo.data import ByteLoader, read_library
from examples.demo.jobs import DemoFailed, check, find_torn
from examples.demo.model import GPT
from examples.demo.run import flip_bit, make_folder
from examples.demo.screen import sparkline
from examples.demo.settings import SIZES

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = SIZES["small"].model


def loader(rank: int = 0, *, seed: int = 7) -> ByteLoader:
    text = torch.arange(64 * 13 + 1).to(torch.uint8)
    return ByteLoader(text, 64, 2, rank=rank, num_ranks=2, seed=seed)


def write_torn(root: Path, name: str = "step-8.1.abc") -> Path:
    folder = root / ".stepseal" / "staging" / name
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(b"half")
    return folder


def test_restored_loader_goes_on_with_the_next_window() -> None:
    live = loader()
    for _ in range(5):  # into the second epoch
        live.next_batch()
    other = loader(seed=99)
    other.load_state_dict(live.state_dict())
    assert live.epoch == 1
    for _ in range(8):
        assert torch.equal(other.next_batch(), live.next_batch())
    assert other.state_dict() == live.state_dict()


def test_ranks_get_different_windows() -> None:
    starts = [
        {bits(one[:-1]) for _ in range(3) for one in loader(rank).next_batch()} for rank in (0, 1)
    ]
    assert not starts[0] & starts[1]


def test_loader_refuses_a_text_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="windows per rank"):
        ByteLoader(torch.zeros(65, dtype=torch.uint8), 64, 2, rank=0, num_ranks=1, seed=0)


def test_library_text_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("second")
    (tmp_path / "a.py").write_text("first ")
    (tmp_path / "image.png").write_text("no text")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text("left out")
    assert bits(read_library(folder=tmp_path)) == b"first second"
    assert bits(read_library(3, tmp_path)) == b"fir"


def test_full_model_has_ten_million_parameters() -> None:
    model = GPT(SIZES["full"].model)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 9_000_000 < num_parameters < 12_000_000


def test_model_sees_no_later_byte() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL).eval()
    text = torch.randint(256, (1, 9))
    seen: list[torch.Tensor] = []
    model.head.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits))
    model(text)
    text[0, 7] += 1
    model(text % 256)
    assert torch.equal(seen[0][0, :7], seen[1][0, :7])
    assert not torch.equal(seen[0][0, 7], seen[1][0, 7])


def test_watcher_sees_a_save_with_payload_and_no_manifest(tmp_path: Path) -> None:
    folder = write_torn(tmp_path)
    torn = find_torn(tmp_path, 8)
    assert torn is not None
    assert (torn.step, torn.folder, torn.size_bytes) == (8, folder, 4)


def test_watcher_waits_for_payload(tmp_path: Path) -> None:
    assert find_torn(tmp_path, 8) is None
    folder = write_torn(tmp_path)
    (folder / "__0_0.distcp").write_bytes(b"")
    assert find_torn(tmp_path, 8) is None


def test_watcher_leaves_earlier_and_decided_saves_alone(tmp_path: Path) -> None:
    folder = write_torn(tmp_path)
    assert find_torn(tmp_path, 9) is None
    (folder / "manifest.json").touch()
    assert find_torn(tmp_path, 8) is None


def test_flipped_bit_is_one_bit(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(bytes(9))
    assert flip_bit(path) == 4
    assert sum(byte.bit_count() for byte in path.read_bytes()) == 1


def test_folder_of_somebody_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DemoFailed, match="not empty"):
        make_folder(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_folder_of_an_earlier_demo_is_made_anew(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    (folder / "old").touch()
    make_folder(folder)
    assert not (folder / "old").exists()


def test_claim_that_does_not_hold_stops_the_demo() -> None:
    check(True, "fine")
    with pytest.raises(DemoFailed, match="not fine"):
        check(False, "not fine")


def test_differences_are_found_to_the_bit() -> None:
    ours = {"zero": torch.zeros(2), "same": torch.ones(2)}
    theirs = {"zero": -torch.zeros(2), "same": torch.ones(2), "extra": torch.ones(1)}
    assert tensor_differences(ours, theirs) == ["extra", "zero"]
    assert component_digest({"a": "1"}) != component_digest({"a": "2"})


def test_sparkline_spans_the_scale() -> None:
    assert sparkline([0.0, 1.0, 2.0], 0.0, 2.0, "_-#") == "_-#"
    assert sparkline([1.0], 1.0, 1.0, "_-#") == "_"


@pytest.mark.slow
def test_small_demo_holds_end_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "examples.demo.run", "--small", "--folder", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything held" in done.stdout
    assert (folder / "killed" / "step-16").is_dir()
