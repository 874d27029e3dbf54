"""A cube as GeoTIFFs: one file a date, bought and written a few dates at a time."""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import filelock
import numpy as np
import shapely
import xarray as xr

from . import _loop
from ._cog import Frame, partial_of, read_head, write
from ._notices import warn
from ._open import account_info
from ._packing import counts_of, rectangle, variable_of
from ._pixels import Window
from ._planned import plan_of
from ._prepare import origin_of
from ._progress import tqdm
from ._receipts import paid
from ._record import Origin
from ._settings import Settings
from ._shown import cube_of, selection_of
from ._stac import SANDBOX, SELECTION, catalogue, require_pystac
from ._stock import stock_of
from .errors import ClearSkyError, InputError, InvalidOptionError

# Dates that are loaded together: one half on the wire while the other one decodes, with the
# connections of the service's first paid plan (contract, section 9) ...
_TOGETHER: Final = 8
# ... as far as their float32 pixels fit into this, bytes.
_BYTES: Final = 256 * 2**20
# Tags of the service's own GeoTIFFs, and the fields of the receipts that keep them.
_TAGS: Final = {
    "IMAGE_DATE": "image_date",
    "MODEL_VERSION": "model_version",
    "IMAGE_VERSION": "image_version",
    "CONSTELLATIONS": "constellations",
}


class Export:
    """The files that a Dataset becomes; nothing is bought before `write`.

    Parameters
    ----------
    dataset : xarray.Dataset
        What was opened, or a rectangle, dates and layers of it.
    folder : pathlib.Path

    Attributes
    ----------
    dates : dict of datetime.date to int
        Their places along ``time``.
    folder : pathlib.Path

    Raises
    ------
    InputError
        The Dataset does not come from a cube, or cannot be written as rasters of int16.
    """

    def __init__(self, dataset: xr.Dataset, folder: Path) -> None:
        cube, settings = cube_of(dataset)
        self._cube, self._settings = cube, settings
        selection_of(dataset, cube)  # coordinates that are not the cube's are refused here
        window = rectangle(dataset, cube)
        self._frame = Frame(
            cube.grid.epsg,
            cube.grid.resolution,
            window.col0 * cube.grid.resolution,
            -window.row0 * cube.grid.resolution,
        )
        self._dataset = dataset
        self._variables = [variable_of(dataset, str(name), cube) for name in dataset.data_vars]
        if not self._variables:
            raise InputError("the Dataset has no variable that could be written")
        self._origin = _origin(settings)
        self._digest = self._name(window)
        self.folder = folder
        times = np.atleast_1d(dataset["time"].values)
        days = [day.astype("datetime64[D]").item() for day in times]
        self.dates: dict[dt.date, int] = {day: k for k, day in reversed([*enumerate(days)])}

    def path(self, date: dt.date) -> Path:
        """Name the file of a date."""
        return self.folder / f"{date}.tif"

    def pending(self, *, overwrite: bool = False) -> list[dt.date]:
        """List the dates whose file is not complete yet, ascending.

        Raises
        ------
        InvalidOptionError
            A file of another area, grid or choice of layers is in the place of one.
        """
        left = []
        for date in sorted(self.dates):
            path = self.path(date)
            if not overwrite and path.exists():
                head = read_head(path)
                if head is None or head.tags.get(SELECTION) != self._digest:
                    raise InvalidOptionError(
                        f"{path} is there, and is not the image that would be written",
                        hint="It has another area, grid, model or layers, or comes from elsewhere. "
                        "Choose another folder, or overwrite=True.",
                    )
                continue
            left.append(date)
        return left

    def part(self, dates: Sequence[dt.date]) -> xr.Dataset:
        """Select dates; lazy."""
        if "time" not in self._dataset.dims:  # a single date, which expand_dims would load
            return self._dataset
        return self._dataset.isel(time=[self.dates[date] for date in dates])

    def write(self, *, overwrite: bool, progress: bool) -> list[Path]:
        """Buy what is missing and write it.

        Returns
        -------
        list of pathlib.Path
            Of all dates, also of those that were complete before.
        """
        with _alone(self.folder):
            left = self.pending(overwrite=overwrite)
            for date in left:
                partial_of(self.path(date)).unlink(missing_ok=True)
            with tqdm(total=len(left), unit=" dates", disable=not progress) as bar:
                for dates in self._batches(left):
                    self._buy(dates, bar)
        return [self.path(date) for date in sorted(self.dates)]

    def _buy(self, dates: Sequence[dt.date], bar: tqdm[Any]) -> None:
        """Load a few dates and write them; whatever happens, what is paid for is written."""
        self._make_room(dates)
        rest = list(dates)
        try:
            loaded = self.part(dates).compute()
            said = self._receipts(loaded)
            for k, date in enumerate(dates):
                self._write(date, loaded.isel(time=k, missing_dims="ignore"), said.get(date))
                rest.remove(date)
                bar.update()
        except OSError:
            raise  # of the disk, which takes no other date either
        except BaseException:
            bar.set_description("Keeping what was sent; Ctrl-C gives it up")
            self._rescue(rest, bar)
            raise

    @property
    def _values(self) -> int:
        """Numbers of one date."""
        values = sum(variable.size for variable in self._dataset.data_vars.values())
        return max(1, values // max(1, len(self.dates)))

    def _batches(self, dates: Sequence[dt.date]) -> Iterator[Sequence[dt.date]]:
        size = max(1, min(_TOGETHER, _BYTES // (4 * self._values)))
        for start in range(0, len(dates), size):
            yield dates[start : start + size]

    def _make_room(self, dates: Sequence[dt.date]) -> None:
        """Refuse to buy what the disk may not hold."""
        needed, free = 2 * self._values * len(dates), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"{len(dates)} dates may need {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are "
                "free: they were not bought",
                str(self.folder),
            )

    def _rescue(self, dates: Sequence[dt.date], bar: tqdm[Any]) -> None:
        """Write those dates of a batch that failed which are paid for as a whole."""
        if not dates:
            return
        # Waits for what was sent: the process may end afterwards, and its answers with it.
        selection = selection_of(self.part(dates), self._cube)
        said = _loop.run(paid(self._cube, self._settings, selection))
        for date in said:
            with suppress(ClearSkyError):
                one = self.part([date])
                if not plan_of(one).requests:
                    loaded = one.compute()
                    self._write(date, loaded.isel(time=0, missing_dims="ignore"), said[date])
                    bar.update()

    def _receipts(self, loaded: xr.Dataset) -> dict[dt.date, list[Mapping[str, Any]]]:
        try:
            return _loop.run(paid(self._cube, self._settings, selection_of(loaded, self._cube)))
        except ClearSkyError as error:
            # Pixels are not given up for what came with them.
            warn(f"the files say nothing of image and model versions: {error.message}")
            return {}

    def _write(
        self, date: dt.date, loaded: xr.Dataset, said: Sequence[Mapping[str, Any]] | None
    ) -> None:
        layers = [layer for variable in self._variables for layer in variable.layers]
        rows, cols = loaded.sizes["y"], loaded.sizes["x"]
        counts = np.empty((len(layers), rows, cols), np.int16)
        done = 0
        for variable in self._variables:
            values = loaded[variable.name].transpose(..., "y", "x").values
            # Layer by layer, since each step on the way makes a copy.
            for layer in values.reshape(-1, rows, cols):
                counts[done] = counts_of(layer, variable.divisor, f"{variable.name} of {date}")
                done += 1
        write(self.path(date), counts, layers, self._frame, self._tags(date, said))

    def _tags(self, date: dt.date, said: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
        """Give the tags of a file: what is known, and nothing else."""
        cube = self._cube
        tags = {
            "TIFFTAG_DATETIME": f"{date:%Y:%m:%d} 00:00:00",
            "TIFFTAG_SOFTWARE": f"clearsky_xr {version('clearsky-xr')}",
            "DATE": str(date),
            "MODEL": cube.model,
            SELECTION: self._digest,
        }
        for tag, field in _TAGS.items():
            texts = list(dict.fromkeys(str(receipt.get(field, "")) for receipt in said or ()))
            if texts and all(texts):
                tags[tag] = "; ".join(texts)  # several downloads make up this date
        if said is None and self._settings.missing == "nan":
            tags["CLEARSKY_INCOMPLETE"] = "some pixels were never bought, and are no data here"
        if self._origin != "service":
            synthetic = self._origin == "synthetic"
            tags[SANDBOX] = (
                "SYNTHETIC pixels of an invented landscape"
                if synthetic
                else ("pixels of local scenes, not of the service")
            )
            tags["TIFFTAG_IMAGEDESCRIPTION"] = f"SANDBOX, not imagery: {tags[SANDBOX]}"
        return tags

    def _name(self, window: Window) -> str:
        """Name what is written of each date, apart from the date."""
        cube = self._cube
        changed = []
        for name, array in self._dataset.data_vars.items():
            # What the engine gives carries this; arithmetic drops it.
            if array.encoding.get("grid_mapping") != "spatial_ref":
                changed.append([str(name), str(getattr(array.data, "name", "loaded"))])
        words = [
            1,
            shapely.to_wkb(cube.area, hex=True),
            [cube.grid.epsg, cube.grid.resolution, str(window)],
            [cube.model.lower(), sorted(cube.constellations)],
            [cube.clip, cube.pixels, cube.allow_partial, self._origin],
            self._settings.missing == "nan",  # never taken for complete later on
            [[v.divisor, [layer.name for layer in v.layers]] for v in self._variables],
            changed,
        ]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def to_geotiff(
    dataset: xr.Dataset, folder: Path, *, stac: bool, overwrite: bool, progress: bool
) -> list[Path]:
    """Write a file for each date; see `ClearSkyAccessor.to_geotiff`."""
    if stac:
        require_pystac()
    paths = Export(dataset, folder).write(overwrite=overwrite, progress=progress)
    if stac:
        catalogue(folder)
    return paths


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other processes from writing to it, and from buying for it."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidOptionError(
            f"the folder {folder} cannot be made: {error.strerror}",
            hint="Is its parent folder there, and writable?",
        ) from None
    lock = filelock.FileLock(folder / ".clearsky_xr.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InvalidOptionError(
            f"another process is writing to {folder}", hint="Wait for it, or use another folder."
        ) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    except OSError as error:
        raise InvalidOptionError(f"{folder} cannot be written to: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _origin(settings: Settings) -> Origin:
    """Say what the pixels are: not by attributes, which an operation may have dropped."""
    if settings.store is not None:
        return stock_of(settings.store).store.record.origin
    return origin_of(account_info(settings))
