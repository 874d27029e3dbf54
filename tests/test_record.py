"""What a store says of itself: written and read back, hostile, compared; and where it is."""

import datetime as dt
import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest
import shapely
import zarr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clearsky_xr._bands import BANDS, STRATUS
from clearsky_xr._cube import Cube
from clearsky_xr._grid import RESOLUTIONS, Grid, covering, projected
from clearsky_xr._location import Location, resolve_location
from clearsky_xr._pixels import PixelSet, Window
from clearsky_xr._record import loads, record_for
from clearsky_xr.errors import InvalidOptionError, StoreError, StoreMismatchError

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)

EPSG = 32633
LONLAT = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True)
FIELD = shapely.box(15.05, 46.05, 15.06, 46.06)


def cube(area=FIELD, grid=None, **fields):
    fields = {
        "dates": (dt.date(2025, 4, 1),),
        "bands": ("B4", "B8"),
        "indices": (),
        "model": "Stratus2",
        "constellations": ("Sentinel1", "Sentinel2", "Landsat89"),
    } | fields
    return Cube(area=area, grid=grid or covering(area, EPSG, 10), **fields)


def record(of=None, bands=STRATUS, origin="synthetic"):
    return record_for(of or cube(), bands, origin)


# ---- written and read back

polygons = st.lists(
    st.tuples(st.floats(14.5, 15.5), st.floats(45.5, 46.5)), min_size=3, max_size=8
).map(lambda corners: shapely.MultiPoint(corners).convex_hull)  # fmt: skip


@st.composite
def records(draw):
    area = draw(polygons)
    assume(isinstance(area, shapely.Polygon) and area.area > 1e-6)
    if draw(st.booleans()):
        area = shapely.union(area, shapely.box(16, 45, 16.1, 45.1))
    resolution = draw(st.sampled_from(RESOLUTIONS))
    size = st.integers(1, 5000)
    grid = covering(area, EPSG, resolution)
    if draw(st.booleans()):  # of like=
        row, col = grid.window.row0 + draw(size) - 1, grid.window.col0 - draw(size) + 1
        grid = Grid(EPSG, resolution, Window(row, row + draw(size), col, col + draw(size)))
        assume((grid.window & covering(area, EPSG, resolution).window).size)
    made = cube(
        shapely.normalize(area), grid,
        model=draw(st.text(min_size=1)),
        constellations=tuple(draw(st.lists(st.text(), min_size=1))),
        clip=draw(st.booleans()),
        pixels=draw(st.sampled_from(["intersect", "contained"])),
        allow_partial=draw(st.booleans()),
        indices=(("ndvi", "[B8_B4]"),),
    )  # fmt: skip
    bands = draw(st.lists(st.sampled_from(list(BANDS)), min_size=1, unique=True))
    return record_for(made, bands, draw(st.sampled_from(["service", "synthetic", "scenes"])))


@PROPERTY
@given(records())
def test_a_record_comes_back_as_it_was(written):
    again = loads(written.dumps())
    assert again == written
    assert again.dumps() == written.dumps()
    own = again.cube
    assert own.area.equals_exact(written.cube.area)  # to the last bit: it decides over pixels
    assert isinstance(own.bands, tuple)
    assert isinstance(own.constellations, tuple)
    assert (own.dates, own.indices) == ((), ())


def test_dates_and_indices_of_the_first_cube_do_not_count():
    first = cube(indices=(("ndvi", "[B8_B4]"),))
    later = cube(dates=(dt.date(2020, 1, 1),), bands=("B2",))
    assert record(first) == record(later)


# ---- hostile records


def changed(**fields):
    return json.dumps(json.loads(record().dumps()) | fields)


def without(name):
    fields = json.loads(record().dumps())
    del fields[name]
    return json.dumps(fields)


def wkb(geometry):
    return shapely.to_wkb(geometry, hex=True)


NAN = wkb(FIELD).replace(wkb(shapely.Point(15.05, 0))[10:26], "000000000000F87F")
EMPTY = wkb(shapely.Polygon())
BOW = wkb(shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]))
#: A curve polygon, which GEOS knows and shapely does not.
CURVED = "010A00000000000000"

HOSTILE = {
    "nothing": None,
    "a number": 1,
    "bytes": b"{}",
    "a mapping": json.loads(record().dumps()),
    "not JSON": "store",
    "empty text": "",
    "cut off": record().dumps()[:-1],
    "a list": "[]",
    "null": "null",
    "text": '"version"',
    "an empty mapping": "{}",
    "deep": "[" * 200_000,
    "deep inside": record().dumps()[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "endless digits": changed().replace("32633", "3" * 5000),
    "infinite": changed().replace("32633", "Infinity"),
    "not a number": changed().replace("32633", "NaN"),
    **{f"without {name}": without(name) for name in json.loads(record().dumps())},
    **{f"{name} is null": changed(**{name: None}) for name in json.loads(record().dumps())},
    **{f"{name} is a list": changed(**{name: [[]]}) for name in json.loads(record().dumps())},
    **{f"{name} is a mapping": changed(**{name: {}}) for name in json.loads(record().dumps())},
    "version 0": changed(version=0),
    "version as text": changed(version="1"),
    "version as a boolean": changed(version=True),
    "version as a fraction": changed(version=1.5),
    "another origin": changed(origin="elsewhere"),
    "area is no WKB": changed(area="00"),
    "area is WKT": changed(area=FIELD.wkt),
    "area is cut off": changed(area=wkb(FIELD)[:-2]),
    "area has NaN": changed(area=NAN),
    "area is empty": changed(area=EMPTY),
    "area is a point": changed(area=wkb(shapely.Point(15, 46))),
    "area crosses itself": changed(area=BOW),
    "area is curved": changed(area=CURVED),
    "area off the globe": changed(area=wkb(shapely.box(500, 0, 501, 1))),
    "zone as text": changed(epsg="32633"),
    "zone as a boolean": changed(epsg=True),
    "zone as a fraction": changed(epsg=32633.0),
    "no zone": changed(epsg=4326),
    "zone 0": changed(epsg=32600),
    "zone 61, which is the pole": changed(epsg=32661),
    "zone 99": changed(epsg=32799),
    "resolution 11": changed(resolution=11),
    "resolution 0": changed(resolution=0),
    "resolution as a boolean": changed(resolution=True),
    "resolution as a fraction": changed(resolution=10.0),
    "window of three": changed(window=[0, 5, 0]),
    "window of five": changed(window=[0, 5, 0, 5, 0]),
    "window of text": changed(window=["0", "5", "0", "5"]),
    "window of booleans": changed(window=[False, True, False, True]),
    "window of fractions": changed(window=[0.0, 5.0, 0.0, 5.0]),
    "empty window": changed(window=[5, 5, 0, 5]),
    "reversed window": changed(window=[5, 0, 5, 0]),
    "huge window": changed(window=[0, 10**12, 0, 10**12]),
    "far window": changed(window=[10**9, 10**9 + 1, 0, 1]),
    "no bands": changed(bands=[]),
    "unknown band": changed(bands=["B4", "B99"]),
    "band twice": changed(bands=["B4", "B4"]),
    "band in another spelling": changed(bands=["b4"]),
    "bands as text": changed(bands="B4"),
    "bands as numbers": changed(bands=[4]),
    "model as a number": changed(model=2),
    "no constellations": changed(constellations=[]),
    "constellations as text": changed(constellations="Sentinel2"),
    "constellations as numbers": changed(constellations=[1, 2]),
    "clip as a number": changed(clip=1),
    "clip as text": changed(clip="true"),
    "pixels": changed(pixels="all"),
    "allow_partial as a number": changed(allow_partial=0),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_record_is_a_store_error(text):
    with pytest.raises(StoreError) as caught:
        loads(text)
    assert caught.value.hint
    assert len(str(caught.value)) < 500  # it repeats nothing of what it met


@pytest.mark.parametrize("version", [2, 3, 10**9])
def test_a_newer_record_is_told_from_a_broken_one(version):
    with pytest.raises(StoreError, match="layout") as caught:
        loads(json.dumps({"version": version, "unheard": [1]}))
    assert "Update clearsky_xr" in caught.value.hint
    assert str(version) in caught.value.message


CONTRADICTIONS = {
    "the area lies in another zone": changed(area=wkb(shapely.box(100, 10, 100.01, 10.01))),
    "the window lies beside the area": changed(window=[0, 5, 0, 5]),
}


@pytest.mark.parametrize("text", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_record_that_contradicts_itself_is_a_store_error(text):
    with pytest.raises(StoreError):
        loads(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10, 32633, 1, 2, "B4", "Stratus2", "intersect", NAN, EMPTY, CURVED]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)  # fmt: skip


@settings(PROPERTY, max_examples=400)
@given(
    st.dictionaries(st.sampled_from(sorted(json.loads(record().dumps()))), json_values, max_size=3),
    st.sets(st.sampled_from(sorted(json.loads(record().dumps()))), max_size=1),
    st.integers(0, 40),
)
def test_whatever_a_record_holds_it_is_sound_or_a_store_error(values, missing, cut):
    fields = json.loads(record().dumps()) | values
    text = json.dumps({name: value for name, value in fields.items() if name not in missing})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = loads(text if cut > 2 else text[: len(text) // 3 * cut])
    except StoreError:
        return
    own = read.cube
    assert not missing
    assert all(type(edge) is int for edge in (own.grid.epsg, own.grid.resolution))
    assert type(fields["version"]) is int
    assert 1 <= own.grid.epsg % 100 <= 60
    assert own.grid.resolution in RESOLUTIONS
    assert own.grid.window.size > 0
    assert own.bands
    assert set(own.bands) <= set(BANDS)
    assert own.area.is_valid
    assert not own.area.is_empty
    assert loads(read.dumps()) == read


@PROPERTY
@given(json_values)
def test_what_is_no_record_at_all_is_a_store_error(value):
    for text in (value, json.dumps(value)):
        with pytest.raises(StoreError):
            loads(text)


# ---- what fits, and what differs


def test_the_same_cube_fits():
    record().check(cube(), "synthetic")
    record().check(cube(), None)
    record().check(cube(bands=STRATUS, dates=()), "synthetic")


def test_spelling_and_order_make_no_difference():
    record().check(
        cube(model="STRATUS2", constellations=("landsat89", "Sentinel2", "sentinel1")), None
    )


DIFFERENCES = {
    "CRS": (
        cube(FIELD, covering(FIELD, 32632, 10)),
        "synthetic", ["EPSG:32633", "EPSG:32632"],
    ),
    "resolution": (cube(FIELD, covering(FIELD, EPSG, 20)), "synthetic", ["10 m", "20 m"]),
    "model": (cube(model="Stratus3"), "synthetic", ["Stratus2", "Stratus3"]),
    "constellations": (
        cube(constellations=("Sentinel2",)), "synthetic", ["Landsat89", "is Sentinel2"],
    ),
    "allow_partial": (cube(allow_partial=True), "synthetic", ["False", "True"]),
    "origin": (cube(), "service", ["synthetic", "service"]),
    "no B1": (cube(bands=("B4", "B1")), "synthetic", ["B1", "B8A"]),
    "area": (cube(shapely.box(15.05, 46.05, 15.07, 46.06)), "synthetic", ["POLYGON"]),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENCES)
def test_a_difference_is_named(what):
    asked, origin, words = DIFFERENCES[what]
    with pytest.raises(StoreMismatchError) as caught:
        record().check(asked, origin)
    assert what in caught.value.message
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint
    assert caught.value.spent == "no"


def test_the_bands_behind_an_index_are_needed():
    few = record(bands=("B4", "B8"))
    few.check(cube(bands=(), indices=(("ndvi", "[B8_B4]"),)), None)
    with pytest.raises(StoreMismatchError, match=r"keeps no B11, only B4, B8"):
        few.check(cube(bands=("B4",), indices=(("ndmi", "[B8_B11]"),)), None)


@pytest.mark.parametrize("pixels", ["intersect", "contained"])
@pytest.mark.parametrize("clip", [True, False])
def test_exactly_the_same_area_fits(pixels, clip):
    mode = {"pixels": pixels, "clip": clip}
    record(cube(**mode)).check(cube(**mode), None)
    triangle = shapely.Polygon([(15.05, 46.05), (15.06, 46.052), (15.053, 46.06)])
    record(cube(triangle, **mode)).check(cube(triangle, **mode), None)


PARTS = {
    "the western half": shapely.box(15.05, 46.05, 15.055, 46.06),
    "the middle": shapely.box(15.052, 46.05, 15.058, 46.06),
    "the south": shapely.box(15.05, 46.05, 15.06, 46.055),
    "the north-eastern quarter": shapely.box(15.055, 46.055, 15.06, 46.06),
    "well inside": shapely.box(15.051, 46.051, 15.059, 46.059),
    "a triangle on the edge": shapely.Polygon([(15.05, 46.05), (15.06, 46.05), (15.055, 46.06)]),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("pixels", ["intersect", "contained"])
def test_a_part_of_the_area_fits_also_where_it_touches_the_edge(part, pixels):
    record().check(cube(part, pixels=pixels), None)
    record(cube(clip=False)).check(cube(part, pixels=pixels), None)
    record(cube(clip=False)).check(cube(part, pixels=pixels, clip=False), None)


BEYOND = {
    "west": shapely.box(15.0497, 46.052, 15.055, 46.055),
    "south": shapely.box(15.052, 46.0498, 15.055, 46.055),
    "east": shapely.box(15.052, 46.052, 15.0603, 46.055),
    "north": shapely.box(15.052, 46.052, 15.055, 46.0602),
    "all around": shapely.box(15.04, 46.04, 15.07, 46.07),
    "elsewhere": shapely.box(15.2, 46.2, 15.21, 46.21),
    "here and elsewhere": shapely.union(
        shapely.box(15.052, 46.052, 15.055, 46.055), shapely.box(15.2, 46.2, 15.21, 46.21)
    ),
}


@pytest.mark.parametrize("area", BEYOND.values(), ids=BEYOND.keys())
@pytest.mark.parametrize("clip", [True, False])
def test_an_area_that_reaches_beyond_is_refused(area, clip):
    for kept in (True, False):
        with pytest.raises(StoreMismatchError, match="reaches beyond"):
            record(cube(clip=kept)).check(cube(area, clip=clip), None)


def test_what_was_left_out_of_a_polygon_does_not_fit():
    hole = shapely.box(15.053, 46.053, 15.057, 46.057)
    own = record(cube(FIELD.difference(hole)))
    own.check(cube(shapely.box(15.051, 46.051, 15.0525, 46.0525)), None)
    for other in (hole, shapely.box(15.051, 46.051, 15.059, 46.059)):
        with pytest.raises(StoreMismatchError, match="reaches beyond"):
            own.check(cube(other), None)
    with pytest.raises(StoreMismatchError, match=r"reaches beyond.*clip=False.*clip=True"):
        own.check(cube(FIELD.difference(hole), clip=False), None)


def test_the_rim_of_what_is_contained_only_is_not_there():
    own = record(cube(pixels="contained"))
    with pytest.raises(StoreMismatchError, match=r"reaches beyond.*'intersect'.*'contained'"):
        own.check(cube(pixels="intersect"), None)
    own.check(cube(shapely.box(15.0504, 46.0504, 15.0596, 46.0596), pixels="intersect"), None)


# ---- what is accepted can be bought: masks of small grids

ROW, COL = -510_100, 50_400


def degrees(corners, resolution, corner):
    """Turn corners in pixels (x right, y down) of a place on the lattice into degrees."""
    x = [(corner[1] + x) * resolution for x, _ in corners]
    y = [-(corner[0] + y) * resolution for _, y in corners]
    return list(zip(*LONLAT.transform(x, y), strict=True))


quarters = st.integers(-8, 120).map(lambda n: n / 4)


@st.composite
def areas(draw, resolution, corner):
    """Some pixels across: along the degrees, along the pixels, or of any form."""
    kind = draw(st.sampled_from(["degrees", "pixels", "triangle", "two"]))
    x0, y0 = draw(quarters), draw(quarters)
    x1, y1 = x0 + draw(st.integers(1, 90)) / 4, y0 + draw(st.integers(1, 90)) / 4
    if kind == "triangle":
        corners = [(x0, y0), (x1, y0 + draw(st.integers(-8, 8)) / 4), (draw(quarters), y1)]
    else:
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    area = shapely.Polygon(degrees(corners, resolution, corner))
    if kind == "degrees":
        area = shapely.box(*area.bounds)
    if kind == "two":
        other = draw(areas(resolution, corner))
        area = shapely.union(area, other)
    assume(area.is_valid and area.area > 0)
    assume(isinstance(area, shapely.Polygon | shapely.MultiPolygon))
    return shapely.normalize(area)


@st.composite
def grids(draw, area, resolution):
    """The grid of an area, or one that somebody else has chosen."""
    own = covering(area, EPSG, resolution)
    if draw(st.booleans()):
        return own
    edges = st.integers(-6, 6)
    w = own.window
    window = Window(
        w.row0 + draw(edges), w.row1 + draw(edges), w.col0 + draw(edges), w.col1 + draw(edges)
    )
    assume(min(window.shape) > 0)
    assume((window & w).size)
    return Grid(EPSG, resolution, window)


modes = st.fixed_dictionaries(
    {"clip": st.booleans(), "pixels": st.sampled_from(["intersect", "contained"])}
)


@st.composite
def pairs(draw):
    """A store's cube and one that is asked for, which have something to do with each other."""
    resolution = draw(st.sampled_from([10, 10, 160]))
    corner = (ROW * 10 // resolution, COL * 10 // resolution)
    own = draw(areas(resolution, corner))
    kind = draw(st.sampled_from(["same", "smaller", "part", "any"]))
    if kind == "same":
        area = own
    elif kind == "smaller":
        factor, (x, y) = draw(st.floats(0.2, 1.0)), draw(st.sampled_from(own.exterior.coords[:])) \
            if isinstance(own, shapely.Polygon) else own.centroid.coords[0]  # fmt: skip
        area = shapely.transform(own, lambda xy: (xy - (x, y)) * factor + (x, y))
    elif kind == "part":
        area = shapely.intersection(own, draw(areas(resolution, corner)))
    else:
        area = draw(areas(resolution, corner))
    assume(isinstance(area, shapely.Polygon | shapely.MultiPolygon) and area.area > 0)
    assume(area.is_valid)
    made = [
        cube(where, draw(grids(where, resolution)), **draw(modes))
        for where in (own, shapely.normalize(area))
    ]
    return made[0], made[1], kind


def pixels_of(of):
    """Give the pixels that a cube wants, as (row, column)."""
    wanted = of.wanted(PixelSet(of.grid.window))
    if wanted is None:
        return set()
    assert wanted.window in of.grid.window
    rows, cols = np.nonzero(wanted.dense)
    return set(
        zip((rows + wanted.window.row0).tolist(), (cols + wanted.window.col0).tolist(), strict=True)
    )


def fits(kept, asked):
    try:
        record(kept).check(asked, None)
    except StoreMismatchError:
        return False
    return True


@settings(PROPERTY, max_examples=400)
@given(pairs())
def test_whoever_is_accepted_finds_every_pixel_in_the_store(pair):
    """Else pixels that nobody ever bought would show as nodata.

    A common edge is projected in other pieces for each of two areas, so that a pixel
    on it may be met by a hair in one of them only: `FromStore.known` leaves it out.
    """
    kept, asked, _ = pair
    if not fits(kept, asked):
        return
    size = kept.grid.resolution
    left, bottom, right, top = kept.grid.bounds()
    own = projected(kept.area, EPSG) if kept.clip else shapely.box(left, bottom, right, top)
    rim = shapely.buffer(shapely.boundary(own), 0.06 * size)
    for row, col in pixels_of(asked) - pixels_of(kept):
        pixel = shapely.box(col * size, -(row + 1) * size, (col + 1) * size, -row * size)
        assert shapely.intersects(pixel, rim)


@settings(PROPERTY, suppress_health_check=[HealthCheck.filter_too_much])
@given(pairs())
def test_an_area_inside_the_recorded_one_is_accepted(pair):
    kept, asked, kind = pair
    assume(kind in ("same", "smaller", "part"))
    assume(shapely.covers(shapely.buffer(kept.area, 1e-12), asked.area))
    # As opened without like=: the grid is that of the area.
    kept, asked = (
        replace(one, grid=covering(one.area, EPSG, one.grid.resolution)) for one in (kept, asked)
    )
    # What lies off the area, but on its grid, and pixels on the rim are a matter of the modes.
    assume(pixels_of(asked) <= pixels_of(kept))
    assume(asked.clip or not kept.clip)
    assume(kept.pixels in (asked.pixels, "intersect") or not kept.clip)
    assert fits(kept, asked)


# ---- where a store is


class PathLike:
    def __init__(self, value):
        self.value = value

    def __fspath__(self):
        return self.value


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("fields.zarr", "./fields.zarr", "a/../fields.zarr", "fields.zarr/"):
        for form in (text, Path(text), PathLike(text)):
            where = resolve_location(form, None)
            assert where.folder == tmp_path / "fields.zarr"
            assert where.target == where.name == str(tmp_path / "fields.zarr")
    # It stays there when the process moves on.
    where = resolve_location("fields.zarr", None)
    monkeypatch.chdir("/")
    assert where.folder == tmp_path / "fields.zarr"


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_location("~/fields.zarr", None).folder == tmp_path / "fields.zarr"
    assert resolve_location(Path("~/fields.zarr"), None).folder == tmp_path / "fields.zarr"


@pytest.mark.parametrize(
    "url", ["file:///data/my%20fields.zarr", "file://localhost/data/my%20fields.zarr/"]
)
def test_a_file_url_is_a_path(url):
    where = resolve_location(url, None)
    assert where.folder == Path("/data/my fields.zarr")
    assert where.name == resolve_location("/data/my fields.zarr", None).name


def test_equal_places_have_equal_names():
    one, other = resolve_location("/data/fields.zarr", None), resolve_location("/data/other", None)
    again = resolve_location(Path("/data/x/../fields.zarr"), None)
    assert (one.name, one.digest) == (again.name, again.digest)
    assert one.digest != other.digest
    assert one.__dask_tokenize__() == again.__dask_tokenize__() != other.__dask_tokenize__()


def test_a_url_stays_a_url():
    for url in ("s3://bucket/fields.zarr", "memory://fields", "gs://b/a b", "zip::s3://b/a.zip"):
        where = resolve_location(url, None)
        assert (where.folder, where.target, where.name) == (None, url, url)
    assert resolve_location("s3://bucket/fields.zarr/", None).target == "s3://bucket/fields.zarr"
    assert resolve_location("s3://bucket/fields.zarr", {}).options is None


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:SECRET@bucket/fields.zarr",
        "s3://SECRET@bucket/fields.zarr",
        "ftp://user:SECRET@host/fields.zarr",
        "simplecache::s3://key:SECRET@bucket/fields.zarr",
        "S3://key:SECRET@bucket/fields.zarr",
    ],
)
def test_a_url_that_shows_a_password_is_refused_and_not_repeated(url):
    with pytest.raises(InvalidOptionError) as caught:
        resolve_location(url, None)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(caught.value)
    assert "storage_options" in caught.value.hint


def test_a_path_may_hold_an_at_sign():
    assert resolve_location("/data/me@home/fields.zarr", None).name == "/data/me@home/fields.zarr"
    assert resolve_location("s3://bucket/me@home", None).name == "s3://bucket/me@home"


@pytest.mark.parametrize(
    "store",
    [
        "", PathLike(""), b"fields.zarr", PathLike(b"fields.zarr"), 3, 3.5, True, [], {}, object(),
        "a\0b", "file:///a%00b", "~nobody-by-this-name/x", "s3://", "://x", "s3://[bad/x",
    ],
    ids=repr,
)  # fmt: skip
def test_nonsense_is_refused(store):
    with pytest.raises(InvalidOptionError):
        resolve_location(store, None)


@settings(PROPERTY, max_examples=300)
@given(
    st.text(max_size=20)
    | st.from_regex(r"[a-z0-9:~]{0,12}://[\[\]@:/%a-z0-9\0]{0,20}", fullmatch=True)
    | st.from_regex(r"~?[/.a-z~]{0,10}", fullmatch=True)
)
def test_any_text_is_a_place_or_refused(text):
    try:
        where = resolve_location(text, None)
    except InvalidOptionError:
        return
    assert where.folder is None or where.folder.is_absolute()
    assert (where.folder is None) == ("://" in where.name)


def test_no_store_is_no_place():
    assert resolve_location(None, None) is None


@pytest.mark.parametrize(
    ("store", "options"),
    [
        (None, {"anon": True}),
        (None, {}),
        ("fields.zarr", {"anon": True}),
        ("file:///fields.zarr", {"anon": True}),
        ("s3://bucket/x", [("anon", True)]),
        ("s3://bucket/x", "anon"),
        ("s3://bucket/x", 0),
    ],
)
def test_storage_options_belong_to_urls(store, options):
    with pytest.raises(InvalidOptionError, match="storage_options"):
        resolve_location(store, options)


def test_storage_options_are_kept_and_never_shown():
    options = {"key": "K", "secret": "SECRET"}
    where = resolve_location("s3://bucket/fields.zarr", options)
    assert where.options == options
    options["secret"] = "OTHER"
    assert where.options["secret"] == "SECRET"
    shown = [repr(where), str(where), f"{where}", where.name, where.digest]
    shown.append(repr(where.__dask_tokenize__()))
    assert not [text for text in shown if "SECRET" in text]
    # A worker needs them.
    assert pickle.loads(pickle.dumps(where)).options["secret"] == "SECRET"


def test_zarr_stores_are_taken_as_they_are(tmp_path):
    local = zarr.storage.LocalStore(tmp_path / "fields.zarr")
    where = resolve_location(local, None)
    assert where.target is local
    assert where.folder == tmp_path / "fields.zarr"
    # The same place as its path: locks and what this process has opened go by the name.
    assert where.name == resolve_location(tmp_path / "fields.zarr", None).name
    memory = resolve_location(zarr.storage.MemoryStore(), None)
    assert memory.folder is None
    assert memory.name != resolve_location(zarr.storage.MemoryStore(), None).name
    remote = zarr.storage.FsspecStore.from_url(
        "memory://fields", storage_options={"secret": "SECRET"}
    )
    assert "SECRET" not in repr(resolve_location(remote, None))
    for store in (local, remote):
        with pytest.raises(InvalidOptionError, match="storage_options"):
            resolve_location(store, {"anon": True})


def test_a_relative_zarr_store_has_a_fixed_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = resolve_location(zarr.storage.LocalStore("fields.zarr"), None)
    assert where.folder == tmp_path / "fields.zarr"
    assert where.name == str(tmp_path / "fields.zarr")


def test_a_store_in_memory_does_not_travel(tmp_path):
    for store in ("memory://fields", zarr.storage.MemoryStore()):
        where = resolve_location(store, None)
        assert where.in_memory
        with pytest.raises(pickle.PicklingError, match="in memory"):
            pickle.dumps(where)
    for store in ("s3://bucket/memory", tmp_path / "memory:", "fields.zarr"):
        where = resolve_location(store, None)
        assert not where.in_memory
        again = pickle.loads(pickle.dumps(where))
        assert isinstance(again, Location)
        assert (again.name, again.folder) == (where.name, where.folder)
