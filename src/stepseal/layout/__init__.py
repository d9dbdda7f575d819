"""What the bytes mean: names, boxes, digests, the manifest, part documents and part indexes.

Pure values and functions over them; no I/O and no torch. What is read here is hostile until it is
checked: decoders return a sound value, or raise `Corrupt` or `IncompatibleFormat`, in bounded time.
"""
# ruff: noqa: I001 - names side by side keep the face on one page
# fmt: off

from stepseal.layout._boxes import (Box, coverage_problems, hull, intersect, linear_boxes,
    linear_range, whole)
from stepseal.layout._container import (MAX_HEADER_BYTES, MAX_NDIM, ContainerEntry, ContainerHeader,
    build_header, header_size, parse_header)
from stepseal.layout._contents import (ArraySource, BytesSource, Frame, PartContents, TensorSink,
    TensorSource, TreeSource)
from stepseal.layout._digests import (CHUNK_BYTES, DIGEST_ALGORITHM, DIGEST_BYTES, Buffer,
    chunk_digests, digest, hex_digests, num_chunks, sha256_hex)
from stepseal.layout._documents import (MAX_DOCUMENT_BYTES, MAX_INT, DocumentLimits,
    decode_document, encode_document, refuse, seal, unseal)
from stepseal.layout._dtypes import FROM_SAFETENSORS, ITEMSIZE, TO_SAFETENSORS
from stepseal.layout._index import MAX_INDEX_BYTES, decode_index, encode_index
from stepseal.layout._items import (MAX_ITEMS, PartIndex, StoredBytes, StoredItem, StoredTensor,
    index_problems)
from stepseal.layout._manifest import (MAX_MANIFEST_BYTES, MAX_PARTICIPANTS, ComponentEntry,
    ComponentKind, Durability, Lineage, Manifest, PartRef, SharingName, StepKind, decode_manifest,
    encode_manifest, manifest_digest)
from stepseal.layout._names import (CONTROL, DCP_INDEX, LATEST, MANIFEST, MARKER, MAX_STEP,
    check_component_name, check_participant, check_step, dcp_fqn, dcp_path, is_safe_path,
    parse_payload_path, parse_step_name, part_document_path, part_index_path, path_problem,
    path_set_problems, payload_path, step_name, tree_document_path, tree_segment_path)
from stepseal.layout._part import MAX_PART_BYTES, Part, decode_part, encode_part
from stepseal.layout._records import FORMAT_VERSION, DocumentRef, FileEntry, Role
from stepseal.layout._times import time_problem, unix_time, utc_text

__all__ = [
    "ArraySource", "Box", "Buffer", "BytesSource", "CHUNK_BYTES", "CONTROL", "ComponentEntry",
    "ComponentKind", "ContainerEntry", "ContainerHeader", "DCP_INDEX", "DIGEST_ALGORITHM",
    "DIGEST_BYTES", "DocumentLimits", "DocumentRef", "Durability", "FORMAT_VERSION",
    "FROM_SAFETENSORS", "FileEntry", "Frame", "ITEMSIZE", "LATEST", "Lineage", "MANIFEST", "MARKER",
    "MAX_DOCUMENT_BYTES", "MAX_HEADER_BYTES", "MAX_INDEX_BYTES", "MAX_INT", "MAX_ITEMS",
    "MAX_MANIFEST_BYTES", "MAX_NDIM", "MAX_PARTICIPANTS", "MAX_PART_BYTES", "MAX_STEP", "Manifest",
    "Part", "PartContents", "PartIndex", "PartRef", "Role", "SharingName", "StepKind",
    "StoredBytes", "StoredItem", "StoredTensor", "TO_SAFETENSORS", "TensorSink", "TensorSource",
    "TreeSource", "build_header", "check_component_name", "check_participant", "check_step",
    "chunk_digests", "coverage_problems", "dcp_fqn", "dcp_path", "decode_document", "decode_index",
    "decode_manifest", "decode_part", "digest", "encode_document", "encode_index",
    "encode_manifest", "encode_part", "header_size", "hex_digests", "hull", "index_problems",
    "intersect", "is_safe_path", "linear_boxes", "linear_range", "manifest_digest", "num_chunks",
    "parse_header", "parse_payload_path", "parse_step_name", "part_document_path",
    "part_index_path", "path_problem", "path_set_problems", "payload_path", "refuse", "seal",
    "sha256_hex", "step_name", "time_problem", "tree_document_path", "tree_segment_path",
    "unix_time", "unseal", "utc_text", "whole",
]
