"""The gate on a scheduler, without a cluster: the limit is kept, and no slot is lost."""

import asyncio
import datetime as dt
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clearsky_xr
from clearsky_xr import _clock, _scheduler
from clearsky_xr._scheduler import ClusterGate
from clearsky_xr.errors import CredentialsError, InvalidOptionError

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
HOLDERS = ["tcp://a", "tcp://b", "tcp://c", "Client-1"]
DAY = str(dt.date(2025, 4, 1))


def a_scheduler():
    return SimpleNamespace(
        handlers={}, stream_handlers={}, tasks={}, workers=dict.fromkeys(HOLDERS[:3]),
        clients={HOLDERS[3]: None},
    )  # fmt: skip


async def started(limit=4, *, concurrency=None, quarantine=None):
    gate = ClusterGate(concurrency, quarantine)
    await gate.start(a_scheduler())
    await gate.limit("account", limit)
    return gate


def ask(gate, ticket, holder="tcp://a", patience=900.0):
    return asyncio.create_task(
        gate.slot(ticket, holder=holder, account="account", patience=patience)
    )


def book(gate, ticket, price, purse=None, bound=()):
    return gate.book(
        ticket, date=DAY, credits=price, credits_at_most=price, purse=purse, bound=bound
    )


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


def stands(status):
    (gate,) = status["gates"]
    return gate["in_flight"], gate["waiting"], gate["orphans"]


def run(test):
    """Run a coroutine function as a test."""

    def wrapped():
        asyncio.run(test())

    wrapped.__name__ = test.__name__
    return wrapped


@run
async def test_first_come_first_served():
    gate = await started(limit=1)
    asked = [ask(gate, str(k), HOLDERS[k % 4]) for k in range(6)]
    for k in range(6):
        await turns()
        assert [task.done() for task in asked] == [j <= k for j in range(6)]
        assert stands(await gate.status()) == (1, 5 - k, 0)
        await gate.leave(str(k))
    assert stands(await gate.status()) == (0, 0, 0)


@run
async def test_what_is_asked_again_is_one_slot():
    gate = await started(limit=2)
    first, again = ask(gate, "t"), ask(gate, "t")
    await turns()
    assert first.done()
    assert again.done()
    assert stands(await gate.status()) == (1, 0, 0)
    await gate.leave("t")
    await gate.leave("t")
    assert stands(await gate.status()) == (0, 0, 0)


@run
async def test_an_unknown_limit_is_one():
    gate = ClusterGate(None, None)
    await gate.start(a_scheduler())
    tasks = [ask(gate, str(k)) for k in range(3)]
    await turns()
    assert sum(task.done() for task in tasks) == 1
    await gate.limit("account", 3)
    await turns()
    assert sum(task.done() for task in tasks) == 3


@run
async def test_the_limit_changes_while_it_runs():
    gate = await started(limit=4)
    tasks = [ask(gate, str(k)) for k in range(12)]
    await turns()
    assert sum(task.done() for task in tasks) == 4
    await gate.limit("account", 1)
    for k in range(3):
        await gate.leave(str(k))
    await turns()
    assert sum(task.done() for task in tasks) == 4
    await gate.leave("3")
    await turns()
    assert sum(task.done() for task in tasks) == 5
    await gate.configure(concurrency=2, quarantine=None)
    await gate.limit("account", 16)
    await turns()
    assert sum(task.done() for task in tasks) == 6
    await gate.configure(concurrency=None, quarantine=None)
    await turns()
    assert sum(task.done() for task in tasks) == 12


@run
async def test_a_refusal_narrows_the_gate_for_everybody():
    gate = await started(limit=4)
    tasks = [ask(gate, str(k), HOLDERS[k % 4]) for k in range(8)]
    await turns()
    await gate.leave("0", refused=True)
    await turns()
    assert sum(task.done() for task in tasks) == 4  # 3 in flight, and no more than 2 let in
    for k in (1, 2):
        await gate.leave(str(k))
    await turns()
    assert sum(task.done() for task in tasks) == 5
    # Telling the same limit anew does not widen it.
    await gate.limit("account", 4)
    await turns()
    assert sum(task.done() for task in tasks) == 5


@run
async def test_strangers_get_nothing():
    gate = await started()
    assert await ask(gate, "t", "tcp://elsewhere") == {"stranger": True}
    assert stands(await gate.status()) == (0, 0, 0)
    assert await book(gate, "none", 1.0) == {"stranger": True}


@pytest.mark.parametrize(("quarantine", "rest"), [(None, 700.0), (50.0, 0.0), (250.0, 50.0)])
def test_the_slots_of_the_dead_come_back_after_what_is_left_of_their_requests(
    monkeypatch, quarantine, rest
):
    async def main():
        gate = await started(limit=2, quarantine=quarantine)
        monkeypatch.setattr(_clock, "monotonic", lambda: 1000.0)
        for ticket in "ab":
            ask(gate, ticket)
        waiting, other = ask(gate, "c"), ask(gate, "d", "tcp://b")
        await turns()
        assert await book(gate, "a", 1.0) == {}
        monkeypatch.setattr(_clock, "monotonic", lambda: 1200.0)
        delays = []
        loop = asyncio.get_running_loop()
        later = loop.call_later
        monkeypatch.setattr(
            loop, "call_later", lambda delay, *work: (delays.append(delay), later(0, *work))[1]
        )
        del gate._scheduler.workers["tcp://a"]
        gate.remove_worker(gate._scheduler, "tcp://a", stimulus_id="test")
        assert delays == [rest, rest]
        status = await gate.status()
        assert stands(status) == (2, 1, 2)
        # What it had sent may have been charged, and is not in flight any more.
        assert status["spent"]["possibly"] == 1.0
        assert status["spent"]["reserved"] == 0.0
        assert not other.done()
        monkeypatch.undo()
        await asyncio.sleep(0.01)
        await turns()
        assert other.done()
        assert (await waiting)["stranger"]
        assert stands(await gate.status()) == (1, 0, 0)
        # It was not dead after all: what it gives back is not given back twice.
        await gate.leave("a", outcome="settled", size=10)
        assert stands(await gate.status()) == (1, 0, 0)

    asyncio.run(main())


@run
async def test_who_comes_back_from_the_dead_frees_its_slot_at_once():
    gate = await started(limit=1)
    ask(gate, "a")
    await turns()
    gate.remove_worker(gate._scheduler, "tcp://a", stimulus_id="test")
    assert stands(await gate.status()) == (1, 0, 1)
    await gate.leave("a")
    assert stands(await gate.status()) == (0, 0, 0)


@run
async def test_one_budget_for_all_holders():
    gate = await started(limit=16)
    await gate.budget("b", holder=HOLDERS[3], limit=1.0, opened=True)
    booked = 0
    for k in range(8):
        await ask(gate, str(k), HOLDERS[k % 4])
        said = await book(gate, str(k), 0.3, None)
        booked += not said
        assert ("message" in said) == (k >= 3)
    assert booked == 3
    assert said["details"] == {"limit": 1.0, "asked": 0.3, "left": 0.1}
    assert (await gate.report("b"))["tally"]["spent"]["reserved"] == 0.9
    await gate.leave("0", outcome="released")
    assert await book(gate, "5", 0.3) == {}
    # Asked again, as after a broken connection: booked once.
    assert await book(gate, "5", 0.3) == {}
    await gate.leave("5", outcome="settled", size=100)
    assert (await gate.report("b"))["tally"] == {
        "spent": {"settled": 0.3, "possibly": 0.0, "reserved": 0.6, "requests": 1, "bytes": 100},
        "dates": 1, "in_flight": 2,
    }  # fmt: skip
    await gate.budget("b", holder=HOLDERS[3], limit=1.0, opened=False)
    assert await book(gate, "6", 5.0) == {}
    assert (await gate.report("b"))["tally"]["spent"]["settled"] == 0.3


@run
async def test_a_budget_binds_what_was_begun_while_it_held():
    gate = await started(limit=16)
    await gate.budget("b", holder=HOLDERS[3], limit=1.0, opened=True)
    assert await gate.bound() == ["b"]
    await gate.budget("b", holder=HOLDERS[3], limit=1.0, opened=False)
    assert await gate.bound() == []
    for k, (bound, fits) in enumerate([(["b"], True), (["b"], False), ([], True)]):
        await ask(gate, str(k))
        assert ("message" not in await book(gate, str(k), 0.6, None, bound)) == fits
    assert (await gate.report("b"))["tally"]["spent"]["reserved"] == 0.6


@run
async def test_a_cubes_own_limit_holds_for_all_holders_and_budgets_end_with_their_client():
    gate = await started(limit=16)
    for k, (purse, fits) in enumerate([(1, True), (1, True), (1, False), (2, True), (1, False)]):
        await ask(gate, str(k), HOLDERS[k % 4])
        said = await book(gate, str(k), 0.4, (str(purse), 1.0))
        assert ("message" not in said) == fits
    await gate.budget("b", holder=HOLDERS[3], limit=0.0, opened=True)
    await ask(gate, "x")
    assert "message" in await book(gate, "x", 0.01)
    gate.remove_client(gate._scheduler, HOLDERS[3])
    assert await book(gate, "x", 0.01) == {}
    # What was begun while it held stays bound; and who comes back finds it as it was.
    await ask(gate, "y")
    assert "message" in await book(gate, "y", 0.01, bound=["b"])
    gate.add_client(gate._scheduler, HOLDERS[3])
    assert "message" in await book(gate, "y", 0.01)
    await gate.budget("b", holder=HOLDERS[3], limit=0.0, opened=False)
    gate.remove_client(gate._scheduler, HOLDERS[3])
    gate.add_client(gate._scheduler, HOLDERS[3])
    assert await book(gate, "y", 0.01) == {}


@run
async def test_tasks_are_bound_from_their_graph_to_their_end():
    gate = await started()
    tasks = gate._scheduler.tasks

    def arrive(*keys):
        gate.update_graph(gate._scheduler, client=HOLDERS[3], keys=set(keys), tasks=list(keys))

    def move(key, state):
        before, tasks[key].state = tasks[key].state, state
        gate.transition(key, before, state, stimulus_id="test")

    def bound(key):
        return (tasks[key].annotations or {}).get("clearsky_xr", ())

    for key in "pqrs":
        tasks[key] = SimpleNamespace(state="released", annotations=None)
    tasks["r"].annotations = {"span": 1}
    arrive("p")
    move("p", "memory")
    await gate.budget("a", holder=HOLDERS[3], limit=1.0, opened=True)
    await gate.budget("b", holder=HOLDERS[3], limit=1.0, opened=True)
    arrive("p", "q", "r", "s")
    assert not bound("p")  # it is there already: who computes it anew is bound by nothing
    assert bound("q") == bound("r") == ("a", "b")
    assert tasks["r"].annotations["span"] == 1
    for key in "qrs":
        move(key, "waiting")
    await gate.budget("b", holder=HOLDERS[3], limit=1.0, opened=False)
    arrive("q")
    assert bound("q") == ("a",)  # what binds both
    move("r", "processing")
    move("r", "released")  # its worker has died
    assert bound("r") == ("a", "b")
    move("r", "memory")
    move("r", "released")  # kept for its dependents only
    assert not bound("r")
    await gate.budget("a", holder=HOLDERS[3], limit=1.0, opened=False)
    assert bound("s") == ("a", "b")
    arrive("r", "s")
    assert not bound("r")
    assert not bound("s")


@run
async def test_a_budget_ends_after_the_graphs_that_were_sent_before():
    gate = await started()
    await gate.budget("b", holder=HOLDERS[3], limit=1.0, opened=True)
    ending = asyncio.create_task(
        gate.budget("b", holder=HOLDERS[3], limit=0.0, opened=False, marked=True)
    )
    await turns()
    assert await gate.bound() == ["b"]
    gate._scheduler.stream_handlers["clearsky_xr_mark"](name="b", client=HOLDERS[3])
    assert await ending
    assert await gate.bound() == []
    # Both may come once more, or late; nobody waits for them.
    again = gate.budget("b", holder=HOLDERS[3], limit=0.0, opened=False, marked=True)
    assert await asyncio.wait_for(again, 1)
    gate._scheduler.stream_handlers["clearsky_xr_mark"](name="b", client=HOLDERS[3])
    assert not gate._marks


@run
async def test_budgets_are_forgotten_as_they_end_and_not_while_something_is_in_flight():
    gate = await started(limit=16)

    async def budget(name, *, opened):
        await gate.budget(name, holder=HOLDERS[3], limit=9.0, opened=opened)

    await budget("outer", opened=True)
    await ask(gate, "1")
    await book(gate, "1", 0.5)
    most = _scheduler._MOST_ENDED
    for k in range(most + 2):
        await budget(str(k), opened=True)
        await budget(str(k), opened=False)
    await budget("outer", opened=False)
    await budget("next", opened=True)
    asked = ["0", "1", "2", str(most), "outer"]
    assert await gate.bound(asked) == ["next", "2", str(most), "outer"]
    for k in range(most + 2, 2 * most + 4):
        await budget(str(k), opened=True)
        await budget(str(k), opened=False)
    assert (await gate.report("outer"))["tally"]["spent"]["reserved"] == 0.5
    assert (await gate.report("0"))["tally"] is None


@run
async def test_a_budget_of_a_worker_ends_with_it():
    gate = await started()
    await gate.budget("b", holder="tcp://a", limit=0.0, opened=True)
    assert await gate.bound() == ["b"]
    gate.remove_worker(gate._scheduler, "tcp://a", stimulus_id="test")
    assert await gate.bound() == []


@run
async def test_budgets_that_have_ended_are_forgotten_in_the_end():
    gate = await started()
    for k in range(1010):
        await gate.budget(f"b{k}", holder=HOLDERS[3], limit=1.0, opened=True)
        await gate.budget(f"b{k}", holder=HOLDERS[3], limit=1.0, opened=False)
    assert len(gate._budgets) == 1000
    assert (await gate.report("b0"))["tally"] is None
    # Whoever is bound by what is not known any more buys nothing.
    await ask(gate, "t")
    assert await book(gate, "t", 0.01, bound=["b0"]) == {"stranger": True}


@run
async def test_what_the_dead_book_is_not_reserved_for_ever():
    gate = await started(limit=2)
    for ticket in "ab":
        await ask(gate, ticket)
    assert await book(gate, "a", 1.0) == {}
    gate.remove_worker(gate._scheduler, "tcp://a", stimulus_id="test")
    assert await book(gate, "b", 1.0) == {"stranger": True}
    for ticket in "ab":
        gate._bury(ticket)
    spent = (await gate.status())["spent"]
    assert (spent["reserved"], spent["possibly"]) == (0.0, 1.0)


@run
async def test_a_block_is_claimed_by_one_holder():
    gate = await started()
    a, b, other = (
        {"holder": holder, "store": store}
        for holder, store in [("tcp://a", "store"), ("tcp://b", "store"), ("tcp://b", "other")]
    )
    assert await gate.claim("1", **a, numbers=[1, 2, 3]) == [1, 2, 3]
    assert await gate.claim("1", **a, numbers=[1, 2, 3]) == [1, 2, 3]  # asked for again
    assert await gate.claim("2", **b, numbers=[3, 4]) == [4]
    assert await gate.claim("3", **other, numbers=[3]) == [3]
    await gate.unclaim("2", **b, numbers=[3])  # not its own
    assert await gate.claim("4", **b, numbers=[3]) == []
    await gate.unclaim("1", **a, numbers=[3])
    assert await gate.claim("5", **b, numbers=[2, 3]) == [3]
    gate.remove_worker(gate._scheduler, "tcp://a", stimulus_id="test")
    assert await gate.claim("6", **b, numbers=[1, 2]) == [1, 2]


@run
async def test_a_claim_that_is_given_back_late_frees_nothing_that_was_claimed_again():
    gate = await started()
    mine = {"holder": "tcp://a", "store": "store", "numbers": [1, 2]}
    assert await gate.claim("1", **mine) == [1, 2]
    await gate.unclaim("1", **mine)
    assert await gate.claim("2", **mine) == [1, 2]
    await gate.unclaim("1", **mine)  # said again, since its first answer was lost
    assert await gate.claim("3", holder="tcp://b", store="store", numbers=[1, 2]) == []


@given(
    first=st.integers(1, 5),
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "leave", "die", "bury", "limit"]), st.integers(0, 999)),
        max_size=60,
    ),
)
@PROPERTY
def test_whatever_happens_the_limit_is_kept_and_no_slot_is_lost(first, steps):
    async def main():
        limit = first
        gate = await started(limit)
        alive = set(HOLDERS[:3])
        tickets = {}  # to their holders, of those that were asked for and not given back
        orphans = set()
        tasks = {}
        most = limit
        for k, (verb, number) in enumerate(steps):
            chosen = random.Random(number)  # noqa: S311  no secret
            if verb == "ask" and alive:
                ticket, holder = f"t{k}", chosen.choice(sorted(alive))
                tickets[ticket], tasks[ticket] = holder, ask(gate, ticket, holder)
            elif verb == "leave" and tickets:
                ticket = chosen.choice(sorted(tickets))
                del tickets[ticket]
                orphans.discard(ticket)
                await gate.leave(ticket)
            elif verb == "die" and len(alive) > 1:
                holder = chosen.choice(sorted(alive))
                alive.discard(holder)
                del gate._scheduler.workers[holder]
                gate.remove_worker(gate._scheduler, holder, stimulus_id="test")
                for ticket in [t for t, by in tickets.items() if by == holder]:
                    if tasks[ticket].done():
                        orphans.add(ticket)
                    else:
                        del tickets[ticket]
            elif verb == "bury" and orphans:
                ticket = chosen.choice(sorted(orphans))
                orphans.discard(ticket)
                tickets.pop(ticket, None)
                gate._bury(ticket)
            elif verb == "limit":
                limit = 1 + number % 5
                most = max(most, limit)
                await gate.limit("account", limit)
            await turns()
            granted = {t for t in tickets if tasks[t].done() and "limit" in tasks[t].result()}
            in_flight, waiting, dead = stands(await gate.status())
            assert in_flight == len(granted) <= most
            assert dead == len(orphans)
            assert waiting == len(tickets) - len(granted)
            # Nobody waits beside a free slot.
            assert waiting == 0 or in_flight >= limit
        await gate.close()
        await turns()
        assert stands(await gate.status()) == (0, 0, 0)

    asyncio.run(main())


def test_wrong_options():
    with pytest.raises(InvalidOptionError, match="no Dask client"):
        clearsky_xr.cluster.setup()
    with pytest.raises(InvalidOptionError, match="no Dask client"):
        clearsky_xr.cluster.status()
    client = object()
    for options in ({"concurrency": 0}, {"quarantine": -1}, {"quarantine": float("nan")}):
        with pytest.raises(InvalidOptionError):
            clearsky_xr.cluster.setup(client, **options)
    with pytest.raises(CredentialsError):
        clearsky_xr.cluster.setup(client, api_key="two\nlines")
