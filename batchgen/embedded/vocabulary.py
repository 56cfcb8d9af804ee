"""The words that questions of the embedded model are made of, and the facts behind their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType


def _numbers(low: int, high: int) -> tuple[str, ...]:
    return tuple(str(n) for n in range(low, high + 1))


def _pairs(text: str) -> Mapping[str, str]:
    return MappingProxyType(dict(pair.split(":") for pair in text.split()))


CAPITALS = _pairs(
    "France:Paris Japan:Tokyo Italy:Rome Spain:Madrid Germany:Berlin Egypt:Cairo Kenya:Nairobi Peru:Lima "
    "Norway:Oslo Sweden:Stockholm Finland:Helsinki Greece:Athens Poland:Warsaw Cuba:Havana Canada:Ottawa "
    "China:Beijing Russia:Moscow Portugal:Lisbon Ireland:Dublin Austria:Vienna Hungary:Budapest "
    "Denmark:Copenhagen Belgium:Brussels Turkey:Ankara Iran:Tehran Iraq:Baghdad Thailand:Bangkok "
    "Vietnam:Hanoi Nepal:Kathmandu Chile:Santiago Ghana:Accra Tunisia:Tunis"
)
YOUNG = _pairs(
    "dog:puppy cat:kitten cow:calf horse:foal sheep:lamb goat:kid lion:cub duck:duckling pig:piglet frog:tadpole "
    "deer:fawn swan:cygnet"
)
COLOURS = _pairs(
    "snow:white grass:green coal:black blood:red lemons:yellow carrots:orange chocolate:brown emeralds:green "
    "milk:white tomatoes:red"
)
# Unit pair -> factor.
UNITS = MappingProxyType(
    {
        ("minutes", "hours"): 60,
        ("seconds", "minutes"): 60,
        ("hours", "days"): 24,
        ("days", "weeks"): 7,
        ("months", "years"): 12,
        ("centimeters", "meters"): 100,
        ("meters", "kilometers"): 1000,
        ("grams", "kilograms"): 1000,
    }
)
PYTHON = MappingProxyType(
    {
        "the largest item": "max({x})",
        "the smallest item": "min({x})",
        "the sum": "sum({x})",
        "the length": "len({x})",
        "a sorted copy": "sorted({x})",
        "a reversed copy": "{x}[::-1]",
        "the first item": "{x}[0]",
        "the last item": "{x}[-1]",
        "the average": "sum({x}) / len({x})",
        "the unique items": "set({x})",
    }
)
WORDS = tuple(
    "apple bear cloud dance eagle forest garden house island jacket kettle ladder market needle ocean pencil queen "
    "river silver table umbrella village window yellow zebra".split()
)
PEOPLE = tuple("Anna Ben Clara David Emma Frank Grace Henry".split())
THINGS = tuple("apples books coins marbles stamps shells cards pencils".split())
LISTS = tuple("prices scores ages names values points grades words sizes times".split())
REQUESTS = tuple(
    f"{verb} the {thing}"
    for verb in ("give me", "show me", "send me", "lend me", "bring me", "open", "close", "clean", "move", "fix")
    for thing in "book door box chair report window bag map".split()
)
SMALL = _numbers(2, 10)
UP_TO_20 = _numbers(1, 20)

DOMAINS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "a": UP_TO_20,
        "b": UP_TO_20,
        "m": SMALL,
        "n": SMALL,
        "k": _numbers(2, 12),
        "who": PEOPLE,
        "thing": THINGS,
        "w1": WORDS,
        "w2": WORDS,
        "w3": WORDS,
        "w4": WORDS,
        "country": tuple(CAPITALS),
        "animal": tuple(YOUNG),
        "matter": tuple(COLOURS),
        "big": tuple(big for _, big in UNITS),
        "little": tuple(little for little, _ in UNITS),
        "op": tuple(PYTHON),
        "x": LISTS,
        "request": REQUESTS,
    }
)
