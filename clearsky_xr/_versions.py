"""Whether the images of a cube were made alike: they are made anew, and models grow."""

from __future__ import annotations

from ._answers import clean
from ._request import Receipt


class Versions:
    """Versions of the images of one cube, as this process has bought them."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {"MODEL_VERSION": set(), "IMAGE_VERSION": set()}
        self._said = False

    def add(self, receipt: Receipt) -> None:
        """Take note of an answer; where it comes of several tiles, it lists one for each."""
        for name, text in zip(
            self._seen, (receipt.model_version, receipt.image_version), strict=True
        ):
            self._seen[name].update(part.strip() for part in text.split(",") if part.strip())

    def news(self) -> list[str]:
        """Give what the user should hear about, once."""
        differing = [
            f"{name} {clean(', '.join(sorted(seen)))}"
            for name, seen in self._seen.items()
            if len(seen) > 1
        ]
        if self._said or not differing:
            return []
        self._said = True
        notice = (
            f"the images of this cube differ in how they were made: {'; '.join(differing)}. With a "
            "store, .clearsky.with_receipts() tells which date has which"
        )
        return [notice]
