"""Conversions that do not fit are refused, and nothing is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._converting import refused, restored, saved
from torch import nn

import stepseal as ss

if TYPE_CHECKING:
    from pathlib import Path

InvalidInput = ss.errors.InvalidInput
FP32, INT64, UINT8, COMPLEX = torch.float32, torch.int64, torch.uint8, torch.complex64


def test_two_saved_keys_that_become_one_are_refused(tmp_path: Path) -> None:
    old = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    new = nn.ModuleDict({"c": nn.Linear(1, 1, bias=False)})
    saved(tmp_path, old)
    for conversion in (
        ss.Conversion(prefix={"a.": "c.", "b.": "c."}),
        ss.Conversion(rename={"a.weight": "c.weight", "b.weight": "c.weight"}),
    ):
        problems = refused(tmp_path, new, conversion)
        assert problems == (
            "component model: c.weight: two saved keys become it, a.weight and b.weight",
        )
    problems = refused(tmp_path, nn.ModuleDict({"b": new["c"]}), ss.Conversion(prefix={"a.": "b."}))
    assert problems == (
        "component model: b.weight: two saved keys become it, a.weight and b.weight",
    )


def test_every_entry_must_have_an_effect(tmp_path: Path) -> None:
    saved(tmp_path, nn.Linear(2, 2))
    conversion = ss.Conversion(
        prefix={"module.": ""}, rename={"w": "weight"}, drop=["head.*"], keep=["lora.*"]
    )
    assert refused(tmp_path, nn.Linear(2, 2, bias=False), conversion) == (
        "component model: drop: no saved key matches 'head.*'",
        "component model: rename: no saved key is 'w'",
        "component model: prefix: no saved key begins with 'module.'",
        "component model: keep: no live key matches 'lora.*'",
    )
    kept_too = ss.Conversion(keep=["weight"])
    assert refused(tmp_path, nn.Linear(2, 2), kept_too) == (
        "component model: weight: it is in keep=, but the saved weight would go there: add that to "
        "drop=, or take this out of keep=",
    )


@pytest.mark.parametrize("listens", [False, True])
def test_a_key_that_gets_nothing_is_told_why(tmp_path: Path, listens: bool) -> None:
    class Listening(nn.Linear):
        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            super()._load_from_state_dict(*args, **kwargs)

    old = nn.ModuleDict({"body": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    saved(tmp_path, nn.ModuleDict({"module": old}))
    new = nn.ModuleDict({**old, "lora": nn.Linear(1, 1, bias=False)})
    if listens:  # a module with its own load has other code that compares
        new["body"] = Listening(1, 1)
    conversion = ss.Conversion(prefix={"module.": ""}, drop=["*.head.*"])
    why = (
        "component model: {0}: missing in the checkpoint, because drop= matches the saved "
        "module.{0}: add {0} to keep= if it stays as it is, or take the saved key out of drop="
    )
    assert refused(tmp_path, new, conversion) == (
        why.format("head.weight"),
        why.format("head.bias"),
        "component model: lora.weight: missing in the checkpoint: if it is new in the module, add "
        "it to keep=",
    )
    kept = replace(conversion, keep=["head.*", "lora.*"])
    assert "converted: 2 renamed, 2 dropped, 3 kept" in restored(tmp_path, new, kept)


@pytest.mark.parametrize(
    ("live", "entries"),
    [
        (nn.Linear(1, 1, dtype=torch.float16), "cast=..."),
        (nn.Linear(1, 1, bias=False), "drop=..."),
        (nn.ModuleDict({"a": nn.Linear(1, 1)}), "rename=..., keep=..., drop=..."),
        (nn.Linear(2, 1), "..."),
    ],
)
def test_differences_lead_to_the_entries_that_take_them_away(
    tmp_path: Path, live: nn.Module, entries: str
) -> None:
    saved(tmp_path, nn.Linear(1, 1))
    with pytest.raises(ss.errors.StateMismatch) as caught:
        ss.load(tmp_path, model=live)
    assert f"convert={{'model': ss.Conversion({entries})}}" in str(caught.value)


def test_a_cast_to_another_dtype_than_the_live_one_leads_to_the_cast(tmp_path: Path) -> None:
    saved(tmp_path, nn.Linear(1, 1))
    live = nn.Linear(1, 1, dtype=torch.float16)
    with pytest.raises(ss.errors.StateMismatch) as caught:
        ss.load(tmp_path, model=live, convert={"model": ss.Conversion(cast={FP32: torch.bfloat16})})
    assert "Correct convert['model'] (cast=...), or leave it out" in str(caught.value)


def test_a_conversion_that_is_left_in_the_script_is_told_to_go(tmp_path: Path) -> None:
    saved(tmp_path, nn.ModuleDict({"new": nn.Linear(2, 2)}))
    conversion = ss.Conversion(prefix={"old.": "new."})
    assert refused(tmp_path, nn.ModuleDict({"new": nn.Linear(2, 2)}), conversion) == (
        "component model: the step has the keys of the live module already: leave the conversion "
        "out",
    )
    with pytest.raises(
        ss.errors.StateMismatch, match=r"Correct convert\['model'\], or leave it out"
    ):
        ss.load(
            tmp_path,
            model=nn.ModuleDict({"new": nn.Linear(2, 2)}),
            convert={"model": conversion},
        )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"prefix": "module."}, "prefix: expected a dict of str to str, found 'module.'"),
        ({"rename": {"a": 1}}, "rename: expected a dict of str to str"),
        ({"drop": "head.*"}, r"drop: expected a list of patterns, found one string: drop=\['head"),
        ({"keep": [1]}, "keep: expected a list of patterns"),
        ({"cast": {"float32": "float16"}}, "cast: expected a dict of dtype to dtype"),
        (
            {"cast": {FP32: INT64}},
            "cast: expected two floating point.*torch.float32 to torch.int64",
        ),
        ({"cast": {COMPLEX: FP32}}, "cast: expected two floating point"),
        ({"cast": {torch.bool: UINT8}}, "cast: expected two floating point"),
    ],
)
def test_a_conversion_that_makes_no_sense_is_refused_at_once(
    arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        ss.Conversion(**arguments)


def test_a_conversion_needs_a_module_that_is_restored(tmp_path: Path) -> None:
    saved(tmp_path, nn.Linear(2, 2))
    same, model = ss.Conversion(), nn.Linear(2, 2)
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", model)
        ckpt.add("extra", {"a": 1}, on_restore="if-present")
        for convert, text in [
            ({"modle": same}, "'modle'.*no such component was added; added: model, extra"),
            ({"extra": same}, "only a module can be converted, which extra is not"),
            ({"model": {"prefix": "a"}}, "expected ss.Conversion"),
            ([("model", same)], "convert: expected a dict"),
        ]:
            wrong: Any = convert
            with pytest.raises(InvalidInput, match=text):
                ckpt.restore(convert=wrong)
        with pytest.raises(InvalidInput, match=r"does not restore the component \(skip\)"):
            ckpt.restore(convert={"model": same}, only=["extra"])
        assert ckpt.restore(convert={"model": same}) is not None
    with pytest.raises(InvalidInput, match="no such component was added"):
        ss.load(tmp_path, model=model, convert={"modle": same})
    assert ss.load(tmp_path, model=model, convert={"model": same}).step == 1
