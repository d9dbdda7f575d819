"""Paths inside the documents of trees: what stands where, and what is left out of a comparison.

A path joins keys and positions by dots, `groups.0.lr`. The tags of codecs are no steps of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["array_paths", "outline", "without_devices"]

_CONTENT = {"$defaultdict": "items", "$deque": "items", "$object": "state"}
"""Tag to the field that holds what the value itself holds."""
_PLAIN = ("$odict", "$counter")
"""Tags above the node of a dict."""


def without_devices(node: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a document without the devices of its tensors, which differ between ranks."""
    if isinstance(node, list):
        return [without_devices(child) for child in node]
    if not isinstance(node, dict):
        return node
    if isinstance(tensor := node.get("$tensor"), dict):
        return {"$tensor": {key: value for key, value in tensor.items() if key != "device"}}
    return {key: without_devices(child) for key, child in node.items()}


def array_paths(
    document: Any,  # noqa: ANN401 - JSON
    leaves_out: Callable[[str], bool],
) -> tuple[Any, dict[str, str]]:
    """Return a document without what is left out, and the path of each array that stays.

    Args:
        document: of a tree.
        leaves_out: tells of a path whether it is left out, with all below it.
    """
    found: dict[str, str] = {}

    def walk(node: Any, path: str) -> Any:  # noqa: ANN401 - JSON
        if path and leaves_out(path):
            return None
        if isinstance(node, list):
            return [walk(child, below) for _, below, child in _children(node, path)]
        if not isinstance(node, dict):
            return node
        tag = _tag_of(node)
        if tag and _is_leaf(node[tag]):
            found[node[tag]["leaf"]] = path
            return {tag: {**node[tag], "leaf": ""}}
        if tag == "$dict":
            children = zip(node[tag], _children(node, path), strict=True)
            return {tag: [[pair[0], walk(pair[1], below)] for pair, (_, below, _) in children]}
        kept = {"$keys": node["$keys"]} if "$keys" in node else {}
        new = {key: walk(child, below) for key, below, child in _children(node, path)}
        return {tag: new} if tag else kept | new

    return walk(document, ""), found


def outline(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    """Yield each value of a document that holds no others, with its path."""
    if not isinstance(node, (dict, list)) or not node:
        yield path, node
        return
    if isinstance(node, dict) and (tag := _tag_of(node)) and _is_leaf(node[tag]):
        yield path, {key: value for key, value in node[tag].items() if key != "leaf"}
        return
    if isinstance(node, dict) and "$keys" in node:
        yield f"{path} (order of keys)".strip(), node["$keys"]
    for _, below, child in _children(node, path):
        yield from outline(child, below)


def _tag_of(node: dict[str, Any]) -> str:
    """Return the tag of a node; empty for the node of a dict."""
    tag = next(iter(node), "")
    return tag if len(node) == 1 and tag.startswith("$") else ""


def _is_leaf(payload: object) -> bool:
    return isinstance(payload, dict) and isinstance(payload.get("leaf"), str)


def _children(node: dict[str, Any] | list[Any], path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield name, path and node of each child; those of a tagged node stand under its tag."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield str(index), _joined(path, str(index)), child
        return
    tag = _tag_of(node)
    inner: Any = node[tag] if tag else node
    if tag == "$dict":
        for key, child in inner:
            name = key if isinstance(key, str) else json.dumps(key)
            yield name, _joined(path, name), child
    elif not isinstance(inner, dict) or tag in _PLAIN:
        yield tag, path, inner
    else:
        for key, child in inner.items():
            if key != "$keys":
                yield key, path if key == _CONTENT.get(tag) else _joined(path, key), child


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
