"""What a value of a job may be, beyond its type: names and values of vLLM's arguments, options, mappings.

Every check raises a `PydanticCustomError` that says everything about what is wrong; its context may hold the rest of
the path to it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from batchgen.complaint import complaint
from batchgen.engines import arguments
from batchgen.engines.transformers import SAMPLING as TRANSFORMERS_SAMPLING
from batchgen.store import is_remote

Path = tuple[str | int, ...]


def field_name(path: Path) -> str:
    """A path as it is written: `steps[0].task`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def unknown(kind: str, name: str, legal: Iterable[str], path: Path = (), remark: str = "") -> PydanticCustomError:
    """An error that names the nearest legal names."""
    name, legal = str(name), sorted(legal)  # a key in YAML may be a number, or null
    near = difflib.get_close_matches(name, legal, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    # A long list (vLLM has 200 engine arguments) helps nobody once there is a near name.
    known = f"legal: {', '.join(legal)}" if len(legal) <= 40 or not near else ""
    known = known if legal else "none is defined"
    message = "; ".join(part for part in (f"unknown {kind} {name!r}", hint, known, remark) if part)
    return complaint(message.replace("?;", "?"), path)


def unknown_key(kind: str, name: str, legal: Iterable[str], path: Path = ()) -> PydanticCustomError:
    """As `unknown`, for a key that another part of a job may have."""
    return PydanticCustomError("unknown_key", "{message}", unknown(kind, name, legal, path).context)


_LONG = 1e15
_EXPONENT = re.compile(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)")


def number_hint(value: Any) -> str:
    """How a number has to be written that YAML 1.1 takes for text, such as 1e-5; "" where a value is none."""
    match = _EXPONENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return ""
    whole, fraction, sign, exponent = match.groups()
    written = f"{whole}{fraction or '.0'}e{sign or '+'}{exponent}"
    number = float(value)
    # Where only a whole number will do, one with an exponent will not.
    written = str(int(number)) if number.is_integer() and abs(number) < _LONG else written
    return f" (YAML takes that for text; as a number: {written})"


def check_arguments(
    given: Mapping[str, Any], legal: Mapping[str, arguments.Kind], owned: Mapping[str, str], where: str
) -> None:
    """Checks vLLM's arguments against their frozen names and kinds; `owned` ones are batchgen's, each for a reason."""
    for name, value in given.items():
        path = (where, name) if where else (name,)
        if name in owned:
            message = f"{name!r} cannot be set here: {owned[name]}"
            raise complaint(message, path)
        if name not in legal:
            raise unknown_key("vLLM argument", name, legal, path)
        kind = legal[name]
        if arguments.fits(value, kind):
            continue
        values = ["null" if each is None else str(each) for each in kind] if isinstance(kind, list) else []
        if values and isinstance(value, str):
            raise unknown("value", value, values, path)
        expected = " or ".join(values) or str(kind).replace(" | ", " or ").replace("None", "null")
        raise complaint(f"expected {expected}, got {value!r}{number_hint(value)}", path)


def check_engine(engine: Mapping[str, Any]) -> None:
    """Checks vLLM's engine arguments."""
    check_arguments(engine, arguments.engine_arguments(), arguments.OWNED_ENGINE, "engine")
    for name, value in engine.items():
        if legal := arguments.range_of(name, value):
            raise complaint(f"must be {legal}, got {value}", ("engine", name))
    if (code := arguments.code_within(engine)) is not None:
        path, reason = code
        raise complaint(f"cannot be set here: {reason}", ("engine", *path))


# Values that vLLM refuses at the first request; here they cost no engine start. (low, high), both included.
_SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "max_tokens": (1, float("inf")),
    "n": (1, float("inf")),
    "min_tokens": (0, float("inf")),
    "top_k": (-1, float("inf")),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-9, sys.float_info.max),
    "thinking_token_budget": (-1, float("inf")),
}


# Lists whose items vLLM would find out at the first request. (name, type of an item, words for them)
_ITEMS: tuple[tuple[str, type, str], ...] = (
    ("stop", str, "texts that are not empty"),
    ("bad_words", str, "texts that are not empty"),
    ("stop_token_ids", int, "token ids"),
    ("allowed_token_ids", int, "token ids"),
)


def check_options(given: Mapping[str, Any], options: type[BaseModel], what: str) -> None:
    """Checks the options of an engine that has a model of its own for them."""
    try:
        options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name, legal = str(first["loc"][0]), options.model_fields
        path = ("engine", name)
        if name not in legal:
            raise unknown_key(f"field of the {what}", name, legal, path) from None
        if first["type"] == "missing":
            message = f"missing; the {what} needs it"
        elif "url" not in first:  # our own, which says everything
            message = first["msg"]
        else:
            message = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
        raise complaint(message, path) from None


def check_transformers(task: str, structured: bool, sampling: Mapping[str, Any], path: Path) -> None:
    """Refuses what transformers' `generate` would ignore.

    Args:
        structured: whether the task asks for structured outputs.
    """
    ignored = sorted(set(sampling) - TRANSFORMERS_SAMPLING)
    if ignored or structured:
        what = f"sampling has {ignored[0]!r}" if ignored else f"{task} asks for structured outputs"
        legal = ", ".join(sorted(TRANSFORMERS_SAMPLING))
        raise complaint(f"{what}, which the transformers backend does not have; it takes: {legal}", path)


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Checks vLLM's SamplingParams: names, types, and the ranges that vLLM would find out at the first request."""
    check_arguments(sampling, arguments.sampling_arguments(), arguments.OWNED_SAMPLING, "")
    for name, (low, high) in _SAMPLING_RANGES.items():
        value = sampling.get(name)
        if value is not None and not low <= value <= high:
            legal = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
            message = f"must be {legal}, got {value!r}"
            raise complaint(message, (name,))
    for name, item, what in _ITEMS:
        values = [sampling[name]] if isinstance(sampling.get(name), str) else sampling.get(name) or []
        if odd := [value for value in values if not isinstance(value, item) or isinstance(value, bool) or value == ""]:
            raise complaint(f"expected {what}, got {odd[0]!r} among them", (name,))
    for token, bias in (sampling.get("logit_bias") or {}).items():
        if not (str(token).isdecimal() and isinstance(bias, int | float) and not isinstance(bias, bool)):
            raise complaint(f"expected token ids and numbers, got {token!r}: {bias!r} among them", ("logit_bias",))
    if (structured := sampling.get("structured_outputs")) is not None:
        _check_structured(structured)
    if (repetition := sampling.get("repetition_detection")) is not None:
        _check_repetition(repetition)


# One of them says what a completion has to look like; the other arguments say how that is meant.
_STRUCTURES = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def check_varied(sampling: Mapping[str, Any], equal_rows: int, generations: int, path: Path) -> None:
    """Checks that what is generated several times from one prompt may differ.

    Args:
        equal_rows: how many rows bring the same prompt.
    """
    if sampling.get("temperature") != 0:
        return
    if generations > 1:
        raise complaint(f"at temperature 0 all {generations} generations of a row would be the same", path)
    if equal_rows > 1:
        raise complaint(f"at temperature 0 all {equal_rows:,} rows of `count` would be the same", path)


def check_lengths(sampling: Mapping[str, Any], path: Path) -> None:
    """Checks that a completion may end before it has to."""
    least, most = sampling.get("min_tokens") or 0, sampling.get("max_tokens")
    if most is not None and least > most:
        raise complaint(f"min_tokens ({least}) is more than max_tokens ({most})", path)


def _check_structured(given: Any) -> None:
    where = "structured_outputs"
    if not isinstance(given, dict):
        raise complaint(f"expected a mapping with one of {', '.join(_STRUCTURES)}, got {given!r}", (where,))
    check_arguments(given, arguments.structured_arguments(), {}, where)
    there = [name for name in _STRUCTURES if given.get(name) is not None]
    if len(there) != 1:
        raise complaint(f"give exactly one of {', '.join(_STRUCTURES)}; got {len(there)}", (where,))
    value = given[there[0]]
    if there == ["choice"] and not (value and all(isinstance(choice, str) for choice in value)):
        raise complaint(f"expected a list of texts, got {value!r}", (where, "choice"))
    if there == ["json"] and isinstance(value, str):
        try:
            schema = json.loads(value)
        except ValueError as error:
            raise complaint(f"not JSON: {error}", (where, "json")) from None
        if not isinstance(schema, dict):
            raise complaint(f"expected a JSON schema, got {value!r}", (where, "json"))


def _check_repetition(given: Any) -> None:
    where, legal = "repetition_detection", arguments.repetition_arguments()
    if not isinstance(given, dict):
        raise complaint(f"expected a mapping with {', '.join(legal)}, got {given!r}", (where,))
    check_arguments(given, legal, {}, where)
    least = {"max_pattern_size": max(1, given.get("min_pattern_size", 0)), "min_count": 2, "min_pattern_size": 0}
    for name, low in least.items():
        if given.get(name, 0) < low:
            got = f"got {given[name]!r}" if name in given else "and is missing"
            raise complaint(f"must be at least {low}, {got}", (where, name))


def check_columns(names: Sequence[str], where: str) -> None:
    """Checks the names of the columns that a step writes."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise complaint(f"two outputs would be the column {twice[0]!r}", (where,))
    if "" in names:
        raise complaint("a column has to have a name", (where,))


# An environment has other things under such names, such as a path or the word `true`.
_SECRET_NAME = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD)", re.IGNORECASE)
_SECRET = re.compile(r"(?!/)[A-Za-z0-9_.~+/=:-]{16,}")


def check_secrets(tree: Mapping[str, Any]) -> None:
    """Refuses a job with a key or token of the environment in it: all of it is kept, and some of it is published."""
    secrets = {
        name: value for name, value in os.environ.items() if _SECRET_NAME.fullmatch(name) and _SECRET.fullmatch(value)
    }
    for path, text in texts(tree) if secrets else ():
        if name := next((name for name, value in secrets.items() if value in text), None):
            raise complaint(
                f"holds the value of {name}, which would be kept in the run's files and in the dataset's card; what "
                "needs it has to read it from the environment",
                path,
            )


def texts(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """The texts in a tree, with their paths."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from texts(item, (*path, index))


def check_place(output: str) -> None:
    """Checks that a run's place is a folder or a bucket."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", output)
    if scheme and not is_remote(output):
        raise complaint(f"no store for {scheme[1]!r}; legal: a folder that all machines share, or s3://bucket/prefix")
    if "\0" in output:
        raise complaint(f"a path has no NUL in it, got {output!r}")
    if "$" in output:
        raise complaint(f'variables are not replaced in a job, got {output!r}; a shell does it: --output "$NAME/..."')


def check_mapping(mapping: Mapping[str, str | None], legal: Iterable[str], where: str, what: str) -> None:
    """Checks the keys of a column mapping."""
    for name in mapping:
        if name not in legal:
            message = f"{name!r} is not {what}; legal: {', '.join(sorted(legal))}"
            raise complaint(message, (where, name))
