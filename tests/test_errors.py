"""The tree of errors: as drawn, and each one whole after pickle and copy."""

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest

from clearsky_xr import errors
from clearsky_xr.errors import ClearSkyError, ClearSkyWarning

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, ClearSkyError)
]
by_name = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def drawn():
    """(name, name of the parent) of the tree at the head of the module."""
    path, pairs = [], []
    for line in errors.__doc__.split("::")[1].splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+(?:Error|Warning|Incomplete))\b(?: \((\w+)\))?", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            pairs.append((found[2], path[depth - 1] if depth else None, found[3]))
    return pairs


def test_the_tree_is_as_drawn():
    pairs = drawn()
    assert len(pairs) > 15
    assert sorted(name for name, _, _ in pairs) == sorted(cls.__name__ for cls in CLASSES)
    for name, parent, builtin in pairs:
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases == [parent or "Exception", *([builtin] if builtin else [])]


def test_what_is_wrong_with_a_call_is_a_value_error():
    for cls in CLASSES:
        assert issubclass(cls, ValueError) == issubclass(cls, errors.InputError)


def make(cls):
    return cls(
        "it went wrong",
        hint="mend it",
        kind="odd",
        code=1004,
        status=400,
        fields={"Wkt": ["Wkt must be one"]},
        date="2025-06-01",
        window="rows 0:1, columns 2:3",
    )


def facts(error):
    return (
        type(error),
        error.message,
        error.hint,
        error.kind,
        error.spent,
        error.details,
        error.args,
        str(error),
    )


@by_name
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_survives_pickle(cls, protocol):
    for error in (make(cls), cls("short")):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert facts(again) == facts(error)


@by_name
def test_every_error_survives_copy(cls):
    for error in (make(cls), cls("short")):
        assert facts(copy.copy(error)) == facts(error)
        assert facts(copy.deepcopy(error)) == facts(error)


@by_name
def test_every_error_says_what_where_and_what_to_do(cls):
    text = str(make(cls))
    assert text == ("it went wrong [date 2025-06-01, window rows 0:1, columns 2:3]\nmend it")
    assert str(cls("short")) == "short"
    assert str(cls("short", hint="long")) == "short\nlong"
    assert repr(cls("short")) == f"{cls.__name__}('short')"


@by_name
def test_at_gives_a_copy_that_says_where(cls):
    error = cls("it went wrong", hint="mend it", code=1004)
    told = error.at(date="2025-06-01", window="rows 0:1")
    assert error.details == {"code": 1004}
    assert told is not error
    assert facts(told)[:5] == facts(error)[:5]
    assert told.details == {"code": 1004, "date": "2025-06-01", "window": "rows 0:1"}
    assert str(told) == "it went wrong [date 2025-06-01, window rows 0:1]\nmend it"
    # What the error knows already is nearer to the cause.
    assert told.at(date="2026-01-01").details["date"] == "2025-06-01"
    assert make(cls).at(status=500).kind == "odd"


@by_name
def test_advise_gives_a_copy_whose_hint_goes_on(cls):
    error = cls("it went wrong", hint="mend it", code=1006)
    told = error.advise("or leave it", cause="rain", advice="none")
    assert (error.hint, error.details) == ("mend it", {"code": 1006})
    assert (type(told), told.message, told.kind, told.spent) == (
        cls, error.message, error.kind, error.spent,
    )  # fmt: skip
    assert told.hint == "mend it\nor leave it"
    assert told.details == {"code": 1006, "cause": "rain", "advice": "none"}
    assert cls("short").advise("why").hint == "why"


@by_name
def test_every_error_has_a_cause_and_says_whether_money_was_spent(cls):
    assert re.fullmatch(r"[a-z_]+", cls("x").kind)
    assert cls("x").spent in ("no", "maybe", "yes")
    if issubclass(cls, errors.InputError | errors.CredentialsError):
        assert cls.spent == "no"
    assert cls.__doc__


def test_kinds_are_distinct():
    kinds = [cls("x").kind for cls in CLASSES]
    assert len(set(kinds)) == len(kinds)


def test_where_money_may_have_been_spent():
    assert {cls.__name__ for cls in CLASSES if cls.spent != "no"} == {
        "ServiceUnavailableError",
        "LostDownloadError",
        "UnexpectedResponseError",
        "UnexpectedImageError",
        "GridMismatchError",
    }
    assert errors.UnexpectedImageError.spent == errors.GridMismatchError.spent == "yes"


def test_details_may_have_any_name():
    error = ClearSkyError("x", cls="a", details="b", self_="c")
    assert pickle.loads(pickle.dumps(error)).details == error.details
    assert error.at(cls="other").details["cls"] == "a"


def test_the_warning_is_an_ordinary_one():
    assert issubclass(ClearSkyWarning, UserWarning)
    warning = pickle.loads(pickle.dumps(ClearSkyWarning("it may cost")))
    assert (type(warning), str(warning)) == (ClearSkyWarning, "it may cost")


PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"


def sections():
    """Name to text of the sections of the page."""
    parts = re.split(r"^#{2,3} (\w+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_has_a_section_for_each_error():
    named = {name for name in sections() if name.startswith("ClearSky") or hasattr(errors, name)}
    assert named == {cls.__name__ for cls in (*CLASSES, ClearSkyWarning)}


@by_name
def test_each_section_says_what_it_means_whether_money_was_spent_and_what_to_do(cls):
    text = sections()[cls.__name__]
    assert re.match(r"\*[^*]+\*", text.strip()), "what it means"
    (money,) = re.findall(r"Money:\s+(\w+)", text)
    assert money == cls.spent
    assert "What to do:" in text


def test_the_tree_of_the_page_follows_the_classes():
    """A section under a heading of its own stands where its base stands."""
    order = list(sections())
    for cls in CLASSES:
        (base,) = [b for b in cls.__bases__ if b not in (ValueError, Exception)] or [None]
        if base is not None:
            assert order.index(base.__name__) < order.index(cls.__name__)
