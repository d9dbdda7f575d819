"""The documents are true where a machine can tell: code runs, links lead somewhere, words agree."""

from __future__ import annotations

import ast
import os
import random
import re
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from torch import nn

from stepseal import errors
from stepseal.cli import main
from stepseal.components import Sharing
from stepseal.layout import decode_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
SKIPPED = {"runs", "build", "dist", "node_modules"}
DOCUMENTS = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not any(
        part.startswith(".") or part in SKIPPED for part in path.relative_to(REPOSITORY).parts
    )
)
NAMES = [str(path.relative_to(REPOSITORY)) for path in DOCUMENTS]
FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ABSOLUTE = re.compile(r"(?<![\w.<>/*-])/(?:home|root|tmp|work|Users|mnt|data|opt|usr|var|private)/")
MAX_COLUMNS = 120


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text("utf-8")


def blocks_of(name: str, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(text_of(name)) if found == language]


def prose_of(name: str) -> str:
    """Return a document without its fenced blocks."""
    return FENCE.sub("", text_of(name))


def table_under(name: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without its two head lines."""
    lines = iter(text_of(name).split(heading, 1)[1].splitlines())
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            break
    return rows[2:]


class Loader:
    """A data loader that knows where it stands."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(150):
            self.position += 1
            yield torch.ones(2, 3)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Net(nn.Module):
    """A model with a layer 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3)])

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers[0](batch)
        return found


def preamble(num_steps: int) -> dict[str, Any]:
    """Return what the documents leave to the reader."""
    model, loader = Net(), Loader()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)

    def train_step(batch: torch.Tensor) -> float:
        if loader.position % 100 == 1:  # otherwise hundreds of real steps would only cost time
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
            scheduler.step()
        return 1 / loader.position

    return {
        "__name__": "__main__",
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loader": loader,
        "train_step": train_step,
        "num_steps": num_steps,
    }


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run in an empty folder, as the only rank of a job, and leave no trace in this process."""
    streams = random.getstate(), torch.get_rng_state(), np.random.get_state(legacy=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    job = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for key, value in job.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if dist.is_initialized():
        dist.destroy_process_group()
    random.setstate(streams[0])
    torch.set_rng_state(streams[1])
    np.random.set_state(streams[2])


def run_blocks(name: str, names: dict[str, Any]) -> None:
    """Run all Python blocks of a document, one after the other, in one namespace."""
    for number, code in enumerate(blocks_of(name, "python")):
        place = f"{name}, Python block {number + 1}"
        exec(compile(code, place, "exec", dont_inherit=True), names)


def run_commands(name: str) -> None:
    """Run the lines of a document's blocks that call the command line."""
    lines = [line for _, code in FENCE.findall(text_of(name)) for line in code.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("stepseal ")]
    assert commands
    for _, *arguments in commands:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"


pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled:UserWarning",
    "ignore:TORCH_NCCL_:UserWarning",
)


def test_documents_with_code_are_known() -> None:
    """A document with Python code gets a test of its own below."""
    found = [name for name in NAMES if blocks_of(name, "python")]
    assert found == ["README.md", "docs/custom-trainers.md", "docs/user-guide.md"]


@pytest.mark.slow
def test_readme_runs(workplace: Path) -> None:
    names = preamble(num_steps=1000)
    run_blocks("README.md", names)
    assert {path.name for path in workplace.glob("runs/a/step-*")} == {"step-500", "step-1000"}
    run_commands("README.md")
    (expression,) = re.findall(r"`(ss\.open\([^`]*)`", prose_of("README.md"))
    assert eval(expression, names).keys() == {"layers.0.weight", "layers.0.bias"}


@pytest.mark.slow
def test_user_guide_runs(workplace: Path) -> None:
    names = preamble(num_steps=200)
    run_blocks("docs/user-guide.md", names)
    run_commands("docs/user-guide.md")
    assert names["weights"].keys() == {"layers.0.weight", "layers.0.bias"}
    assert len(names["moments"]) == 2
    assert names["position"] == {"position": 200}
    assert all(
        torch.equal(names["state"][name], names["weights"][name]) for name in names["weights"]
    )


@pytest.mark.slow
def test_guide_for_authors_of_trainers_runs(workplace: Path) -> None:
    names = preamble(num_steps=0)
    run_blocks("docs/custom-trainers.md", names)
    assert names["counts"] == {"samples": 32}
    sharings = []
    for step in (1, 2):
        manifest = decode_manifest(Path(f"runs/data/step-{step}/manifest.json").read_bytes())
        sharings += [one.sharing for one in manifest.components]
    assert sharings == ["global", "per_rank"]


def test_user_guide_names_every_error_once() -> None:
    rows = table_under("docs/user-guide.md", "## Errors and what to do")
    assert sorted(f"`{name}`" for name in errors.__all__ if name != "CheckpointError") == sorted(
        row[0] for row in rows
    )


def test_user_guide_names_every_exit_code() -> None:
    codes = {getattr(errors, name).exit_code for name in errors.__all__}
    rows = table_under("docs/user-guide.md", "## Command line")
    assert {int(row[0]) for row in rows} == codes | {0}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    folder = (REPOSITORY / name).parent
    targets = [target for target in LINK.findall(prose_of(name)) if "://" not in target]
    missing = [t for t in targets if not (folder / t.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_a_machine(name: str) -> None:
    assert [line for line in text_of(name).splitlines() if ABSOLUTE.search(line)] == []


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_short(name: str) -> None:
    lines = [line for line in prose_of(name).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("name", NAMES)
def test_fences_are_closed(name: str) -> None:
    assert text_of(name).count("```") == 2 * len(FENCE.findall(text_of(name)))


@pytest.mark.parametrize("name", ["README.md", "docs/custom-trainers.md", "docs/user-guide.md"])
def test_code_parses_in_the_oldest_python(name: str) -> None:
    for code in blocks_of(name, "python"):
        ast.parse(code, feature_version=(3, 10))


def test_design_notes_have_numbers_of_their_own_and_five_sections() -> None:
    notes = sorted((REPOSITORY / "docs" / "design").iterdir())
    numbers = [path.name[:4] for path in notes]
    assert numbers == sorted(set(numbers))  # with gaps, where notes are written side by side
    for path in notes:
        title, *sections = re.findall(r"^##? (.*)$", path.read_text("utf-8"), re.MULTILINE)
        assert re.fullmatch(r"[0-9]{4}-[a-z0-9-]+\.md", path.name)
        assert title.startswith(f"{path.name[:4]} ")
        assert sections == ["Problem", "Design", "Alternatives", "Caveats", "Testing"]


def test_glossary_has_each_word_once() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", text_of("docs/glossary.md"), re.MULTILINE)
    assert len(words) > 40
    assert sorted(words) == sorted({word.casefold(): word for word in words}.values())


def test_glossary_knows_every_sharing() -> None:
    words = set(re.findall(r"^\| \*\*([A-Z_]+)\*\*", text_of("docs/glossary.md"), re.MULTILINE))
    assert words == {sharing.name for sharing in Sharing} | {"PER_GROUP", "PER_NODE"}


def test_every_proof_of_the_readme_exists() -> None:
    rows = table_under("README.md", "## What it promises")
    assert len(rows) == 9
    for promise, proof in rows:
        paths = re.findall(r"`((?:tests|scripts)/[^`]*)`", proof)
        assert paths, promise
        for path in paths:
            found = list(REPOSITORY.glob(path.removesuffix("/")))
            tests = [t for one in found if one.is_dir() for t in one.glob("test_*.py")]
            assert [one for one in found if one.is_file()] or tests, f"{promise}: {path}"


def test_every_way_to_parallelise_has_a_page_and_tests_that_exist() -> None:
    code = text_of("tests/examples/test_parallel.py")
    rows = table_under("docs/parallelism.md", "# Parallelism")
    for way, _, *cells in rows:
        assert LINK.search(way), way
        for cell in cells:
            name = re.match(r"`(test_[a-z0-9_]+)`", cell)
            assert cell == "does not apply" or (name and f"def {name[1]}(" in code), cell
    pages = {path.name for path in (REPOSITORY / "docs" / "parallel").iterdir()}
    assert {LINK.search(row[0])[1].removeprefix("parallel/") for row in rows} == pages  # type: ignore[index]


def test_every_failure_of_the_protocol_has_a_test_that_exists() -> None:
    rows = table_under("docs/protocol.md", "## What if X dies while Y")
    code = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for *_, proof in rows:
        name = re.fullmatch(r"`(test_[a-z0-9_]+)`", proof)
        assert name, proof
        assert f"def {name[1]}(" in code, proof


def test_changes_are_named_by_their_type() -> None:
    folder = REPOSITORY / "changes"
    names = os.listdir(folder) if folder.exists() else []
    types = "feature|fix|removal|docs"
    wrong = [n for n in names if not re.fullmatch(rf"[a-z0-9-]+\.({types})\.md|\.gitkeep", n)]
    assert wrong == []
