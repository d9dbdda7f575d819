"""What the bytes mean: names, boxes, digests, the manifest, part documents and part indexes.

Pure: no I/O, no torch. Hostile input raises `Corrupt` or `IncompatibleFormat`, in bounded time.
"""

# ruff: noqa: I001 - names side by side keep the face on one page
# fmt: off
from stepseal.layout._areas import Area
from stepseal.layout._boxes import Box, coverage_problems, hull, intersect, linear_boxes, whole
from stepseal.layout._container import ContainerEntry, build_header, parse_header
from stepseal.layout._contents import (ArraySource, BufferData, BytesSource, DataSource, Frame,
    PartContents, TensorSink, TensorSource, TreeContents, TreeSource)
from stepseal.layout._digests import (CHUNK_BYTES, DIGEST_BYTES, Buffer, chunk_digests, digest,
    digest_of_all, digest_of_chunks, hex_digests, num_chunks, sha256_hex)
from stepseal.layout._documents import decode_document, encode_document, refuse, seal, unseal
from stepseal.layout._dtypes import ITEMSIZE, TO_SAFETENSORS
from stepseal.layout._index import MAX_INDEX_BYTES, decode_index, encode_index
from stepseal.layout._items import PartIndex, StoredBytes, StoredItem, StoredTensor, payload_sizes
from stepseal.layout._manifest import (MAX_MANIFEST_BYTES, ComponentEntry, ComponentKind,
    Durability, StepRef, Manifest, Metrics, PartRef, SharingName, decode_manifest, encode_manifest,
    holders_of, manifest_digest)
from stepseal.layout._names import (CONTROL, DCP_INDEX, LATEST, MANIFEST, MARKER,
    MAX_DCP_INDEX_BYTES, MAX_STEP, check_component_name, check_participant, check_step, dcp_fqn,
    dcp_path, external_folder, parse_payload_path, parse_step_name, part_document_path,
    part_index_path, path_problem, path_set_problems, payload_path, role_of, step_name,
    tree_document_path, tree_segment_path)
from stepseal.layout._ownership import (PayloadReport, agreeing, can_read, fits_world,
    holds_own_keys, payload_owner, payload_owners, payload_problems, payload_report, rule_of,
    shared_out, writes_plain, writes_replica)
from stepseal.layout._part import MAX_PART_BYTES, Part, decode_part, encode_part, part_bytes
from stepseal.layout._replicas import replica_problems
from stepseal.layout._saved_sets import saved_sharing, sets_option
from stepseal.layout._sealed import FORMAT_VERSION, DocumentRef, FileEntry
from stepseal.layout._sharing import (AnySharing, Division, Sharing, coordinate_at, divided,
    division_problems, numbered_sets, set_of_ranks)
from stepseal.layout._times import duration_text, size_text, unix_time, utc_text

__all__ = [
    "AnySharing", "Area", "ArraySource", "Box", "Buffer", "BufferData", "BytesSource",
    "CHUNK_BYTES", "CONTROL", "ComponentEntry", "ComponentKind", "ContainerEntry", "DCP_INDEX",
    "DIGEST_BYTES", "DataSource", "Division", "DocumentRef", "Durability", "FORMAT_VERSION",
    "FileEntry", "Frame", "ITEMSIZE", "LATEST", "MANIFEST", "MARKER", "MAX_DCP_INDEX_BYTES",
    "MAX_INDEX_BYTES", "MAX_MANIFEST_BYTES", "MAX_PART_BYTES", "MAX_STEP", "Manifest", "Metrics",
    "Part", "PartContents", "PartIndex", "PartRef", "PayloadReport", "Sharing", "SharingName",
    "StepRef", "StoredBytes", "StoredItem", "StoredTensor", "TO_SAFETENSORS", "TensorSink",
    "TensorSource", "TreeContents", "TreeSource", "agreeing", "build_header", "can_read",
    "check_component_name", "check_participant", "check_step", "chunk_digests", "coordinate_at",
    "coverage_problems", "dcp_fqn", "dcp_path", "decode_document", "decode_index",
    "decode_manifest", "decode_part", "digest", "digest_of_all", "digest_of_chunks", "divided",
    "division_problems", "duration_text", "encode_document", "encode_index", "encode_manifest",
    "encode_part", "external_folder", "fits_world", "hex_digests", "holders_of", "holds_own_keys",
    "hull", "intersect", "linear_boxes", "manifest_digest", "num_chunks", "numbered_sets",
    "parse_header", "parse_payload_path", "parse_step_name", "part_bytes", "part_document_path",
    "part_index_path", "path_problem", "path_set_problems", "payload_owner", "payload_owners",
    "payload_path", "payload_problems", "payload_report", "payload_sizes", "refuse",
    "replica_problems", "role_of", "rule_of", "saved_sharing", "seal", "set_of_ranks",
    "sets_option", "sha256_hex", "shared_out", "size_text", "step_name", "tree_document_path",
    "tree_segment_path", "unix_time", "unseal", "utc_text", "whole", "writes_plain",
    "writes_replica",
]
