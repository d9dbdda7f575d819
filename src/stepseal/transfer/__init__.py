"""How one participant's buffers become a part on storage, and how stored bytes come back verified.

`write_part` returns only when a part is durable; `StepReader` hands out no byte before its digest
matched; the checks report damage instead of raising it. No torch: a tensor is
a box of bytes here.
"""

from stepseal.transfer._read import StepReader
from stepseal.transfer._values import Finding, ReadRequest, StoredBox
from stepseal.transfer._verify import check_coverage, check_files, has_damage, verify_step
from stepseal.transfer._write import write_part

__all__ = [
    "write_part",
    "StepReader", "ReadRequest", "StoredBox",
    "check_files", "check_coverage", "verify_step", "has_damage", "Finding",
]  # fmt: skip
