"""Which rows kill engines: found by running them alone."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from batchgen.plan import Shard
from batchgen.suspects import Isolated, Suspects

SHARD, OTHER = Shard(4, 40, 48), Shard(5, 48, 56)


def found(
    killers: Collection[int], shard: Shard = SHARD, chance: int | None = None
) -> tuple[list[tuple[int, int] | None], frozenset[int]]:
    """What runs alone, one after the other, where these rows each kill an engine; and what is quarantined at the end.

    A shard with all of its killers in quarantine is done. The engine that is tried as number `chance` dies of something
    else.
    """
    suspects, tried = Suspects(), []
    suspects.died_among([shard])
    suspects.died_among([shard])
    while suspects:
        work = suspects.next()
        tried.append(work.rows)
        rows = range(*(work.rows or (shard.start, shard.stop)))
        if (set(rows) & set(killers)) - suspects.quarantined(shard) or len(tried) - 1 == chance:
            suspects.died_alone(work)
        else:
            suspects.survived(work)
    return tried, suspects.quarantined(shard)


def test_a_shard_that_was_at_one_death_goes_on_among_others_and_alone_after_the_second():
    suspects = Suspects()
    assert suspects.died_among([SHARD, OTHER]) == [SHARD, OTHER]
    assert suspects.died_among([SHARD]) == []
    assert (len(suspects), suspects.next()) == (1, Isolated(SHARD))
    suspects.survived(Isolated(SHARD))
    assert suspects.died_among([SHARD]) == [SHARD], "it is cleared"
    assert suspects.died_among([OTHER]) == []


def test_the_row_that_kills_is_found_by_halves():
    tried, quarantined = found({45})
    # All; the first half lives; of the second its first half, and of that the second row, which is tried though it
    # alone is left, and again, as one death may be chance.
    assert tried == [None, (40, 44), (44, 46), (44, 45), (45, 46), (45, 46), None]
    assert quarantined == {45}


@pytest.mark.parametrize("killers", [(), (40,), (41,), (45,), (47,), (40, 41), (43, 44)])
def test_an_engine_that_somebody_kills_meanwhile_incriminates_no_row(killers: tuple[int, ...]):
    tried, _ = found(killers)
    for chance in range(len(tried)):
        assert found(killers, chance=chance)[1] == set(killers), chance


@pytest.mark.parametrize("killer", range(40, 48))
def test_each_place_of_a_row_is_found(killer: int):
    tried, quarantined = found({killer})
    assert quarantined == {killer}
    assert len(tried) <= 7


def test_in_the_largest_shard_of_a_plan_a_row_costs_13_engines():
    shard = Shard(0, 0, 512)
    # Two before it runs alone; of what runs alone all that has the row in it, but for the whole shard without it.
    deaths = [2 + sum(row in range(*(rows or (0, 512))) for rows in found({row}, shard)[0]) - 1 for row in range(512)]
    assert max(deaths) == 13


def found_of_hung(
    killers: Collection[int], told: int = 64, shard: Shard = SHARD
) -> tuple[list[tuple[int, int] | None], frozenset[int], int]:
    """As `found`, where engines hang and it is known which rows have not ended; and how many of them hang.

    Args:
        told: at how many of the hangs it is known, from the first on.
    """
    suspects, tried, hangs = Suspects(), [], 0
    working = [Isolated(shard)]
    while working or suspects:
        among = bool(working)
        work = working.pop() if among else suspects.next()
        if not among:
            tried.append(work.rows)
        rows = range(*(work.rows or (shard.start, shard.stop)))
        left = (set(rows) & set(killers)) - suspects.quarantined(shard)
        hangs += bool(left)
        open_rows = left if hangs <= told else ()
        if left and among:
            working = [Isolated(each) for each in suspects.died_among([shard], open_rows)]
        elif left:
            suspects.died_alone(work, open_rows)
        elif not among:
            suspects.survived(work)
    return tried, suspects.quarantined(shard), hangs


def test_a_row_that_alone_has_not_ended_where_an_engine_hangs_is_tried_at_once():
    shard = Shard(0, 0, 512)
    for row in (0, 1, 255, 511):
        assert found_of_hung({row}, shard=shard) == ([(row, row + 1), (row, row + 1), None], {row}, 3)


def test_of_several_that_have_not_ended_the_first_is_looked_for_among_them():
    tried, quarantined, hangs = found_of_hung({41, 46})
    assert tried == [None, (41, 44), (41, 42), (41, 42), None, (46, 47), (46, 47), None]
    assert (quarantined, hangs) == ({41, 46}, 2 + 7)


@pytest.mark.parametrize("told", range(8))
@pytest.mark.parametrize("killers", [{40}, {45}, {47}, {40, 47}, {41, 42, 43}])
def test_whenever_it_is_known_and_whenever_not_the_rows_are_found(killers: set[int], told: int):
    assert found_of_hung(killers, told)[1] == killers


def test_rows_that_had_not_ended_and_are_not_to_blame_are_cleared_and_their_shard_goes_on():
    suspects = Suspects()
    assert suspects.died_among([SHARD, OTHER], [45]) == [OTHER], "which had none: it counts for nothing there"
    probe = suspects.next()
    assert probe == Isolated(SHARD, (45, 46))
    suspects.survived(probe)
    assert suspects.next() == Isolated(SHARD)
    suspects.died_alone(Isolated(SHARD))
    assert suspects.next() == Isolated(SHARD, (40, 44)), "all of its rows are looked at again"
    assert suspects.died_among([OTHER]) == [OTHER]
    assert suspects.died_among([OTHER], [49, 51]) == []


def test_rows_of_other_shards_say_nothing_of_one_that_runs_alone():
    suspects = Suspects()
    suspects.died_alone(Isolated(SHARD), [3, 99])
    assert suspects.next() == Isolated(SHARD, (40, 44))


@pytest.mark.parametrize("killers", [{40, 47}, {41, 42, 43}, set(range(40, 48))])
def test_several_rows_that_kill_are_all_found(killers: set[int]):
    assert found(killers)[1] == killers


def test_one_of_a_single_row_has_to_kill_alone_twice():
    assert found({9}, Shard(1, 9, 10)) == ([None, None, None], {9})
    assert found((), Shard(1, 9, 10), chance=0) == ([None, None], frozenset())


def test_a_shard_of_which_no_part_kills_runs_whole_again():
    """It was chance, or rows that do it together."""
    suspects = Suspects()
    suspects.died_alone(Isolated(SHARD))
    tried = []
    while (work := suspects.next()).rows is not None:
        tried.append(work.rows)
        suspects.survived(work)
    assert tried == [(40, 44), (44, 46), (46, 47), (47, 48)]
    assert (work, len(suspects), suspects.quarantined(SHARD)) == (Isolated(SHARD), 0, frozenset())


def test_what_did_not_run_to_its_end_comes_first_and_a_trial_is_made_anew():
    suspects = Suspects()
    suspects.died_alone(Isolated(OTHER))
    suspects.put_back(Isolated(SHARD, (40, 44)))
    assert suspects.next() == Isolated(SHARD, (40, 44))
    suspects.put_back(Suspects.trial(SHARD))
    assert suspects.next() == Isolated(OTHER, (48, 52))


def test_a_trial_is_of_a_few_rows_and_says_nothing_of_them():
    assert Suspects.trial(Shard(1, 100, 200)) == Isolated(Shard(1, 100, 200), (100, 108), trial=True)
    assert Suspects.trial(Shard(1, 100, 103)).rows == (100, 103)
    suspects = Suspects()
    suspects.survived(Suspects.trial(SHARD))
    assert len(suspects) == 0
