"""The xarray engine ``"clearsky"``.

xarray imports this module whenever it looks for engines, so everything heavy is
imported when a cube is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from xarray.backends import BackendEntrypoint

if TYPE_CHECKING:
    import xarray as xr

    from ._cube import PixelMode
    from ._settings import OnLost


# What a resolved cube has settled, as it stands when nothing is said.
_DEFAULTS: dict[str, Any] = {
    "time": None, "bands": "all", "indices": None, "resolution": None, "crs": "auto",
    "like": None, "model": "Stratus2", "constellations": None, "clip": True,
    "pixels": "intersect", "allow_partial": False,
}  # fmt: skip


class ClearSkyBackendEntrypoint(BackendEntrypoint):
    """Open an area and dates, or a resolved cube, as a lazy Dataset.

    The options are described at `clearsky_xr.open_timeseries`.
    """

    description: ClassVar[str] = "ClearSKY Vision's cloudless Sentinel-2 imagery"
    url: ClassVar[str] = "https://docs.clearsky.vision"

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Say yes to a resolved cube only: an area looks like many other things."""
        return (
            type(filename_or_obj).__module__ == "clearsky_xr._cube"
            and type(filename_or_obj).__name__ == "Cube"
        )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: bool | None = None,
        decode_times: Any = None,
        concat_characters: bool | None = None,
        decode_coords: Any = None,
        use_cftime: bool | None = None,
        decode_timedelta: Any = None,
        time: Any = None,
        bands: str | Iterable[str] | None = "all",
        indices: str | Iterable[str] | Mapping[str, Sequence[str]] | None = None,
        resolution: int | None = None,
        crs: Any = "auto",
        like: Any = None,
        model: str = "Stratus2",
        constellations: Iterable[str] | None = None,
        clip: bool = True,
        pixels: PixelMode = "intersect",
        allow_partial: bool = False,
        concurrency: int | None = None,
        on_lost: OnLost = "retry",
        max_credits: float | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        store: Any = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open a cube; see `clearsky_xr.open_timeseries` for the options."""
        from . import _accessor  # noqa: F401  gives Datasets their .clearsky
        from ._cube import Cube
        from ._dataset import to_dataset
        from ._notices import warn
        from ._open import account_info, resolve
        from ._prepare import Stocked, origin_of, prepare
        from ._settings import resolve_settings
        from ._variable import decode
        from .errors import InvalidOptionError

        scaled = mask_and_scale is not False
        decoders: dict[str, Any] = {
            "decode_times": decode_times,
            "concat_characters": concat_characters,
            "decode_coords": decode_coords,
            "use_cftime": use_cftime,
            "decode_timedelta": decode_timedelta,
            "drop_variables": drop_variables,
        }
        settings = resolve_settings(
            api_key=api_key, base_url=base_url, concurrency=concurrency, on_lost=on_lost,
            store=store, storage_options=storage_options, max_credits=max_credits,
        )  # fmt: skip
        if isinstance(filename_or_obj, Stocked):
            encoded = filename_or_obj.describe(scaled=scaled)
            return decode(encoded, decoders)
        if isinstance(filename_or_obj, Cube):
            given = {
                "time": time, "bands": bands, "indices": indices, "resolution": resolution,
                "crs": crs, "like": like, "model": model, "constellations": constellations,
                "clip": clip, "pixels": pixels, "allow_partial": allow_partial,
            }  # fmt: skip
            settled = [name for name, value in given.items() if value is not _DEFAULTS[name]]
            if settled:
                raise InvalidOptionError(
                    f"a resolved cube has its {', '.join(settled)} already",
                    hint="Leave these out, or resolve another cube. Selecting from the opened "
                    "dataset costs nothing.",
                )
            cube = filename_or_obj
        else:
            cube = resolve(
                filename_or_obj,
                time,
                settings,
                bands=bands,
                indices=indices,
                resolution=resolution,
                crs=crs,
                like=like,
                model=model,
                constellations=constellations,
                clip=clip,
                pixels=pixels,
                allow_partial=allow_partial,
            )
        info = account_info(settings)
        if settings.store is not None:
            for notice in prepare(cube, settings, info):
                warn(notice)
        encoded = to_dataset(
            cube, settings, origin_of(info), scaled=scaled, connections=info.connections
        )
        return decode(encoded, decoders)
