"""The gate: never more in flight than the limit, whatever happens to those who wait or hold."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearsky_xr import _clock
from clearsky_xr._gate import Gate

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


class Clock:
    """Time that passes only where someone sleeps for it."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        assert seconds > 0
        self.slept.append(seconds)
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_clock, "monotonic", clock.monotonic)
    monkeypatch.setattr(_clock, "sleep", clock.sleep)
    return clock


class Traffic:
    """Requests that go through a gate, and what was seen of them."""

    def __init__(self, gate, rounds=3):
        self.gate, self.rounds = gate, rounds
        self.inside = self.peak = self.done = 0

    async def request(self, at_most=None):
        async with self.gate.slot(at_most):
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            assert self.gate.in_flight == self.inside
            try:
                for _ in range(self.rounds):
                    await asyncio.sleep(0)
            finally:
                self.inside -= 1
        self.done += 1

    async def run(self, count, at_most=None):
        await asyncio.gather(*(self.request(at_most) for _ in range(count)))


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def width(gate):
    """How many requests the gate lets in at once, found by trying."""
    traffic = Traffic(gate, rounds=10_000)
    tasks = [asyncio.create_task(traffic.request()) for _ in range(gate.limit + 3)]
    await turns()
    inside = traffic.inside
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert gate.in_flight == 0
    return inside


@pytest.mark.parametrize("limit", [1, 4, 16])
def test_the_limit_is_kept_and_used(limit):
    async def main():
        traffic = Traffic(Gate(limit))
        await traffic.run(100)
        assert (traffic.peak, traffic.done) == (limit, 100)
        assert traffic.gate.in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize(("at_most", "peak"), [(1, 1), (2, 2), (4, 4), (9, 4), (None, 4)])
def test_a_reader_may_ask_for_less(at_most, peak):
    async def main():
        traffic = Traffic(Gate(4))
        await traffic.run(30, at_most)
        assert (traffic.peak, traffic.done) == (peak, 30)

    asyncio.run(main())


def test_readers_with_different_limits_share_the_gate():
    async def main():
        gate = Gate(4)
        modest, greedy = Traffic(gate), Traffic(gate)
        modest.request = modest_request(gate, modest)
        greedy.request = modest_request(gate, greedy)
        await asyncio.gather(modest.run(20, 1), greedy.run(40))
        assert (modest.done, greedy.done) == (20, 40)
        assert modest.peak == 1
        assert greedy.peak <= 4

    def modest_request(gate, traffic):
        async def request(at_most=None):
            async with gate.slot(at_most):
                traffic.inside += 1
                traffic.peak = max(traffic.peak, traffic.inside)
                assert gate.in_flight <= (at_most or 4)
                await turns(2)
                traffic.inside -= 1
            traffic.done += 1

        return request

    async def bounded():
        await asyncio.wait_for(main(), 10)

    asyncio.run(bounded())


def test_refusals_halve_the_gate_and_answers_widen_it(clock):
    async def main():
        gate = Gate(8)
        assert await width(gate) == 8
        for expected in (4, 2, 1, 1):
            gate.refused(None)
            assert await width(gate) == expected
            gate.answered()
        seen = []
        for _ in range(100):
            gate.answered()
            seen.append(await width(gate))
        assert seen == sorted(seen)
        assert seen[-1] == 8
        # Slowly: a step for every ten answers.
        assert [seen.index(n) for n in range(2, 9)] == [8 + 10 * k for k in range(7)]
        assert clock.slept == []

    asyncio.run(main())


def test_refusals_at_the_same_time_are_one_sign():
    async def main():
        gate = Gate(8)
        for _ in range(5):
            gate.refused(None)
        assert await width(gate) == 4
        gate.answered()
        gate.refused(None)
        assert await width(gate) == 2

    asyncio.run(main())


def test_a_refusal_starts_the_count_of_answers_anew():
    async def main():
        gate = Gate(8)
        gate.refused(None)
        for _ in range(9):
            gate.answered()
        gate.refused(None)
        assert await width(gate) == 2
        for _ in range(9):
            gate.answered()
        assert await width(gate) == 2
        gate.answered()
        assert await width(gate) == 3

    asyncio.run(main())


def test_those_in_flight_finish_when_the_gate_narrows():
    async def main():
        gate = Gate(4)
        traffic = Traffic(gate, rounds=5)
        tasks = [asyncio.create_task(traffic.request()) for _ in range(12)]
        await turns(2)
        assert traffic.inside == 4
        gate.refused(None)
        traffic.peak = 0
        await turns(10)
        assert traffic.peak <= 2
        await asyncio.gather(*tasks)
        assert (traffic.done, gate.in_flight) == (12, 0)

    asyncio.run(main())


def test_those_who_wait_come_in_when_the_gate_widens():
    async def main():
        gate = Gate(4)
        gate.refused(None)
        traffic = Traffic(gate, rounds=10**6)
        tasks = [asyncio.create_task(traffic.request()) for _ in range(6)]
        await turns()
        assert traffic.inside == 2
        for _ in range(10):
            gate.answered()
        await turns()
        assert traffic.inside == 3  # although nobody left
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.in_flight == 0

    asyncio.run(main())


def test_a_pause_holds_everyone_back(clock):
    async def main():
        gate = Gate(4)
        gate.refused(30.0)
        began = clock.now
        entered = []

        async def request():
            async with gate.slot():
                entered.append(clock.now - began)

        await asyncio.gather(*(request() for _ in range(6)))
        assert len(entered) == 6
        assert min(entered) >= 30.0
        assert max(clock.slept) == 30.0

    asyncio.run(main())


def test_a_pause_holds_those_who_wait_for_a_slot_too(clock):
    async def main():
        gate = Gate(1)
        entered = []

        async def request():
            async with gate.slot():
                entered.append(clock.now)

        async with gate.slot():
            waiting = [asyncio.create_task(request()) for _ in range(3)]
            await turns()
            assert entered == []
            began = clock.now
            gate.refused(20.0)
        await asyncio.gather(*waiting)
        assert min(entered) >= began + 20.0

    asyncio.run(main())


def test_the_longest_pause_holds(clock):
    async def main():
        gate = Gate(4)
        began = clock.now
        gate.refused(30.0)
        gate.refused(5.0)
        gate.refused(None)
        async with gate.slot():
            assert clock.now >= began + 30.0

    asyncio.run(main())


def test_the_account_may_tell_another_limit():
    async def main():
        gate = Gate(4)
        gate.limit_to(2)
        assert await width(gate) == 2
        traffic = Traffic(gate, rounds=1000)
        tasks = [asyncio.create_task(traffic.request()) for _ in range(8)]
        await turns()
        assert traffic.inside == 2
        gate.limit_to(6)  # those who wait come in at once
        await turns()
        assert traffic.inside == 6
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.in_flight == 0

    asyncio.run(main())


def test_an_error_inside_gives_the_slot_back():
    async def main():
        gate = Gate(1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with gate.slot():
                    raise ZeroDivisionError
        assert gate.in_flight == 0
        assert await width(gate) == 1

    asyncio.run(main())


def test_cancelling_a_holder_lets_the_next_one_in():
    async def main():
        gate = Gate(1)
        held, next_one = Traffic(gate, rounds=10**6), Traffic(gate)
        holder = asyncio.create_task(held.request())
        await turns()
        waiter = asyncio.create_task(next_one.request())
        await turns()
        assert (held.inside, next_one.inside) == (1, 0)
        holder.cancel()
        await asyncio.wait_for(waiter, 10)
        assert next_one.done == 1
        assert gate.in_flight == 0

    asyncio.run(main())


def test_cancelling_a_waiter_loses_no_turn():
    async def main():
        for moment in range(8):
            gate = Gate(1)
            first, cancelled, last = (Traffic(gate, rounds=4) for _ in range(3))
            tasks = [asyncio.create_task(t.request()) for t in (first, cancelled, last)]
            # Before it waits, while it waits, and just when its turn was given.
            await turns(moment)
            tasks[1].cancel()
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
            assert (first.done, last.done) == (1, 1)
            assert gate.in_flight == 0

    asyncio.run(main())


def test_cancelling_in_a_pause_holds_nothing(clock):
    async def main():
        gate = Gate(1)
        gate.refused(10.0)
        task = asyncio.create_task(Traffic(gate).request())
        await turns(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert gate.in_flight == 0
        await asyncio.wait_for(Traffic(gate).request(), 10)
        assert clock.slept

    asyncio.run(main())


@PROPERTY
@given(
    limit=st.integers(1, 6),
    events=st.lists(
        st.sampled_from(["enter", "enter", "enter", "modest", "leave", "cancel", "refused",
                         "answered", "turn", "turn"]),
        max_size=80,
    ),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_whatever_happens_no_slot_leaks_and_no_one_is_forgotten(limit, events, seed):
    async def main():
        gate, rng = Gate(limit), random.Random(seed)  # noqa: S311  no secret
        inside, tasks = set(), []

        async def request(at_most):
            async with gate.slot(at_most):
                leave = asyncio.Event()
                inside.add(leave)
                assert len(inside) <= limit
                try:
                    await leave.wait()
                finally:
                    inside.discard(leave)

        for event in events:
            if event in ("enter", "modest"):
                tasks.append(asyncio.create_task(request(1 if event == "modest" else None)))
            elif event == "leave" and inside:
                rng.choice(sorted(inside, key=id)).set()
            elif event == "cancel" and tasks:
                rng.choice(tasks).cancel()
            elif event == "refused":
                gate.refused(None)
            elif event == "answered":
                gate.answered()
            await asyncio.sleep(0)
            assert gate.in_flight <= limit
        # Everyone else gets in and out in the end.
        for _ in range(10 * len(tasks) + 10):
            for leave in list(inside):
                leave.set()
            await turns(3)
        assert all(task.done() for task in tasks)
        assert gate.in_flight == 0
        assert not inside

    asyncio.run(main())
