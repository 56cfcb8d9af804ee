"""The scheduler: every failure, without a process or a clock."""

from __future__ import annotations

import random

import pytest

from batchgen.enginestate import BUSY_ROWS_PER_SLOT
from batchgen.errors import EngineStartError, ShardFailed, Stopped, StoreError
from batchgen.inflight import ROWS_PER_SLOT
from batchgen.plan import Shard
from batchgen.schedule import Dispatch, Finish, KillEngine, Recall, Scheduler, StartEngine


def shards(count: int, rows: int = 10) -> list[Shard]:
    return [Shard(i, i * rows, (i + 1) * rows) for i in range(count)]


def dispatched(actions: list) -> list[tuple[int, int]]:
    return [(action.engine, action.shard.index) for action in actions if isinstance(action, Dispatch)]


def finish(actions: list) -> Finish:
    (end,) = [action for action in actions if isinstance(action, Finish)]
    return end


def start_error(actions: list) -> str:
    error = finish(actions).error
    assert isinstance(error, EngineStartError)
    return str(error)


def test_nothing_to_do_finishes_at_once():
    assert Scheduler([], 2).start() == [Finish(None)]


def test_no_more_engines_than_shards():
    assert Scheduler(shards(1), 4).start() == [StartEngine(0)]


def test_an_engine_holds_at_least_two_shards_and_enough_rows_for_its_slots():
    scheduler = Scheduler(shards(20), 1)
    scheduler.start()
    assert len(dispatched(scheduler.engine_ready(0, slots=1))) == 2
    scheduler = Scheduler(shards(20), 1)
    scheduler.start()
    assert len(dispatched(scheduler.engine_ready(0, slots=16))) == 10, "96 rows for 16 slots, 10 a shard"
    scheduler = Scheduler(shards(20, rows=2), 1)
    scheduler.start()
    assert len(dispatched(scheduler.engine_ready(0, slots=1))) == 3, "6 rows for one slot, 2 a shard"


def test_every_shard_goes_out_once_and_the_run_finishes():
    scheduler = Scheduler(shards(5), 2)
    scheduler.start()
    open_ = dispatched(scheduler.engine_ready(0, 1)) + dispatched(scheduler.engine_ready(1, 1))
    done = []
    while open_:
        engine, shard = open_.pop(0)
        done.append(shard)
        actions = scheduler.shard_done(engine, shard)
        open_ += dispatched(actions)
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert finish(actions).error is None


def test_a_lost_engine_is_killed_and_replaced_and_its_shards_come_back_first():
    scheduler = Scheduler(shards(6), 1)
    scheduler.start()
    assert dispatched(scheduler.engine_ready(0, 1)) == [(0, 0), (0, 1)]
    assert scheduler.engine_lost(0, "died") == [KillEngine(0), StartEngine(1)]
    assert dispatched(scheduler.engine_ready(1, 1)) == [(1, 0), (1, 1)]


def test_what_a_lost_machine_held_is_under_no_suspicion_and_its_loss_is_no_crash():
    scheduler = Scheduler(shards(2), 1, max_engine_deaths=2)
    scheduler.start()
    for engine in range(5):
        assert dispatched(scheduler.engine_ready(engine, 1)) == [(engine, 0), (engine, 1)], "never one alone"
        assert scheduler.engine_lost(engine, "gone", machine=True) == [KillEngine(engine), StartEngine(engine + 1)]


def test_engines_are_added_as_there_is_room_for_them_and_work():
    scheduler = Scheduler(shards(8), 1)
    assert scheduler.start() == [StartEngine(0)]
    assert scheduler.grow(3) == [StartEngine(1), StartEngine(2)]
    assert scheduler.grow(2) == [], "what is lost is replaced, so fewer changes nothing"
    for engine in range(3):
        assert len(dispatched(scheduler.engine_ready(engine, 1))) == 2
    assert scheduler.engine_lost(1, "gone", machine=True)[:2] == [KillEngine(1), StartEngine(3)], "as is what is lost"
    assert len(dispatched(scheduler.engine_ready(3, 1))) == 2
    assert scheduler.grow(9) == [StartEngine(4), StartEngine(5)], "two shards are left"


def test_late_answers_of_a_lost_engine_change_nothing():
    scheduler = Scheduler(shards(6), 1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.engine_lost(0, "died")
    assert scheduler.shard_done(0, 0) == []
    assert scheduler.shard_failed(0, 1, "late") == []
    assert scheduler.engine_lost(0, "again") == []
    assert scheduler.engine_ready(0, 1) == []
    assert scheduler.engine_start_failed(0, "late") == []


def test_nothing_changes_after_the_end():
    scheduler = Scheduler(shards(4), 3)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.engine_ready(1, 1)
    scheduler.stop("interrupted")
    finish(scheduler.stop("interrupted"))
    assert scheduler.stop("interrupted") == scheduler.grow(9) == []
    assert scheduler.engine_start_failed(2, "x") == scheduler.engine_ready(2, 1) == []
    assert scheduler.shard_done(0, 0) == scheduler.shard_failed(0, 1, "x") == scheduler.recall_refused(1, 2) == []
    assert scheduler.engine_lost(1, "x") == scheduler.service_failed(1, 3, "x") == []


def test_what_an_engine_held_as_it_died_is_told():
    scheduler = Scheduler(shards(9), 1, max_engine_deaths=1)
    scheduler.start()
    assert len(dispatched(scheduler.engine_ready(0, 8))) == 5
    message = str(finish(scheduler.engine_lost(0, "EngineDead: x")).error)
    assert "engine 0, with shard 000000 (seed rows 0 to 9), shard 000001 (seed rows 10 to 19), " in message
    assert message.endswith(" and 2 more shards: EngineDead: x")


def suspected() -> Scheduler:
    """Two engines with room for three shards each, of which 0, 1 and 2 have been there at two deaths."""
    scheduler = Scheduler(shards(12), 2)
    scheduler.start()
    assert dispatched(scheduler.engine_ready(0, 5)) == [(0, 0), (0, 1), (0, 2)]
    assert dispatched(scheduler.engine_ready(1, 5)) == [(1, 3), (1, 4), (1, 5)]
    assert dispatched(scheduler.engine_lost(0, "x")) == []
    assert dispatched(scheduler.engine_ready(2, 5)) == [(2, 0), (2, 1), (2, 2)]
    scheduler.engine_lost(2, "x")
    return scheduler


def test_an_engine_is_emptied_for_what_is_to_run_alone():
    scheduler = suspected()
    assert dispatched(scheduler.shard_done(1, 3)) == [], "kept for suspects"
    assert dispatched(scheduler.shard_done(1, 4)) == []
    assert dispatched(scheduler.shard_done(1, 5)) == [(1, 0)], "alone"
    assert dispatched(scheduler.shard_done(1, 0)) == [(1, 1)]
    assert dispatched(scheduler.shard_done(1, 1)) == [(1, 2)]
    assert dispatched(scheduler.shard_done(1, 2)) == [(1, 6), (1, 7), (1, 8)], "suspicion is over"


def test_what_ran_alone_when_its_machine_was_lost_or_it_failed_runs_alone_again():
    scheduler = suspected()
    for shard in (3, 4, 5):
        actions = scheduler.shard_done(1, shard)
    assert dispatched(actions) == [(1, 0)]
    assert dispatched(scheduler.shard_failed(1, 0, "x")) == [(1, 0)]
    assert dispatched(scheduler.engine_lost(1, "gone", machine=True)) == []
    scheduler.engine_ready(3, 5)
    assert dispatched(scheduler.probe_done(3, 5)) == [(3, 0)], "alone, and before the other suspects"


def test_an_engine_that_was_kept_for_suspects_works_again_when_others_took_them():
    scheduler = suspected()
    assert dispatched(scheduler.engine_ready(3, 5)) == [], "the other may tell which rows are sound"
    assert dispatched(scheduler.shard_done(1, 3)) == [(3, 3)], "so it does, and is kept itself"
    assert dispatched(scheduler.probe_done(3, 3)) == [(3, 0)]
    assert dispatched(scheduler.shard_done(3, 0)) == [(3, 1)]
    assert dispatched(scheduler.shard_done(3, 1)) == [(3, 2), (1, 6)], "the last suspect, and the other goes on"


def test_an_engine_that_has_done_nothing_is_tried_with_sound_rows_before_suspects():
    scheduler = suspected()
    scheduler.shard_done(1, 3)
    (trial,) = scheduler.engine_ready(3, 5)
    assert trial == Dispatch(3, shards(4)[3], rows=(30, 38)), "its machine may be what kills"
    assert dispatched(scheduler.engine_lost(3, "XID 79")) == []
    (trial,) = scheduler.engine_ready(4, 5)
    assert (trial.shard.index, trial.rows) == (3, (30, 38))
    assert dispatched(scheduler.probe_done(4, 3)) == [(4, 0)]
    scheduler.shard_done(1, 4)
    assert dispatched(scheduler.shard_done(1, 5)) == [(1, 1)]


def test_a_shard_that_fails_everywhere_fails_the_run_and_is_named():
    scheduler = Scheduler(shards(3), 1, max_attempts=2)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    assert dispatched(scheduler.shard_failed(0, 0, "bug")) == [(0, 2)]
    scheduler.shard_done(0, 1)
    scheduler.shard_done(0, 2)
    error = finish(scheduler.shard_failed(0, 0, "bug")).error
    assert isinstance(error, ShardFailed)
    assert "shard 000000 (seed rows 0 to 9) failed 2 times; the last time: bug" in str(error)


def test_a_shard_that_waits_for_another_engine_holds_up_no_other():
    rows = [10, 10, 2, 2, 10]
    scheduler = Scheduler([Shard(i, sum(rows[:i]), sum(rows[: i + 1])) for i in range(5)], 2)
    scheduler.start()
    assert dispatched(scheduler.engine_ready(0, 1)) == [(0, 0), (0, 1)]
    assert dispatched(scheduler.engine_ready(1, 1)) == [(1, 2), (1, 3), (1, 4)]
    assert dispatched(scheduler.shard_failed(0, 0, "bug")) == [], "the other engine has enough"
    assert dispatched(scheduler.shard_failed(1, 2, "bug")) == [(0, 2)], "it has still, and shard 0 waits for it"
    assert dispatched(scheduler.shard_done(1, 4)) == [(1, 0)]


def test_engines_that_never_start_fail_the_run_with_the_cause():
    scheduler = Scheduler(shards(3), 1, max_start_failures=3)
    scheduler.start()
    assert scheduler.engine_start_failed(0, "no memory") == [KillEngine(0), StartEngine(1)]
    assert scheduler.engine_start_failed(1, "no memory") == [KillEngine(1), StartEngine(2)]
    assert "3 times in a row; the last time: no memory" in start_error(scheduler.engine_start_failed(2, "no memory"))


def test_an_engine_that_was_told_something_wrong_is_started_once():
    scheduler = Scheduler(shards(3), 1)
    scheduler.start()
    assert start_error(scheduler.engine_start_failed(0, "no such quantization", final=True)) == "no such quantization"


def test_a_place_where_no_engine_starts_is_left_empty_where_others_work():
    scheduler = Scheduler(shards(40), 2, max_start_failures=2)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    assert scheduler.engine_start_failed(1, "x") == [KillEngine(1), StartEngine(2)]
    assert scheduler.engine_start_failed(2, "x") == [KillEngine(2)], "no end, and no further try for now"
    done = [dispatched(scheduler.shard_done(0, index)) for index in range(3)]
    assert done == [[(0, 2)], [(0, 3)], [(0, 4)]], "the other goes on by itself"
    assert scheduler.shard_done(0, 3)[0] == StartEngine(3)
    assert scheduler.engine_start_failed(3, "x") == [KillEngine(3)], "one try is enough the next time"
    for index in range(4, 7):
        scheduler.shard_done(0, index)
    assert scheduler.shard_done(0, 7)[0] == StartEngine(4)
    assert dispatched(scheduler.engine_ready(4, 1))


def test_a_machine_on_which_engines_die_of_sound_rows_is_left_empty_as_well():
    """Some broken GPUs let an engine start, and end it at its first requests."""
    scheduler = Scheduler(shards(60), 2, max_start_failures=2, max_engine_deaths=2)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.shard_done(0, 0)
    assert dispatched(scheduler.engine_ready(1, 1)) == [(1, 3), (1, 4)]
    assert scheduler.engine_lost(1, "XID 79") == [KillEngine(1), StartEngine(2)]
    trial = Dispatch(2, shards(1)[0], rows=(0, 8))
    assert scheduler.engine_ready(2, 1) == [trial], "one has died: new ones show first that they work"
    assert scheduler.engine_lost(2, "XID 79") == [KillEngine(2), StartEngine(3)]
    assert [action.rows for action in scheduler.engine_ready(3, 1)] == [(0, 8)]
    assert scheduler.engine_lost(3, "XID 79") == [KillEngine(3)], "no further try for now, and no end"
    started = [scheduler.shard_done(0, index) for index in (1, 2, 3, 4)]
    assert [StartEngine(4) in actions for actions in started] == [False, False, False, True]


def test_a_trial_that_is_survived_is_followed_by_work():
    scheduler = Scheduler(shards(9), 1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.shard_done(0, 0)
    scheduler.engine_lost(0, "x")
    assert scheduler.engine_ready(1, 1) == [Dispatch(1, shards(1)[0], rows=(0, 8))]
    assert dispatched(scheduler.probe_done(1, 0)) == [(1, 1), (1, 2)]


def test_an_engine_that_comes_up_when_all_is_handed_out_is_not_tried():
    scheduler = Scheduler(shards(3), 2)
    scheduler.start()
    scheduler.engine_ready(0, 9)
    scheduler.shard_done(0, 0)
    scheduler.engine_ready(1, 9)
    scheduler.engine_lost(1, "x")
    assert scheduler.engine_ready(2, 9) == []
    scheduler.shard_done(0, 1)
    assert finish(scheduler.shard_done(0, 2)).error is None


def test_an_engine_that_is_alone_and_dies_of_sound_rows_ends_the_run():
    scheduler = Scheduler(shards(60), 1, max_start_failures=2)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.shard_done(0, 0)
    for engine in (0, 1):
        assert scheduler.engine_lost(engine, "XID 79") == [KillEngine(engine), StartEngine(engine + 1)]
        scheduler.engine_ready(engine + 1, 1)
    assert (
        start_error(scheduler.engine_lost(2, "XID 79"))
        == "engines died 2 times in a row on rows that are sound; the last time: XID 79"
    )


def test_an_engine_that_is_alone_is_replaced_however_often_it_dies():
    scheduler = Scheduler(shards(4), 1, max_start_failures=1)
    scheduler.start()
    for engine in range(3):
        scheduler.engine_ready(engine, 1)
        assert StartEngine(engine + 1) in scheduler.engine_lost(engine, "x")


def test_engines_that_die_after_some_work_are_replaced():
    scheduler = Scheduler(shards(60), 2, max_start_failures=1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    for engine in (1, 2, 3):
        scheduler.engine_ready(engine, 1)
        scheduler.shard_done(engine, next(iter(scheduler._engines[engine].shards)))
        assert StartEngine(engine + 1) in scheduler.engine_lost(engine, "x")


def test_a_place_that_was_left_empty_holds_no_other_back():
    scheduler = Scheduler(shards(40), 3, max_start_failures=1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.engine_ready(1, 1)
    scheduler.shard_done(1, 2)
    scheduler.engine_start_failed(2, "x")
    assert scheduler.engine_lost(1, "y")[:2] == [KillEngine(1), StartEngine(3)]
    assert [a for a in scheduler.grow(4) if isinstance(a, StartEngine)] == [StartEngine(4), StartEngine(5)]


def test_where_no_engine_is_left_those_that_failed_are_tried_again_and_end_the_run_together():
    scheduler = Scheduler(shards(40), 2, max_start_failures=1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    assert scheduler.engine_start_failed(1, "x") == [KillEngine(1)]
    assert scheduler.engine_lost(0, "y") == [KillEngine(0), StartEngine(2), StartEngine(3)]
    scheduler.engine_placed(3)
    assert scheduler.engine_start_failed(2, "x") == [KillEngine(2)]
    assert "no memory" in start_error(scheduler.engine_start_failed(3, "no memory"))


def test_one_machine_s_final_failure_waits_for_the_others_that_are_coming_up():
    scheduler = Scheduler(shards(40), 3)
    scheduler.start()
    assert scheduler.engine_placed(1) == scheduler.engine_placed(2) == []
    assert scheduler.engine_start_failed(0, "no driver", final=True) == [KillEngine(0)]
    assert dispatched(scheduler.engine_ready(1, 1)) == [(1, 0), (1, 1)]
    assert scheduler.engine_start_failed(2, "no driver", final=True) == [KillEngine(2), StartEngine(3)]

    scheduler = Scheduler(shards(40), 2)
    scheduler.start()
    scheduler.engine_placed(1)
    assert scheduler.engine_start_failed(0, "no such dtype", final=True) == [KillEngine(0)]
    assert str(finish(scheduler.engine_start_failed(1, "no such dtype", final=True)).error) == "no such dtype"


def test_an_engine_that_waits_for_a_place_is_none_that_is_coming_up():
    """It may wait for ever: a run in which nothing works is not to wait with it."""
    scheduler = Scheduler(shards(40), 2, max_start_failures=1)
    scheduler.start()
    assert "no memory" in start_error(scheduler.engine_start_failed(0, "no memory"))


def test_where_an_engine_came_up_another_is_given_the_benefit_of_the_doubt():
    scheduler = Scheduler(shards(3), 1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.engine_lost(0, "y")
    assert scheduler.engine_start_failed(1, "x", final=True) == [KillEngine(1), StartEngine(2)]


def test_an_outage_at_the_start_is_waited_for_once_and_a_failure_where_nothing_was_ever_in_reach():
    scheduler = Scheduler(shards(3), 2)
    scheduler.start()
    scheduler.engine_placed(1)
    assert scheduler.engine_start_failed(0, "no answer", outage=True) == [KillEngine(0)]
    assert start_error(scheduler.engine_start_failed(1, "no answer", outage=True)) == "no answer"


@pytest.mark.parametrize("before", [True, False])
def test_an_outage_at_the_start_stops_a_run_that_got_on_before(before: bool):
    scheduler = Scheduler(shards(3), 1, resumed=before)
    scheduler.start()
    if not before:
        scheduler.engine_ready(0, 1)
        scheduler.engine_lost(0, "y")
    error = finish(scheduler.engine_start_failed(0 if before else 1, "no answer", outage=True)).error
    assert isinstance(error, Stopped)
    assert str(error) == "no answer"


def test_an_outage_at_the_start_of_one_engine_leaves_its_place_empty_where_others_work():
    scheduler = Scheduler(shards(40), 2)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    assert scheduler.engine_start_failed(1, "no answer", outage=True) == [KillEngine(1)]
    for index in range(3):
        scheduler.shard_done(0, index)
    assert scheduler.shard_done(0, 3)[0] == StartEngine(2)


def test_a_start_that_succeeds_resets_the_count():
    scheduler = Scheduler(shards(9), 1, max_start_failures=2, max_attempts=9)
    scheduler.start()
    for engine in range(0, 6, 2):
        assert scheduler.engine_start_failed(engine, "x") == [KillEngine(engine), StartEngine(engine + 1)]
        scheduler.engine_ready(engine + 1, 1)
        scheduler.engine_lost(engine + 1, "y")


def test_stop_hands_out_nothing_more_takes_back_what_has_not_begun_and_waits_for_the_rest():
    scheduler = Scheduler(shards(5), 1)
    scheduler.start()
    scheduler.engine_ready(0, 5)
    assert scheduler.in_flight == {0, 1, 2}
    assert scheduler.stop("interrupted") == [Recall(0, 2), Recall(0, 1), Recall(0, 0)]
    assert scheduler.shard_returned(0, 2) == []
    assert scheduler.recall_refused(0, 1) == scheduler.recall_refused(0, 0) == []
    assert scheduler.shard_done(0, 0) == []
    error = finish(scheduler.shard_done(0, 1)).error
    assert isinstance(error, Stopped)
    assert not isinstance(error, StoreError)


def test_an_engine_runs_short_with_fewer_rows_than_its_worker_has_in_flight():
    assert BUSY_ROWS_PER_SLOT == ROWS_PER_SLOT


def test_an_engine_that_comes_up_late_gets_what_others_have_not_begun():
    scheduler = Scheduler(shards(5), 2)
    scheduler.start()
    assert len(dispatched(scheduler.engine_ready(0, slots=10))) == 5, "all of them"
    assert scheduler.engine_ready(1, slots=10) == [Recall(0, 4)], "what it would begin with last, one at a time"
    assert scheduler.shard_returned(0, 4) == [Dispatch(1, shards(5)[4]), Recall(0, 3)]
    assert scheduler.shard_returned(0, 3) == [Dispatch(1, shards(5)[3])], "two rows a slot are all it works on at once"
    assert scheduler.shard_done(1, 4) == [Recall(0, 2)]
    assert scheduler.shard_returned(0, 2) == [Dispatch(1, shards(5)[2])]
    assert scheduler.shard_done(1, 3) == [], "one each: with another it would have what the other has now"


def test_a_shard_that_has_begun_stays_and_so_does_all_that_came_before_it():
    scheduler = Scheduler(shards(6), 2)
    scheduler.start()
    scheduler.engine_ready(0, slots=10)
    assert scheduler.engine_ready(1, slots=10) == [Recall(0, 5)]
    assert scheduler.recall_refused(0, 5) == [], "no other is worth asking for"
    for shard in range(6):
        actions = scheduler.shard_done(0, shard)
    assert actions == [Finish(None)]


def test_an_engine_with_enough_to_do_gets_nothing_of_another_s():
    scheduler = Scheduler(shards(6), 2)
    scheduler.start()
    assert len(dispatched(scheduler.engine_ready(0, slots=10))) == 6
    assert scheduler.engine_ready(1, slots=10) == [Recall(0, 5)]
    assert scheduler.shard_returned(0, 5) == [Dispatch(1, shards(6)[5]), Recall(0, 4)]
    assert scheduler.shard_returned(0, 4) == [Dispatch(1, shards(6)[4])], "four are left there, two are enough here"


def test_an_engine_drains_once_there_is_nothing_left_to_hand_out():
    scheduler = Scheduler(shards(20), 1)
    scheduler.start()
    scheduler.engine_ready(0, slots=1)
    assert not scheduler.drains(0)
    scheduler.stop("interrupted")
    assert scheduler.drains(0)
    scheduler = Scheduler(shards(2), 1)
    scheduler.start()
    scheduler.engine_ready(0, slots=1)
    assert scheduler.drains(0)
    scheduler.engine_lost(0, "died", machine=True)
    assert scheduler.drains(0), "it is gone"
    scheduler.engine_ready(1, slots=1)
    scheduler.shard_failed(1, 0, "x")
    assert scheduler.drains(1), "what failed is handed out again, to the same engine"


def test_an_engine_of_whose_shards_another_would_take_one_does_not_drain():
    """Its rows would all begin, and none of its shards could be taken back any more."""
    scheduler = Scheduler(shards(5), 2)
    scheduler.start()
    scheduler.engine_ready(0, slots=10)
    assert scheduler.drains(0), "the other waits for a place, perhaps for ever"
    scheduler.engine_placed(1)
    assert not scheduler.drains(0), "the other is coming"
    assert scheduler.engine_ready(1, slots=10) == [Recall(0, 4)]
    assert (scheduler.drains(0), scheduler.drains(1)) == (False, True)
    scheduler.shard_returned(0, 4)
    assert (scheduler.drains(0), scheduler.drains(1)) == (False, True), "three and one"
    scheduler.shard_returned(0, 3)
    assert (scheduler.drains(0), scheduler.drains(1)) == (True, True), "three and two"
    assert scheduler.shard_done(1, 4) == [Recall(0, 2)]
    assert (scheduler.drains(0), scheduler.drains(1)) == (True, True), "two, as one is asked back, and one"
    scheduler.shard_done(1, 3)
    assert not scheduler.drains(0)
    scheduler.recall_refused(0, 2)
    assert scheduler.drains(0), "all of it has begun"


def test_a_shard_that_had_begun_and_failed_may_be_asked_back_again():
    scheduler = Scheduler(shards(6), 2)
    scheduler.start()
    scheduler.engine_ready(0, slots=10)
    assert scheduler.engine_ready(1, slots=10) == [Recall(0, 5)]
    assert scheduler.recall_refused(0, 5) == []
    assert scheduler.shard_failed(0, 5, "x") == [Dispatch(1, shards(6)[5]), Recall(0, 4)]
    assert dispatched(scheduler.engine_lost(1, "x", machine=True)) == [(0, 5)]
    assert Recall(0, 5) in scheduler.stop("interrupted")


def test_answers_to_recalls_that_come_too_late_do_no_harm():
    scheduler = Scheduler(shards(5), 2)
    scheduler.start()
    scheduler.engine_ready(0, slots=10)
    assert scheduler.engine_ready(1, slots=10) == [Recall(0, 4)]
    assert Recall(0, 3) in scheduler.shard_done(0, 4), "it was done before the question came"
    assert scheduler.recall_refused(0, 4) == scheduler.shard_returned(0, 4) == []
    assert KillEngine(0) in scheduler.engine_lost(0, "died", machine=True)
    assert scheduler.recall_refused(0, 3) == scheduler.shard_returned(0, 3) == []


def test_a_second_stop_ends_at_once():
    scheduler = Scheduler(shards(5), 1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.stop("interrupted")
    assert isinstance(finish(scheduler.stop("interrupted")).error, Stopped)


def test_a_stop_while_engines_start_ends_at_once():
    scheduler = Scheduler(shards(5), 1)
    scheduler.start()
    assert isinstance(finish(scheduler.stop("interrupted")).error, Stopped)


def test_a_failing_store_blames_no_shard_and_ends_resumable():
    scheduler = Scheduler(shards(5), 1, max_attempts=1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    assert scheduler.service_failed(0, 0, "disk full") == [Recall(0, 1)]
    error = finish(scheduler.service_failed(0, 1, "disk full")).error
    assert isinstance(error, Stopped)
    assert "disk full" in str(error)


def two_at_work(count: int, **limits: int) -> Scheduler:
    """Engines 0 and 1, each of which has done a shard and holds two more."""
    scheduler = Scheduler(shards(count), 2, **limits)
    scheduler.start()
    for engine in (0, 1):
        scheduler.engine_placed(engine)
    held = dispatched(scheduler.engine_ready(0, 1) + scheduler.engine_ready(1, 1))
    assert held == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert dispatched(scheduler.shard_done(0, 0) + scheduler.shard_done(1, 2)) == [(0, 4), (1, 5)]
    return scheduler


def test_a_store_out_of_reach_of_one_engine_only_costs_that_engine():
    scheduler = two_at_work(20)
    assert scheduler.service_failed(1, 3, "stale file handle", only_here=True) == [KillEngine(1)]
    assert not scheduler.stopping
    assert scheduler.service_failed(1, 5, "stale file handle", only_here=True) == [], "it is given up already"
    # Its place stays empty until the other has done four more shards; what it held comes first.
    handed_out = []
    for shard in (1, 4, 3):
        actions = scheduler.shard_done(0, shard)
        assert not [action for action in actions if isinstance(action, StartEngine)]
        handed_out += dispatched(actions)
    assert handed_out == [(0, 5), (0, 3), (0, 6)]
    assert StartEngine(2) in scheduler.shard_done(0, 5)


def test_an_engine_that_somebody_ends_is_no_crash_if_it_has_done_anything():
    scheduler = Scheduler(shards(9), 1, max_engine_deaths=2)
    engine = scheduler.start()[0].engine
    for _ in range(3):
        scheduler.engine_ready(engine, slots=1)
        scheduler.shard_done(engine, min(scheduler.in_flight))
        assert StartEngine(engine + 1) in scheduler.engine_lost(engine, "told to end", stopped=True)
        engine += 1
    assert not scheduler._deaths
    # From here on none does: each counts, or is taken for one that came up in a place that kills engines.
    for last in range(engine, engine + 4):
        assert not scheduler.finished
        scheduler.engine_ready(last, slots=1)
        actions = scheduler.engine_lost(last, "told to end", stopped=True)
        if scheduler.finished:
            break
    assert "engines died" in str(finish(actions).error)


def test_a_store_out_of_reach_of_the_only_engine_ends_the_run():
    scheduler = two_at_work(6)
    assert scheduler.engine_lost(0, "preempted", machine=True) == [KillEngine(0), StartEngine(2)]
    scheduler.service_failed(1, 3, "disk full", only_here=True)
    assert scheduler.stopping, "the other waits for a place, maybe for ever"


def test_what_a_suspect_ran_on_is_set_aside_and_the_suspect_stays_one():
    scheduler = Scheduler(shards(2), 2)
    scheduler.start()
    scheduler.engine_placed(0)
    scheduler.engine_ready(0, 1)
    scheduler.engine_lost(0, "x")
    for engine in (1, 2):
        scheduler.engine_placed(engine)
    scheduler.engine_ready(2, 1)
    scheduler.engine_lost(2, "x")  # at both deaths, shards 0 and 1 were there
    scheduler.engine_placed(3)
    assert dispatched(scheduler.engine_ready(1, 1)) == [(1, 0)]
    assert KillEngine(1) in scheduler.service_failed(1, 0, "stale file handle", only_here=True)
    assert dispatched(scheduler.engine_ready(3, 1)) == [(3, 0)], "alone"


def test_an_engine_on_which_shard_after_shard_fails_is_set_aside_where_another_works():
    scheduler = two_at_work(20)
    assert scheduler.shard_failed(1, 3, "OSError") == [Dispatch(1, shards(7)[6])]
    assert scheduler.shard_failed(1, 5, "OSError") == [KillEngine(1)]
    # A place that is bad for as long as the run lasts costs no shard its attempts, and does not end the run.
    scheduler = two_at_work(400)
    end = None
    started: list[int] = []
    held = [(0, 1), (1, 3), (0, 4), (1, 5)]
    done = {0, 2}
    tries = 0
    while end is None:
        actions: list = []
        if started:
            number = started.pop(0)
            scheduler.engine_placed(number)
            actions = scheduler.engine_ready(number, 1)
        else:
            number, shard = held.pop(0)
            if number:
                tries += 1
                actions = scheduler.shard_failed(number, shard, "OSError")
            else:
                done.add(shard)
                actions = scheduler.shard_done(number, shard)
        for action in actions:
            if isinstance(action, KillEngine):
                held = [(engine, index) for engine, index in held if engine != action.engine]
            elif isinstance(action, StartEngine):
                started.append(action.engine)
            elif isinstance(action, Finish):
                end = action
        held += dispatched(actions)
    assert end.error is None
    assert done == set(range(400))
    assert 50 < tries < 300


def test_what_fails_on_every_engine_ends_the_run():
    scheduler = Scheduler(shards(20), 3)
    scheduler.start()
    held: list[tuple[int, int]] = []
    for engine in range(3):
        scheduler.engine_placed(engine)
        held += dispatched(scheduler.engine_ready(engine, 1))
    actions: list = []
    while not scheduler.finished:
        actions = scheduler.shard_failed(*held.pop(0), "defect")
        assert not [action for action in actions if isinstance(action, StartEngine)]
        held += dispatched(actions)
    error = finish(actions).error
    assert isinstance(error, ShardFailed)
    assert "failed 4 times; the last time: defect" in str(error)


def test_what_failed_goes_to_another_engine_where_one_is_up():
    scheduler = Scheduler(shards(2), 2)
    scheduler.start()
    scheduler.engine_placed(0)
    scheduler.engine_placed(1)
    assert dispatched(scheduler.engine_ready(0, 1)) == [(0, 0), (0, 1)]
    assert dispatched(scheduler.shard_failed(0, 0, "x")) == [(0, 0)], "there is no other yet"
    assert dispatched(scheduler.shard_done(0, 1)) == []
    scheduler.engine_ready(1, 1)
    assert dispatched(scheduler.shard_failed(0, 0, "x")) == [(1, 0)]


def test_failures_between_which_an_engine_does_something_are_not_its_own():
    scheduler = two_at_work(20)
    scheduler.shard_failed(1, 3, "x")
    scheduler.shard_done(1, 5)
    assert not [a for a in scheduler.shard_failed(1, 6, "x") if isinstance(a, KillEngine)]


def test_trials_count_as_long_as_they_fail_in_a_row():
    scheduler = Scheduler(shards(60), 1)
    scheduler.start()
    scheduler.engine_ready(0, 1)
    scheduler.shard_done(0, 0)
    scheduler.engine_lost(0, "died at work")
    engine = 1
    for _ in range(3):
        for _ in range(2):
            (trial,) = dispatched(scheduler.engine_ready(engine, 1))
            assert trial == (engine, 0)
            scheduler.engine_lost(engine, "died in its trial")
            engine += 1
        scheduler.engine_ready(engine, 1)
        assert dispatched(scheduler.probe_done(engine, 0)), "this one is good"
        scheduler.engine_lost(engine, "died at work")
        engine += 1
    assert not scheduler.finished
    for _ in range(3):
        scheduler.engine_ready(engine, 1)
        actions = scheduler.engine_lost(engine, "died in its trial")
        engine += 1
    assert start_error(actions).startswith("engines died 3 times in a row on rows that are sound")


def test_what_another_engine_does_makes_no_failed_trial_good():
    scheduler = two_at_work(60)
    scheduler.engine_lost(1, "died at work")
    for engine, done in ((2, 1), (3, 4)):
        scheduler.engine_placed(engine)
        assert len(dispatched(scheduler.engine_ready(engine, 1))) == 1
        assert StartEngine(engine + 1) in scheduler.engine_lost(engine, "died in its trial")
        scheduler.shard_done(0, done)
    scheduler.engine_placed(4)
    scheduler.engine_ready(4, 1)
    actions = scheduler.engine_lost(4, "died in its trial")
    assert not [action for action in actions if isinstance(action, StartEngine)], "its place stays empty for a while"
    assert not scheduler.finished


def test_a_trial_that_fails_is_the_engine_s_fault_and_no_attempt_at_its_shard():
    scheduler = two_at_work(50, max_attempts=1)
    scheduler.engine_lost(1, "x")
    scheduler.engine_placed(2)
    for number in (2, 3):
        (trial,) = [action for action in scheduler.engine_ready(number, 1) if isinstance(action, Dispatch)]
        assert trial.rows is not None
        assert scheduler.shard_failed(number, trial.shard.index, "OSError") == [
            KillEngine(number),
            StartEngine(number + 1),
        ]
        scheduler.engine_placed(number + 1)
    (trial,) = [action for action in scheduler.engine_ready(4, 1) if isinstance(action, Dispatch)]
    assert scheduler.shard_failed(4, trial.shard.index, "OSError") == [KillEngine(4)], "its place stays empty"


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_every_shard_is_done_once_or_the_run_says_why(seed: int):
    """A random walk over all events: no shard is held twice, none is lost, and it always ends."""
    rng = random.Random(seed)
    scheduler = Scheduler(shards(rng.randint(1, 12)), rng.randint(1, 4), max_attempts=5)
    total = set(range(len(scheduler._pending)))
    starting: list[int] = []
    # Engine -> shard -> the rows of a probe, or None.
    ready: dict[int, dict[int, tuple[int, int] | None]] = {}
    done: set[int] = set()
    asked: list[tuple[int, int]] = []
    # Those of dispatches that are not answered yet; an answer to an earlier one may still be under way.
    asked_since: set[tuple[int, int]] = set()
    end: Finish | None = None

    def perform(actions: list) -> None:
        nonlocal end
        for action in actions:
            if isinstance(action, StartEngine):
                starting.append(action.engine)
            elif isinstance(action, KillEngine):
                ready.pop(action.engine, None)
            elif isinstance(action, Dispatch):
                held = {index for each in ready.values() for index in each}
                trial = action.rows is not None and action.shard.index in done
                assert trial or action.shard.index not in held | done
                alone = action.rows is not None or any(rows is not None for rows in ready[action.engine].values())
                assert not (alone and ready[action.engine]), "a probe runs alone"
                ready[action.engine][action.shard.index] = action.rows
                asked_since.discard((action.engine, action.shard.index))
            elif isinstance(action, Recall):
                assert ready[action.engine][action.shard] is None, "a probe stays where it is"
                assert (action.engine, action.shard) not in asked_since
                asked_since.add((action.engine, action.shard))
                asked.append((action.engine, action.shard))
            else:
                assert end is None
                end = action

    perform(scheduler.start())
    for _ in range(10_000):
        if end is not None:
            break
        working = [(engine, index) for engine, held in ready.items() for index in held]
        kind = rng.choice(["start", "done", "done", "done", "fail", "lose", "answer"])
        if asked and kind == "answer":
            engine, index = asked.pop(rng.randrange(len(asked)))
            if index in ready.get(engine, ()) and rng.random() < 0.7:
                ready[engine].pop(index)
                perform(scheduler.shard_returned(engine, index))
            else:
                perform(scheduler.recall_refused(engine, index))
        elif starting and (kind == "start" or not working):
            engine = starting.pop(rng.randrange(len(starting)))
            if rng.random() < 0.2:
                perform(scheduler.engine_start_failed(engine, "x", outage=rng.random() < 0.5))
            else:
                ready[engine] = {}
                perform(scheduler.engine_ready(engine, rng.randint(1, 8)))
        elif working:
            engine, index = rng.choice(working)
            if kind == "lose" and rng.random() < 0.3:
                ready.pop(engine)
                perform(scheduler.engine_lost(engine, "x"))
            else:
                rows = ready[engine].pop(index)
                if kind == "fail" and rng.random() < 0.3:
                    perform(scheduler.shard_failed(engine, index, "x"))
                elif kind == "fail" and rng.random() < 0.2:
                    perform(scheduler.service_failed(engine, index, "x", only_here=rng.random() < 0.9))
                elif rows is not None:
                    perform(scheduler.probe_done(engine, index))
                else:
                    done.add(index)
                    perform(scheduler.shard_done(engine, index))
    assert end is not None, "the run never ended"
    assert end.error is not None or done == total


@pytest.mark.parametrize("seed", range(100))
def test_just_the_rows_that_kill_engines_are_quarantined(seed: int):
    """Engines die of certain rows and of nothing else; all other rows are committed."""
    rng = random.Random(seed)
    count, size = rng.randint(1, 10), rng.randint(1, 40)
    killers = set(rng.sample(range(count * size), min(count * size, rng.randint(1, 3))))
    scheduler = Scheduler(shards(count, size), rng.randint(1, 4), max_engine_deaths=200)
    held: dict[int, list[Dispatch]] = {}
    committed: dict[int, frozenset[int]] = {}
    queue = [scheduler.start()]
    end: Finish | None = None
    deaths = 0
    while end is None:
        if queue:
            for action in queue.pop(0):
                if isinstance(action, StartEngine):
                    held[action.engine] = []
                    queue.append(scheduler.engine_ready(action.engine, rng.randint(1, 30)))
                elif isinstance(action, Dispatch):
                    held[action.engine].append(action)
                elif isinstance(action, Recall):
                    (work,) = [work for work in held[action.engine] if work.shard.index == action.shard]
                    if rng.random() < 0.5:
                        held[action.engine].remove(work)
                        queue.append(scheduler.shard_returned(action.engine, action.shard))
                    else:
                        queue.append(scheduler.recall_refused(action.engine, action.shard))
                elif isinstance(action, KillEngine):
                    held.pop(action.engine, None)
                else:
                    end = action
            continue
        engine = rng.choice([number for number, work in held.items() if work])
        work = held[engine].pop(rng.randrange(len(held[engine])))
        rows = set(range(*(work.rows or (work.shard.start, work.shard.stop)))) - work.quarantined
        if rows & killers:
            deaths += 1
            queue.append(scheduler.engine_lost(engine, "killed"))
        elif work.rows is not None:
            queue.append(scheduler.probe_done(engine, work.shard.index))
        else:
            committed[work.shard.index] = work.quarantined
            queue.append(scheduler.shard_done(engine, work.shard.index))
    assert end.error is None
    assert sorted(committed) == list(range(count))
    assert set().union(*committed.values()) == killers
    assert deaths <= len(killers) * (size.bit_length() + 4) + 2


@pytest.mark.parametrize("seed", range(100))
def test_a_machine_that_kills_its_engines_costs_no_row(seed: int):
    """Engines come up there and die of whatever they are given; rows that kill engines are found all the same."""
    rng = random.Random(seed)
    places, count, size = rng.randint(2, 5), rng.randint(20, 60), rng.randint(4, 40)
    killers = set(rng.sample(range(count * size), rng.randint(0, 2)))
    scheduler = Scheduler(shards(count, size), places, max_engine_deaths=40)
    free, place_of = list(range(places)), {}
    held: dict[int, list[Dispatch]] = {}
    starting: list[int] = []
    quarantined: set[int] = set()
    done: set[int] = set()
    end: Finish | None = None

    def perform(actions: list) -> None:
        nonlocal end
        for action in actions:
            if isinstance(action, StartEngine):
                starting.append(action.engine)
                scheduler.engine_placed(action.engine)
                place_of[action.engine] = free.pop(free.index(min(free)))
            elif isinstance(action, Dispatch):
                held[action.engine].append(action)
            elif isinstance(action, KillEngine):
                held.pop(action.engine, None)
                free.append(place_of.pop(action.engine))
            elif isinstance(action, Recall):
                perform(scheduler.recall_refused(action.engine, action.shard))
            else:
                end = action

    perform(scheduler.start())
    while end is None:
        # An engine dies on the broken machine, 0, in the time in which others do a shard or two; all come up together.
        broken = [engine for engine, work in held.items() if work and place_of[engine] == 0]
        well = [engine for engine, work in held.items() if work and place_of[engine] != 0]
        if starting and (rng.random() < 0.3 or not (broken or well) or starting[0] < places):
            engine = starting.pop(0)
            held[engine] = []
            perform(scheduler.engine_ready(engine, 4))
        elif broken and (rng.random() < 0.5 or not well):
            perform(scheduler.engine_lost(broken[0], "XID 79"))
        elif well:
            engine = rng.choice(well)
            work = held[engine].pop(rng.randrange(len(held[engine])))
            rows = set(range(*(work.rows or (work.shard.start, work.shard.stop)))) - work.quarantined
            if rows & killers:
                perform(scheduler.engine_lost(engine, "killed"))
            elif work.rows is not None:
                perform(scheduler.probe_done(engine, work.shard.index))
            else:
                done.add(work.shard.index)
                quarantined |= work.quarantined
                perform(scheduler.shard_done(engine, work.shard.index))
    assert end.error is None
    assert done == set(range(count))
    assert quarantined == killers
