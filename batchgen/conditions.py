"""Conditions on a row's columns, as a job writes them: what a filter and the merger keep.

```
score: {min: 4}
answer: {min_words: 5, not_matches: "(?i)as an ai", language: en}
label: [algebra, geometry]
keep_row_after_semantic_check: true
```
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchgen.complaint import complaint
from batchgen.language import LANGUAGES, are_in
from batchgen.plaintext import HALF

if TYPE_CHECKING:
    import pyarrow as pa

Mask = npt.NDArray[np.bool_]
# By column: a value, a list of values, or a mapping with bounds and patterns.
Conditions = Mapping[str, Any]
_Scalar = bool | int | float | str
_WORD = r"\S+"
_MOST = 1_000_000_000


class _Bound(NamedTuple):
    """One of the keys of a condition that is a mapping.

    Args:
        kind: of the columns that it is for.
        legal: what its value is, in words.
        is_legal: whether a value is that.
    """

    kind: str
    legal: str
    is_legal: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_text(value: Any) -> bool:
    """Whether a value is text that a column could hold: half of a surrogate pair is none."""
    return isinstance(value, str) and not HALF.search(value)


def _is_pattern(value: Any) -> bool:
    import pyarrow as pa

    try:
        return _is_text(value) and value != "" and len(_holds(pa.array([""]), "matches", value)) == 1
    except pa.ArrowInvalid:
        return False


def _is_language(value: Any) -> bool:
    codes = _listed(value)
    return bool(codes) and all(isinstance(code, str) and code in LANGUAGES for code in codes)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


_BOUNDS: Mapping[str, _Bound] = {
    **{name: _Bound("number", "a number", _is_number) for name in ("min", "max")},
    **{
        f"{end}_{unit}": _Bound("text", f"a whole number from 0 to {_MOST:,}", _is_size)
        for unit in ("words", "chars")
        for end in ("min", "max")
    },
    "max_repeated": _Bound("text", "a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    **{name: _Bound("text", "a regular expression that RE2 knows", _is_pattern) for name in ("matches", "not_matches")},
    "language": _Bound(
        "text",
        f"a language's code, such as en (`no` in quotes), or a list of some ({', '.join(LANGUAGES)})",
        _is_language,
    ),
}
_FORMS = f"a value, a list of values, or a mapping with {', '.join(_BOUNDS)}"


def checked_conditions(given: Conditions) -> dict[str, Any]:
    """Conditions whose form is right, whatever the columns are; for pydantic's validators.

    A row is counted for the first one that it does not meet, so they are in an order that does not depend on where the
    job was read from: its copy in a run has its keys sorted.

    Raises:
        PydanticCustomError: with the path to what is wrong in its context.
    """
    for column, condition in given.items():
        if isinstance(condition, Mapping):
            _check_bounds(column, condition)
        elif not _values(condition) or len({_kind_of_value(value) for value in _values(condition)}) > 1:
            raise complaint(f"expected {_FORMS}, got {condition!r}", (column,))
    return dict(sorted(given.items()))


def _check_bounds(column: str, bounds: Mapping[str, Any]) -> None:
    for name, value in bounds.items():
        if name not in _BOUNDS:
            raise complaint(f"unknown key; legal keys: {', '.join(_BOUNDS)}", (column, name))
        if not _BOUNDS[name].is_legal(value):
            raise complaint(f"expected {_BOUNDS[name].legal}, got {value!r}", (column, name))
    kinds = sorted({_BOUNDS[name].kind for name in bounds})
    if len(kinds) != 1:
        message = (
            f"expected {_FORMS}, got {bounds!r}" if not kinds else "bounds of numbers and of texts do not go together"
        )
        raise complaint(message, (column,))
    for low, high in (("min", "max"), ("min_words", "max_words"), ("min_chars", "max_chars")):
        if low in bounds and high in bounds and bounds[low] > bounds[high]:
            raise complaint(f"{low} ({bounds[low]}) is more than {high} ({bounds[high]})", (column,))


def _values(condition: Any) -> Sequence[Any]:
    """The values of a condition that is no mapping; none where one of them is no value."""
    values = _listed(condition)
    return values if all(isinstance(value, bool) or _is_text(value) or _is_number(value) for value in values) else ()


def _kind_of_value(value: _Scalar) -> str:
    return "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def languages_of(conditions: Conditions) -> Sequence[str]:
    """The codes of all languages that some conditions ask for, sorted; where there are any, telling them takes time."""
    asked = [each["language"] for each in conditions.values() if isinstance(each, Mapping) and "language" in each]
    return sorted({code for codes in asked for code in _listed(codes)})


def kind_for(condition: Any) -> str:
    """The kind of column that a condition is for: of one, or of each item of a list, or of a message's text."""
    if isinstance(condition, Mapping):
        return next(_BOUNDS[name].kind for name in condition)
    return _kind_of_value(_values(condition)[0])


def is_for(condition: Any, kind: str) -> bool:
    """Whether a condition can be told of a column of that kind."""
    while kind.startswith("list["):
        kind = kind[5:-1]
    return kind_for(condition) == ("text" if kind == "conversation" else kind)


def met(values: pa.Array, condition: Any) -> Mask:
    """Which values meet a condition: null never does, and a list or a conversation if each of its items does.

    Args:
        values: of a column that the condition is for, [rows].
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        result = np.asarray(pc.is_valid(values))
        unmet = ~met(pc.list_flatten(values), condition)
        result[np.asarray(pc.list_parent_indices(values))[unmet]] = False
        return result
    if pa.types.is_struct(values.type):  # a message
        names = {field.name for field in values.type}
        return met(pc.struct_field(values, "content" if "content" in names else "value"), condition)
    if pa.types.is_null(values.type):
        return np.zeros(len(values), bool)
    if kind_for(condition) == "number":
        values = values.cast(pa.float64(), safe=False)  # a whole number beyond 2**53 is near enough
    if isinstance(condition, Mapping):
        holds = [_holds(values, name, value) for name, value in condition.items()]
    else:
        wanted = [float(value) if _is_number(value) else value for value in _values(condition)]
        holds = [pc.is_in(values, value_set=pa.array(wanted, values.type))]
    result = np.ones(len(values), bool)
    for each in holds:
        result &= np.asarray(pc.fill_null(each, False))
    return result


def _holds(items: pa.Array, name: str, value: Any) -> pa.Array:
    """Which texts or numbers keep to a bound, or match a pattern."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name in ("matches", "not_matches"):
        found = pc.match_substring_regex(items, pattern=value)
        return found if name == "matches" else pc.invert(found)
    if name == "language":
        return pa.array(are_in(pc.fill_null(items, "").to_pylist(), _listed(value)), mask=np.asarray(pc.is_null(items)))
    if name == "max_repeated":
        from batchgen.repetition import repeated_shares  # numba

        shares = repeated_shares(pc.fill_null(items, ""))
        items = pc.if_else(pc.is_valid(items), shares, pa.scalar(None, pa.float64()))
    elif name.endswith("_words"):
        items = pc.count_substring_regex(items, pattern=_WORD)
    elif name.endswith("_chars"):
        items = pc.utf8_length(items)
    return pc.greater_equal(items, float(value)) if name.startswith("min") else pc.less_equal(items, float(value))
