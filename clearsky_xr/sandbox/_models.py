"""The models that the sandbox knows, with the satellites that each one reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the service (contract, sections 4.8 and 5.8).

    Parameters
    ----------
    name : str
        ``Model`` of the API.
    required, optional : tuple of str
        Satellite constellations that must, and that may, be sent.
    version : str
        What ``MODEL_VERSION`` says. The sandbox's own choice.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    version: str = "15"

    @property
    def constellations(self) -> tuple[str, ...]:
        """Every constellation of the model, required ones first."""
        return self.required + self.optional

    def describe(self) -> dict[str, Any]:
        """Give the entry of ``GET /api/tasking/models``."""
        return {
            "Model": self.name,
            "SupportedSatelliteConstellations": [
                {"SatelliteConstellation": name, "Optional": name in self.optional}
                for name in self.constellations
            ],
        }


#: By lower-case name, since the service reads enums in any case.
MODELS: Final[Mapping[str, Model]] = {
    model.name.lower(): model
    for model in (
        Model("Stratus2", ("Sentinel1", "Sentinel2", "Landsat89")),
        Model("Stratus2Fast", ("Sentinel1", "Sentinel2"), ("Landsat89",)),
        Model("Stratus3", ("Sentinel1", "Sentinel2", "Landsat89")),
    )
}
