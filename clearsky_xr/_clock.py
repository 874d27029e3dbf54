"""Time, behind one door, so that tests of retries and pauses need not wait."""

from __future__ import annotations

import asyncio
import time


def monotonic() -> float:
    """Give seconds that only grow."""
    return time.monotonic()


async def sleep(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)
