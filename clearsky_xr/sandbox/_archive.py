"""Which days an archive of regular cadence has images of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta


@dataclass(frozen=True, slots=True)
class Archive:
    """The days of the synthetic archive.

    Parameters
    ----------
    start : date
        First possible day.
    end : date or None
        Last possible day; None is yesterday (UTC), so that the archive grows.
    cadence : int
        Days between images.
    reference : date
        Anchor: day d has an image if ``(d - reference)`` is a multiple of the
        cadence (contract, section 10).
    """

    start: date
    end: date | None
    cadence: int
    reference: date

    def __post_init__(self) -> None:
        if self.cadence < 1:
            raise ValueError(f"cadence_days must be at least 1, got {self.cadence}")

    @property
    def last(self) -> date:
        """The last possible day."""
        return self.end or datetime.now(UTC).date() - timedelta(days=1)

    def __contains__(self, day: object) -> bool:
        return isinstance(day, date) and self.start <= day <= self.last and self.on_cadence(day)

    def on_cadence(self, day: date) -> bool:
        """Whether the day is in the rhythm, inside the archive's time or not."""
        return (day - self.reference).days % self.cadence == 0

    def days(self) -> Sequence[date]:
        """Give all days, ascending."""
        first = self.start + timedelta(days=(self.reference - self.start).days % self.cadence)
        count = (self.last - first).days // self.cadence + 1
        return [first + timedelta(days=self.cadence * i) for i in range(max(count, 0))]
