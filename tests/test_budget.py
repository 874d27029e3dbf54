"""The ledger: every credit is in exactly one place, also under threads."""

import datetime as dt
import threading
from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import clearsky_xr
from clearsky_xr._budget import Budget, Purse, Spent
from clearsky_xr._ledger import Ledger
from clearsky_xr._pixels import PixelSet, Window
from clearsky_xr._request import Request
from clearsky_xr.errors import BudgetError, InvalidOptionError

from .conftest import FARM, SPRING, access, credits_of, paid


def ask(price, km2=0.0):
    """A request of a price."""
    return Request(
        dt.date(2025, 4, 1), PixelSet(Window(0, 1, 0, 1)), "POLYGON", price, ("B2",), 32633, 10,
        "Stratus2", ("Sentinel2",), allow_partial=False, area_km2=km2,
    )  # fmt: skip


class Bookkeeping(RuleBasedStateMachine):
    """The ledger beside a plain one in exact decimals."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.flying = []
        self.settled = self.possibly = self.repeated = Decimal(0)
        self.requests = 0

    @rule(cents=st.integers(1, 200_000))
    def reserve(self, cents):
        self.flying.append((Decimal(cents) / 100, self.ledger.reserve(ask(cents / 100))))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def settle(self, data):
        price, booking = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.ledger.settle(booking, 7)
        self.settled += price
        self.requests += 1

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), possibly=st.booleans())
    def release(self, data, possibly):
        price, booking = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.ledger.release(booking, possibly=possibly)
        self.possibly += price * possibly

    @rule(cents=st.integers(1, 150))
    def repeat(self, cents):
        price = Decimal(cents) / 100
        allowance = max(Decimal(1), self.settled * 2 / 100)
        granted = self.ledger.repeat_lost(float(price))
        # Binary dust may decide where the allowance is met to the last digit.
        if abs(self.repeated + price - allowance) > Decimal("1e-6"):
            assert granted == (self.repeated + price < allowance)
        if granted:
            self.repeated += price
        assert self.repeated <= allowance + Decimal("1e-6")

    @invariant()
    def totals_agree(self):
        assert self.ledger.spent() == Spent(
            float(self.settled),
            float(self.possibly),
            float(sum(price for price, _ in self.flying)),
            self.requests,
            7 * self.requests,
        )


TestBookkeeping = Bookkeeping.TestCase
TestBookkeeping.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
)


def test_an_empty_ledger():
    assert Ledger().spent() == Spent(0.0, 0.0, 0.0, 0)


def test_repeats_of_lost_downloads_stay_below_one_credit_at_first():
    ledger = Ledger()
    assert [ledger.repeat_lost(0.4) for _ in range(4)] == [True, True, False, False]
    assert ledger.repeat_lost(0.15) is True  # a smaller one still fits


def test_and_below_two_percent_later():
    ledger = Ledger()
    ledger.settle(ledger.reserve(ask(100.0)))
    assert ledger.repeat_lost(2.5) is False
    assert ledger.repeat_lost(1.5) is True
    assert ledger.repeat_lost(0.6) is False
    booking = ledger.reserve(ask(50.0))
    assert ledger.repeat_lost(0.6) is False  # what is in flight is not settled
    ledger.settle(booking)
    assert ledger.repeat_lost(0.6) is True


def test_binary_dust_is_not_shown():
    ledger = Ledger()
    for _ in range(1000):
        ledger.settle(ledger.reserve(ask(0.01)))
    assert ledger.spent() == Spent(10.0, 0.0, 0.0, 1000)
    for _ in range(30):
        ledger.release(ledger.reserve(ask(0.07)), possibly=True)
    assert ledger.spent() == Spent(10.0, 2.1, 0.0, 1000)


@pytest.mark.parametrize("threads", [8])
def test_threads_lose_nothing(threads):
    ledger, granted = Ledger(), []
    start = threading.Barrier(threads)

    def work(number):
        start.wait()
        for k in range(500):
            booking = ledger.reserve(ask(0.03))
            if (number + k) % 5:
                ledger.settle(booking)
            else:
                ledger.release(booking, possibly=k % 2 == 0)
            granted.append(ledger.repeat_lost(0.01))

    crowd = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    every = [(n, k) for n in range(threads) for k in range(500)]
    settled = sum((n + k) % 5 != 0 for n, k in every)
    lost = sum((n + k) % 5 == 0 and k % 2 == 0 for n, k in every)
    assert ledger.spent() == Spent(round(settled * 0.03, 2), round(lost * 0.03, 2), 0.0, settled)
    # 2 % of 96 credits is 1.92: at 0.01 each, no more than 192 were granted by racing threads.
    assert 100 <= sum(granted) <= 192


def test_a_price_is_rounded_up_before_it_is_known():
    assert ask(0.42, 4.231).credits_at_most == 0.43
    assert ask(0.3, 3.0).credits_at_most == 0.3
    assert ask(0.01, 0.0001).credits_at_most == 0.01
    ledger = Ledger()
    booking = ledger.reserve(ask(0.42, 4.231))
    assert ledger.spent() == Spent(0, 0, 0.43, 0)
    ledger.settle(booking)
    assert ledger.spent() == Spent(0.42, 0, 0, 1)


def test_budgets_nest_and_what_may_have_been_charged_counts():
    ledger = Ledger()
    with Budget(1.0, ledger) as outer:
        ledger.settle(ledger.reserve(ask(0.25)), 3)
        with Budget(0.5, ledger) as inner:
            ledger.release(ledger.reserve(ask(0.25)), possibly=True)
            ledger.release(ledger.reserve(ask(0.25)), possibly=False)
            flying = ledger.reserve(ask(0.2))
            with pytest.raises(BudgetError, match=r"budget of 0\.50 .* 0\.05 are left") as caught:
                ledger.reserve(ask(0.06))
            assert caught.value.details == {"limit": 0.5, "asked": 0.06, "left": 0.05}
            assert inner.report() == Spent(0, 0.25, 0.2, 0)
        ledger.settle(flying)  # it was sent under the inner one, too
        assert (inner.report().settled, inner.left) == (0.2, 0.05)
        assert outer.report() == Spent(0.45, 0.25, 0, 2, 3)
        with pytest.raises(BudgetError, match=r"budget of 1\.00"):
            ledger.reserve(ask(0.31))
    assert ledger.spent() == Spent(0.45, 0.25, 0, 2, 3)
    ledger.reserve(ask(10.0))  # no budget is active any more
    assert outer.left == 0.3
    assert repr(outer) == "<clearsky_xr budget of 1.00 credits, 0.30 left>"


def test_a_purse_is_found_again_by_its_name():
    ledger, purse = Ledger(), Purse("mine", 0.1)
    ledger.settle(ledger.reserve(ask(0.07), purse))
    ledger.settle(ledger.reserve(ask(0.07), Purse("yours", 0.1)))
    with pytest.raises(BudgetError):
        ledger.reserve(ask(0.04), Purse("mine", 0.1))
    ledger.reserve(ask(0.03), purse)


@pytest.mark.parametrize("limit", [-1, float("nan"), "much", True, None])
def test_a_limit_is_a_number(limit):
    with pytest.raises(InvalidOptionError, match="credits"):
        clearsky_xr.budget(limit)


def test_max_credits_holds_for_what_was_opened(serve):
    server = serve()
    ds = clearsky_xr.open_timeseries(FARM, SPRING, max_credits=0.05, **access(server))
    ds.reflectance.isel(x=3, y=3).load()  # four dates, a cent each
    with pytest.raises(BudgetError, match=r"0\.04 are spent.* 0\.01 are left"):
        ds.reflectance.load()
    assert credits_of(server) == 0.04
    other = clearsky_xr.open_timeseries(FARM, SPRING, **access(server))
    other.reflectance.load()
    ds.reflectance.load()  # costs nothing any more
    assert ds.chunk().__dask_tokenize__() is not None


def test_a_store_is_filled_within_a_budget(serve, tmp_path):
    server = serve()
    ds = clearsky_xr.open_timeseries(FARM, SPRING, store=tmp_path / "s.zarr", **access(server))
    with clearsky_xr.budget(0.2) as b, pytest.raises(BudgetError):
        ds.clearsky.prefetch(progress=False)
    spent = b.report().settled
    assert spent <= 0.2  # what was not sent when another one was refused is not sent
    assert credits_of(server) == spent
    ds.clearsky.prefetch(progress=False)
    assert ds.clearsky.fetched().all()
    assert len(paid(server)) == 4
