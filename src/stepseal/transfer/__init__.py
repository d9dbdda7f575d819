"""Writes one participant's buffers as a part on storage, and reads stored bytes back verified.

`write_part` returns only when the part is durable. `StepReader` returns no byte before its digest
matched. The checks report damage instead of raising it. No torch: here, a tensor is a box of bytes.
"""

from stepseal.transfer._external import check_external
from stepseal.transfer._read import StepReader
from stepseal.transfer._values import Finding, ReadRequest, StoredBox
from stepseal.transfer._verify import check_coverage, check_files, has_damage, verify_step
from stepseal.transfer._write import write_part

__all__ = [
    "write_part",
    "StepReader", "ReadRequest", "StoredBox",
    "check_files", "check_coverage", "verify_step", "has_damage", "Finding",
    "check_external",
]  # fmt: skip
