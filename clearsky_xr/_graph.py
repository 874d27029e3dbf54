"""What computing an expression would read of ClearSKY cubes, without reading it.

Dask hands the graph that would really run to a scheduler that only looks: it goes
through the tasks as they would run, and where one indexes an array of ours, it lets
xarray's own code say with which key.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NoReturn

import numpy as np
import xarray as xr
from dask._task_spec import (
    Alias,
    DataNode,
    NestedContainer,
    Task,
    TaskRef,
    _execute_subgraph,
    _identity_cast,
    convert_legacy_graph,
)
from dask.array import chunk
from dask.array.core import getter, getter_inline, getter_nofancy
from dask.base import compute, is_dask_collection
from dask.core import flatten
from dask.order import order
from xarray.core.indexing import ExplicitIndexer

from ._array import ClearSkyArray, unwrapped
from ._hidden import Detector
from ._selection import Selection
from .errors import InputError, PlanIncomplete

_GETTERS: Final = (getter, getter_nofancy, getter_inline, chunk.getitem, operator.getitem)
# What stands for the result of a task: it is not known, but loaded.
_COMPUTED: Final = object()


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """One look-up in a lazy array of a cube.

    Parameters
    ----------
    array : ClearSkyArray
    key : ExplicitIndexer
        What its ``__getitem__`` would get.
    """

    array: ClearSkyArray
    key: ExplicitIndexer

    @property
    def selection(self) -> Selection:
        """Dates, layers and pixels that the key asks for."""
        return self.array.selection(self.key)


def reads(*objects: Any) -> list[Read]:
    """List what computing objects together would read of cubes. Nothing is computed.

    Parameters
    ----------
    *objects : xarray.Dataset, xarray.DataArray, xarray.Variable, or Dask collection
        Parts of the graph that they share are read once.

    Returns
    -------
    list of Read
        Empty if everything is loaded. Reads may overlap, or be equal.

    Raises
    ------
    PlanIncomplete
        A task holds a lazy array in a way that does not tell what it will read.
    InputError
        An object that cannot be computed.

    Notes
    -----
    A function that opens a cube itself, or reaches for one as a global of an imported
    module, does so unseen.
    """
    recorder = _Recorder()
    collections, lazy = [], []
    for data in chain.from_iterable(map(_data, objects)):
        if is_dask_collection(data):
            collections.append(data)
        elif not isinstance(data, np.ndarray):
            lazy.append(data)
    if collections:
        with suppress(_Recorded):
            compute(  # type: ignore[no-untyped-call]
                *collections, traverse=False, scheduler=recorder.schedule
            )
    # In Dask's order; what does not hang on Dask is loaded afterwards.
    found = [read for _, read in sorted(recorder.reads, key=operator.itemgetter(0))]
    recorder.reads.clear()
    for data in lazy:
        recorder.load(data)
    return found + [read for _, read in recorder.reads]


def _data(obj: Any) -> Iterator[Any]:
    """Yield what xarray would load, one by one, to compute an object."""
    variables: Iterable[xr.Variable]
    if isinstance(obj, xr.Dataset):
        variables = obj.variables.values()
    elif isinstance(obj, xr.DataArray):
        variables = [obj.variable, *(coord.variable for coord in obj.coords.values())]
    elif isinstance(obj, xr.Variable):
        variables = [obj]
    elif is_dask_collection(obj):
        yield obj
        return
    else:
        raise InputError(
            f"a {type(obj).__name__} is nothing that can be computed",
            hint="Give a Dataset, a DataArray or a Dask collection.",
        )
    # Labels of an index are in memory.
    yield from (v._data for v in variables if not isinstance(v, xr.IndexVariable))


class _Recorder:
    """A scheduler for Dask that writes down what would be read, and computes nothing."""

    def __init__(self) -> None:
        #: With the places in Dask's order of the tasks that they belong to.
        self.reads: list[tuple[int, Read]] = []
        self._tasks: Mapping[Any, Any] = {}
        self._order: Mapping[Any, int] = {}
        self._place = 0
        self._holds = Detector()
        # By id; the object is kept, so that no other one gets its id.
        self._probed: dict[int, tuple[Any, ClearSkyArray | None, Any]] = {}

    def schedule(self, dsk: Any, keys: Any, **_options: Any) -> NoReturn:
        """Do as ``dask.get`` does, as far as our arrays are concerned, but give no results."""
        graph = dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk
        wanted = flatten(keys)  # type: ignore[no-untyped-call]
        self._tasks = convert_legacy_graph(dict(graph))
        self._order = order(self._tasks)
        self._run(self._tasks, wanted, {})
        raise _Recorded

    def load(self, lazy: Any) -> None:
        """Load a lazy array of xarray, not of Dask."""
        if self._holds(lazy):
            self._ask(lazy, lambda probed: probed.get_duck_array(), "a lazy variable")

    def _run(
        self, graph: Mapping[Any, Any], keys: Iterable[Any], inputs: Mapping[Any, Any]
    ) -> dict[Any, Any]:
        """Run the tasks that lead to keys; gives the values that are known."""
        values = dict(inputs)
        ahead = [key for key in keys if key in graph]
        while ahead:
            if ahead[-1] in values:
                ahead.pop()
                continue
            node = graph[ahead[-1]]
            before = [key for key in node.dependencies if key in graph and key not in values]
            if before:
                ahead += before
            else:
                if graph is self._tasks:
                    self._place = self._order[ahead[-1]]
                values[ahead.pop()] = self._value(node, values)
        return values

    def _value(self, node: Any, values: Mapping[Any, Any]) -> Any:
        """Give a node's value as far as it is known without computing."""
        if isinstance(node, TaskRef | Alias):
            return values.get(node.key if isinstance(node, TaskRef) else node.target, _COMPUTED)
        if not isinstance(node, Task):
            return node.value if isinstance(node, DataNode) else node
        args = [self._value(arg, values) for arg in node.args]
        options = {name: self._value(arg, values) for name, arg in node.kwargs.items()}
        if node.func is _execute_subgraph:
            # Names inside mean what is inside, or what was handed in: several subgraphs use the
            # same ones.
            graph, result, names, *inputs = args
            return self._run(graph, graph, dict(zip(names, inputs, strict=True)))[result]
        if isinstance(node, NestedContainer) or _hands_on(node.func):
            return node.func(*args, **options)
        return self._call(node.func, args, options, node.key)

    def _call(self, func: Any, args: list[Any], options: dict[str, Any], name: Any) -> Any:
        """Call a function that may be handed an array of ours."""
        if not any(map(self._holds, (func, *args, *options.values()))):
            return _COMPUTED
        if not any(func is known for known in _GETTERS):
            raise _incomplete(name, f"calls {getattr(func, '__name__', repr(func))} with it")
        # The fourth argument is a lock, and others may be reading.
        more = {"asarray": options["asarray"]} if "asarray" in options else {}
        return self._ask(args[0], lambda array: func(array, *args[1:3], **more), name)

    def _ask(self, lazy: Any, use: Callable[[Any], Any], name: Any) -> Any:
        """Use a lazy array as it would be used, and write down with which key it would load.

        Gives the result: computed, or lazy itself.
        """
        if id(lazy) not in self._probed:
            self._probed[id(lazy)] = lazy, *_probed(lazy)
        _, array, probed = self._probed[id(lazy)]
        if array is None:
            raise _incomplete(name, f"reads it through {type(lazy).__name__}")
        try:
            result = use(probed)
        except _Asked as asked:
            self.reads.append((self._place, Read(array, asked.key)))
            return _COMPUTED
        except Exception as error:
            # Such as a key that is itself computed.
            raise _incomplete(name, f"reads it in an unknown way ({error})") from error
        return _wrapped(array, unwrapped(result))


class _Recorded(Exception):  # noqa: N818  nothing went wrong
    """Raised to leave Dask, which would put results together."""


class _Asked(Exception):  # noqa: N818  nothing went wrong
    """Raised instead of loading: the key that was asked with."""

    def __init__(self, key: ExplicitIndexer) -> None:
        super().__init__(key)
        self.key = key


class _Probe(ClearSkyArray):
    """Stands in for an array, and tells the key instead of loading."""

    __slots__ = ()

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        raise _Asked(key)


def _hands_on(func: Any) -> bool:
    """Say whether a function of Dask's only collects its arguments, or renames them."""
    # The second one is what delayed functions get theirs through, in newer versions.
    return func is _identity_cast or (
        getattr(func, "__qualname__", "") == "ProhibitReuse._identity"
        and func.__module__ == "dask._expr"
    )


def _by_xarray(wrapper: Any) -> bool:
    return type(wrapper).__module__.partition(".")[0] == "xarray"


def _probed(lazy: Any) -> tuple[ClearSkyArray | None, Any]:
    """Give the array in a lazy one, and the lazy one with a probe instead; None if unreadable."""
    *wrappers, array = unwrapped(lazy)
    # What others have written may load more than once.
    if not isinstance(array, ClearSkyArray) or not all(map(_by_xarray, wrappers)):
        return None, None
    probe = _Probe(array.cube, array.settings, array.layers, array.divisor)
    return array, _wrapped(probe, [*wrappers, array])


def _wrapped(inner: Any, lazy: Iterable[Any]) -> Any:
    """Copy a lazy array, unwrapped, with another array inside."""
    *wrappers, _ = lazy
    for wrapper in reversed(wrappers):
        outer = copy.copy(wrapper)
        outer.array = inner
        inner = outer
    return inner


def _incomplete(name: Any, how: str) -> PlanIncomplete:
    return PlanIncomplete(
        f"what will be bought cannot be told: the task {name!r} holds a lazy cube and {how}",
        hint="Dask tells what it hands to a function, not what a function loads by itself: give "
        "it Dask arrays as arguments (xarray.map_blocks, xarray.apply_ufunc), or loaded data.",
    )
