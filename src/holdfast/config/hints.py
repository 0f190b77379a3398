"""What pydantic expected, in words, and what to write instead where the value shows what was meant."""

from __future__ import annotations

import re
from typing import Any

from holdfast.config.words import nearest, shown

EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}

SPECIAL = {("seeds",): "a number of seeds of at least 1, a list of them, or null"}
"""What is expected at paths that pydantic cannot describe."""


def expected(error: Any) -> str:
    """What one error of pydantic wanted to see."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in EXPECTED:
        return EXPECTED[kind]
    if kind == "literal_error":
        return f"one of {context['expected']}"
    bounds = {"greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "more than")}
    bounds |= {"less_than_equal": ("le", "at most"), "less_than": ("lt", "less than")}
    if kind in bounds:
        key, word = bounds[kind]
        return f"a number of {word} {context[key]:g}"
    if kind in ("too_short", "too_long"):
        number = context.get("min_length", context.get("max_length"))
        return f"a list of at {'least' if kind == 'too_short' else 'most'} {number}"
    return str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def hint(value: Any, kinds: set[str], wanted: str) -> str:
    """What to write instead, where the value shows what was meant."""
    numeric = kinds & {"int_type", "int_from_float", "float_type"}
    if isinstance(value, bool) and numeric:
        return "true and false are no numbers"
    if isinstance(value, str) and numeric and re.fullmatch(r"\s*[-+]?[\d_]*\.?\d+([eE][-+]?\d+)?\s*", value):
        return f"write {value.strip()} without quotes"
    if isinstance(value, str) and "bool_type" in kinds:
        meant = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
        if value.lower() in meant:
            return f"write {meant[value.lower()]} without quotes"
    if (
        isinstance(value, float)
        and kinds & {"int_type", "int_from_float"}
        and value == value // 1
        and abs(value) < 1e15
    ):
        return f"write {int(value)}"
    if value in (0, 1) and isinstance(value, int) and "bool_type" in kinds:
        return f"write {'true' if value else 'false'}"
    if isinstance(value, (int, float)) and "string_type" in kinds:
        return f'write "{value}" in quotes'
    if kinds & {"list_type", "tuple_type"} and not isinstance(value, (list, dict)) and value is not None:
        return f"write [{shown(value)}]"
    if "literal_error" in kinds:
        near = nearest(value, re.findall(r"'([^']*)'", wanted))
        return f"did you mean {near!r}?" if near else ""
    return ""
