"""Areas: one polygon from every form, and a typed refusal with a hint for what is none."""

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geom import Geometry

from clearsky_xr._area import resolve_area
from clearsky_xr.errors import InvalidAreaError

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)

BOX = shapely.box(15.0, 46.0, 15.1, 46.1)
# As a geometry file would list it, with a hole and its ring in the "wrong" direction.
FIELD = shapely.Polygon(
    [(15.0, 46.0), (15.1, 46.01), (15.09, 46.1), (15.02, 46.08)],
    [[(15.04, 46.03), (15.04, 46.05), (15.06, 46.05), (15.06, 46.03)]],
)
TWO = shapely.MultiPolygon([BOX, shapely.box(15.2, 46.2, 15.3, 46.3)])


class HasInterface:
    def __init__(self, geometry):
        self.__geo_interface__ = shapely.geometry.mapping(geometry)

    @classmethod
    def of_a_frame(cls, geometry):
        made = cls(geometry)
        frame = gpd.GeoDataFrame({"a": [1]}, geometry=[geometry], crs=4326)
        made.__geo_interface__ = frame.__geo_interface__
        return made


def geojson(geometry):
    return json.loads(shapely.to_geojson(geometry))


def feature(geometry):
    return {"type": "Feature", "properties": {"id": 1}, "geometry": geojson(geometry)}


def collection(*geometries):
    return {"type": "FeatureCollection", "features": [feature(g) for g in geometries]}


FORMS = {
    "shapely": lambda g: g,
    "geometry dict": geojson,
    "feature dict": feature,
    "collection dict": collection,
    "geometry text": lambda g: json.dumps(geojson(g)),
    "feature text": lambda g: "\n " + json.dumps(feature(g)),
    "collection text": lambda g: json.dumps(collection(g)),
    "WKT": lambda g: g.wkt,
    "WKT in lower case": lambda g: g.wkt.lower(),
    "EWKT": lambda g: "SRID=4326;" + g.wkt,
    "WKT with heights": lambda g: shapely.force_3d(g, 7.0).wkt,
    "geo interface": HasInterface,
    "geo interface of a frame": HasInterface.of_a_frame,
    "shapely collection": lambda g: shapely.GeometryCollection([g]),
    "GeoSeries": lambda g: gpd.GeoSeries([g], crs=4326),
    "GeoDataFrame": lambda g: gpd.GeoDataFrame({"a": [1]}, geometry=[g], crs=4326),
    "GeoDataFrame of a database": lambda g: gpd.GeoDataFrame(
        {"a": [1]}, geometry=[g], crs=4326
    ).rename_geometry("geom"),
    "GeoDataFrame with a gap": lambda g: gpd.GeoDataFrame(geometry=[None, g], crs=4326),
    "odc geometry": lambda g: Geometry(g, "EPSG:4326"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("area", [BOX, FIELD, TWO], ids=["box", "hole", "two"])
def test_every_form_gives_the_same_polygon(form, area):
    resolved = resolve_area(FORMS[form](area))
    assert resolved == area.normalize()
    assert resolved.geom_type == area.geom_type
    assert not resolved.has_z


@pytest.mark.parametrize(
    "bounds",
    [
        (15.0, 46.0, 15.1, 46.1),
        [15.0, 46.0, 15.1, 46.1],
        np.array([15.0, 46.0, 15.1, 46.1]),
        np.array([15.0, 46.0, 15.1, 46.1], dtype=object),
        pd.Series([15.0, 46.0, 15.1, 46.1]),
        BOX.bounds,
        gpd.GeoSeries([BOX], crs=4326).total_bounds,
    ],
    ids=lambda bounds: type(bounds).__name__,
)
def test_bounds_are_a_box(bounds):
    assert resolve_area(bounds) == BOX.normalize()


def test_whole_numbers_and_single_precision_are_bounds():
    assert resolve_area((15, 46, 16, 47)) == shapely.box(15, 46, 16, 47).normalize()
    assert resolve_area(np.array([15, 46, 16, 47])) == shapely.box(15, 46, 16, 47).normalize()
    single = np.array([15.5, 46.25, 15.75, 46.5], np.float32)
    assert resolve_area(single) == shapely.box(15.5, 46.25, 15.75, 46.5).normalize()


@pytest.mark.parametrize("name", ["field.geojson", "field", "field (1).geojson", "Feld Süd.json"])
@pytest.mark.parametrize("kind", [str, None], ids=["text", "path"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files(tmp_path, name, kind, encoding):
    path = tmp_path / name
    path.write_text(json.dumps(collection(FIELD)), encoding=encoding)
    assert resolve_area(path if kind is None else str(path)) == FIELD.normalize()


def test_file_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "field.geojson").write_text(json.dumps(geojson(FIELD)), encoding="utf-8")
    assert resolve_area("field.geojson") == FIELD.normalize()


@pytest.mark.parametrize("epsg", [4326, 4258, 3857, 32633, 32632, 3035])
@pytest.mark.parametrize("series", [True, False])
def test_frames_in_any_crs(epsg, series):
    frame = gpd.GeoSeries([FIELD], crs=4326).to_crs(epsg)
    resolved = resolve_area(frame if series else gpd.GeoDataFrame(geometry=frame))
    # 1e-8 degrees is a millimetre: the round trip through the other CRS.
    assert shapely.hausdorff_distance(resolved, FIELD) < 1e-8
    assert resolved.area == pytest.approx(FIELD.area, rel=1e-6)


# odc-geo projects with a function that shapely is about to remove; that is odc-geo's to mend.
@pytest.mark.filterwarnings("ignore:The 'shapely.ops.transform:DeprecationWarning")
@pytest.mark.parametrize("epsg", [3857, 32633])
def test_odc_geometry_in_another_crs(epsg):
    projected = gpd.GeoSeries([BOX], crs=4326).to_crs(epsg)[0]
    resolved = resolve_area(Geometry(projected, f"EPSG:{epsg}"))
    assert shapely.symmetric_difference(resolved, BOX).area < 1e-6 * BOX.area


def test_several_polygons_become_one():
    left, right = TWO.geoms
    for form in (
        collection(left, right),
        json.dumps(collection(right, left)),
        shapely.GeometryCollection([left, right]),
        gpd.GeoSeries([left, right], crs=4326),
        gpd.GeoDataFrame(geometry=[right, left], crs=4326),
    ):
        assert resolve_area(form) == TWO.normalize()
    # What overlaps or adjoins is bought once.
    assert resolve_area(
        collection(shapely.box(0, 0, 2, 2), shapely.box(1, 0, 3, 2))
    ).area == pytest.approx(6)
    adjoining = resolve_area(collection(shapely.box(0, 0, 1, 1), shapely.box(1, 0, 2, 1)))
    assert adjoining.equals(shapely.box(0, 0, 2, 1))


def test_empty_parts_are_passed_over():
    text = f"GEOMETRYCOLLECTION (POLYGON EMPTY, {BOX.wkt})"
    assert resolve_area(text) == BOX.normalize()
    holes = {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": None}]}
    holes["features"].append(feature(BOX))
    assert resolve_area(holes) == BOX.normalize()


@PROPERTY
@given(start=st.integers(0, 3), reverse=st.booleans(), flip=st.booleans())
def test_equal_areas_compare_equal_however_they_are_drawn(start, reverse, flip):
    ring = list(FIELD.exterior.coords)[:-1]
    ring = ring[start:] + ring[:start]
    hole = list(FIELD.interiors[0].coords)
    drawn = shapely.Polygon(ring[::-1] if reverse else ring, [hole[::-1] if flip else hole])
    assert resolve_area(drawn) == resolve_area(FIELD)


@PROPERTY
@given(
    west=st.floats(-180, 179.9),
    south=st.floats(-80, 83.9),
    width=st.floats(1e-4, 10),
    height=st.floats(1e-4, 10),
)
def test_every_box_between_the_ends_of_utm_is_taken_as_it_is(west, south, width, height):
    east, north = min(west + width, 180.0), min(south + height, 84.0)
    assert resolve_area((west, south, east, north)).bounds == (west, south, east, north)


NAN, INF = float("nan"), float("inf")
BOWTIE = shapely.Polygon([(15, 46), (15.1, 46.1), (15.1, 46), (15, 46.1)])
HOLE_OUTSIDE = shapely.Polygon(BOX.exterior, [[(16, 47), (16.1, 47), (16.1, 47.1), (16, 47)]])

# What was given -> words that the message or the hint must hold.
BAD = {
    "self-intersecting": (BOWTIE, "make_valid"),
    "self-intersecting in a collection": (collection(BOX, BOWTIE), "make_valid"),
    "hole outside": (HOLE_OUTSIDE, "make_valid"),
    "overlapping MultiPolygon": (shapely.MultiPolygon([BOX, BOX.buffer(0.01)]), "make_valid"),
    "empty polygon": (shapely.Polygon(), "polygon"),
    "empty WKT": ("POLYGON EMPTY", "polygon"),
    "empty collection": ({"type": "FeatureCollection", "features": []}, "polygon"),
    "feature without geometry": ({"type": "Feature", "geometry": None}, "polygon"),
    "empty GeoDataFrame": (gpd.GeoDataFrame(geometry=[], crs=4326), "polygon"),
    "NaN bounds": ((15, NAN, 16, 47), "degrees"),
    "NaN polygon": (
        '{"type": "Polygon", "coordinates": [[[15, 46], [16, NaN], [16, 47], [15, 46]]]}',
        "degrees",
    ),
    "infinite bounds": ((-INF, 46, INF, 47), "degrees"),
    "infinite WKT": ("POLYGON ((15 46, inf 46, 16 47, 15 46))", "degrees"),
    "zero area polygon": ("POLYGON ((15 46, 16 47, 15 46, 15 46))", "make_valid"),
    "zero width": ((15, 46, 15, 47), "west"),
    "zero height": ((15, 46, 16, 46), "south"),
    "point": (shapely.Point(15, 46), "sample"),
    "point WKT": ("POINT (15 46)", "buffer"),
    "line": (shapely.LineString([(15, 46), (16, 47)]), "buffer"),
    "ring": (shapely.LinearRing(BOX.exterior.coords), "buffer"),
    "polygon and point": (collection(BOX, shapely.Point(15, 46)), "Point"),
    "points in a frame": (gpd.GeoSeries([shapely.Point(15, 46)], crs=4326), "buffer"),
    "outside longitude": ((170, 46, 190, 47), "antimeridian"),
    "far outside longitude": ((365, 46, 366, 47), "CRS"),
    "outside latitude": ((15, 89, 16, 91), "latitude"),
    "metres": ((500000, 5100000, 500100, 5100100), "CRS"),
    "metres in GeoJSON": (geojson(shapely.box(5e5, 5.1e6, 5.1e5, 5.2e6)), "CRS"),
    "swapped": (shapely.box(46, 150, 46.1, 150.1), "swapped"),
    "swapped bounds": ((-33.9, 151.1, -33.8, 151.2), "swapped"),
    "antimeridian bounds": ((179.5, -17, -179.5, -16), "split"),
    "antimeridian frame": (
        gpd.GeoSeries([shapely.box(1.5e5, 6e6, 3.5e5, 6.1e6)], crs=32601),
        "split",
    ),
    "two halves at the antimeridian": (
        collection(shapely.box(179, -17, 180, -16), shapely.box(-180, -17, -179, -16)),
        "antimeridian",
    ),
    "wide": ((-120, 40, 120, 41), "longitude"),
    "reversed latitudes": ((15, 47, 16, 46), "south"),
    "north pole": ((15, 83, 16, 90), "UTM"),
    "south pole": ((15, -90, 16, -79), "UTM"),
    "just beyond UTM": ((15, 83.9, 16, 84.01), "UTM"),
    "missing file": ("no/such/file.geojson", "No such file"),
    "folder": (".", "directory"),
    "empty text": ("", "GeoJSON"),
    "broken JSON": ('{"type": "Polygon", "coordinates": [[[15, 46],', "broken"),
    "JSON of something else": ('{"name": "Polygon"}', "type"),
    "unknown GeoJSON type": ({"type": "Pentagon", "coordinates": []}, "GeoJSON"),
    "GeoJSON type of a wrong type": ({"type": 5, "coordinates": []}, "GeoJSON"),
    "GeoJSON without coordinates": ({"type": "Polygon"}, "GeoJSON"),
    "GeoJSON with flat coordinates": ({"type": "Polygon", "coordinates": [15, 46]}, "GeoJSON"),
    "GeoJSON with text coordinates": (
        {"type": "Polygon", "coordinates": [[["a", "b"]] * 4]},
        "GeoJSON",
    ),
    "features that are no list": ({"type": "FeatureCollection", "features": 5}, "GeoJSON"),
    "features that are no features": ({"type": "FeatureCollection", "features": [5]}, "GeoJSON"),
    "geometry that is text": ({"type": "Feature", "geometry": BOX.wkt}, "GeoJSON"),
    "broken WKT": ("POLYGON ((15 46, 16 47", "WKT"),
    "WKT with words": ("POLYGON ((a b, c d, e f, a b))", "WKT"),
    "WKT that does not close": ("POLYGON ((15 46, 16 46, 16 47))", "WKT"),
    "frame without CRS": (gpd.GeoDataFrame(geometry=[BOX]), "set_crs"),
    "series without CRS": (gpd.GeoSeries([BOX]), "set_crs"),
    "frame without geometry": (gpd.GeoDataFrame({"a": [1]}), "geometry"),
    "far off frame": (gpd.GeoSeries([shapely.box(1e9, 1e9, 1.1e9, 1.1e9)], crs=32633), "finite"),
    "three numbers": ((15, 46, 16), "west, south, east, north"),
    "five numbers": ((15, 46, 16, 47, 48), "west, south, east, north"),
    "strings": (("15", "46", "16", "47"), "west, south, east, north"),
    "nested bounds": ([[15, 46], [16, 47]], "west, south, east, north"),
    "number": (5, "west, south, east, north"),
    "None": (None, "west, south, east, north"),
    "0-d array": (np.array(5.0), "west, south, east, north"),
    "complex": ((15j, 46, 16, 47), "west, south, east, north"),
    "nothing": ((), "west, south, east, north"),
    "table": (pd.DataFrame({"a": [1]}), "west, south, east, north"),
    "class": (shapely.Polygon, "west, south, east, north"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_areas_are_refused_with_a_hint(case):
    area, words = BAD[case]
    with pytest.raises(InvalidAreaError) as caught:
        resolve_area(area)
    assert words in str(caught.value)
    assert caught.value.hint
    assert caught.value.kind == "area"


def test_a_file_that_is_no_geojson_says_what_to_do(tmp_path):
    path = tmp_path / "field.gpkg"
    path.write_bytes(b"SQLite format 3\x00\xff\xfe")
    with pytest.raises(InvalidAreaError, match=r"geopandas\.read_file"):
        resolve_area(path)


def test_a_store_is_no_area(tmp_path):
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(InvalidAreaError, match=r"Zarr cube(.|\n)*open_store"):
        resolve_area(tmp_path)
    (tmp_path / "zarr.json").unlink()
    with pytest.raises(InvalidAreaError, match="Is a directory"):
        resolve_area(str(tmp_path))


def test_long_arguments_are_cut_in_messages():
    for wrong in (list(range(10_000)), "[" * 100_000, "no file " * 10_000, "\0" * 10_000):
        with pytest.raises(InvalidAreaError) as caught:
            resolve_area(wrong)
        assert len(caught.value.message) < 400
