"""What the model sees of a ride, defined once.

A feature is a **key** (which zones, which hour, which node of a distance scale) times a **value** (1, miles, log miles, a
hinge, a share between two nodes). A `Group` is all features of one kind, `GROUPS` the list of them. From that list come the
dict that scikit-learn's DictVectorizer takes (`features`), the scoring of one ride and of columns (`model.LinearModel`) and
the training matrix (`train.py`), so that they can't differ.

To add a group, add a line to `GROUPS`, train, and read the error that `train.py` prints.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ride_duration.inputs import UNKNOWN_HOUR, Inputs, inputs_of_ride
from ride_duration.ride import Ride
from ride_duration.zones import LAST_ZONE


class Key:
    """A way to sort rides into cells: a label for every value of one integer field of `Inputs`."""

    def __init__(self, source: str, labels: Sequence[str]) -> None:
        self.source = source
        self.labels = list(dict.fromkeys(labels))
        self.cell_of_label = {label: cell for cell, label in enumerate(self.labels)}
        self.cells = [self.cell_of_label[label] for label in labels]


class Scale:
    """A feature's value, by default 1; `nodes` are the labels of the features that it makes (one without a label here)."""

    nodes: Sequence[str] = ("",)

    def of_ride(self, inputs: Inputs) -> Sequence[tuple[int, float]]:
        """Pairs of a node's index and the value there, for one ride."""
        return ((0, 1.0),)

    def of_columns(self, inputs: Inputs) -> Iterator[tuple[Any, ArrayLike]]:
        """The same for columns: each index and each value a number or an array of shape (rides,)."""
        yield 0, 1.0


class Amount(Scale):
    """A field of `Inputs` as it is."""

    def __init__(self, source: str) -> None:
        self._get = attrgetter(source)

    def of_ride(self, inputs: Inputs) -> Sequence[tuple[int, float]]:
        return ((0, self._get(inputs)),)

    def of_columns(self, inputs: Inputs) -> Iterator[tuple[Any, ArrayLike]]:
        yield 0, self._get(inputs)


class Hinges(Scale):
    """max(0, x - node) at every node: together any curve that is straight between nodes and beyond the last."""

    def __init__(self, source: str, nodes: Sequence[float]) -> None:
        self._get, self._nodes = attrgetter(source), nodes
        self.nodes = [f"{node:g}" for node in nodes]

    def of_ride(self, inputs: Inputs) -> Sequence[tuple[int, float]]:
        x = self._get(inputs)
        return [(index, x - node) for index, node in enumerate(self._nodes) if x > node]

    def of_columns(self, inputs: Inputs) -> Iterator[tuple[Any, ArrayLike]]:
        x = self._get(inputs)
        for index, node in enumerate(self._nodes):
            yield index, np.maximum(x - node, 0)


# where a ride is in its week
_HOURS = [str(hour % 24) for hour in range(UNKNOWN_HOUR)]
_DAYS = ["weekend" if hour >= 5 * 24 else "weekday" for hour in range(UNKNOWN_HOUR)]

PICKUP = Key("PULocationID", [str(zone) for zone in range(LAST_ZONE + 1)])
DROPOFF = Key("DOLocationID", PICKUP.labels)
HOUR = Key("hour_of_week", [*_HOURS, "?"])
HOUR_OF_DAY_TYPE = Key("hour_of_week", [*(f"{day}:{hour}" for day, hour in zip(_DAYS, _HOURS, strict=True)), "?"])
HOUR_OF_WEEK = Key("hour_of_week", [*map(str, range(UNKNOWN_HOUR)), "?"])

ONE = Scale()
RAW_MILES = Amount("trip_distance")
LOG_MILES = Amount("log_miles")
DISTANCE_UNKNOWN = Amount("distance_unknown")
HINGES = Hinges("miles", (0, 0.5, 1, 2, 3, 5, 8, 12, 20))


class Group:
    """All features of one kind: every combination of its keys' cells, times every node of its scale.

    A feature's token, as DictVectorizer spells it, is the group's name, then `=` and the labels of cells and node joined by
    `_`: `PU_DO=130_205`, `miles_over=3`, `trip_distance`. Its index is its place among all of the group's, row by row.

    `weight` matters in training only: the ridge penalty on the group's coefficients is divided by its square.
    """

    def __init__(self, name: str, keys: Sequence[Key] = (), scale: Scale = ONE, weight: float = 1.0) -> None:
        self.name, self.keys, self.scale, self.weight = name, keys, scale, weight
        self.size = len(scale.nodes)
        self.offsets: list[tuple[Callable[[Inputs], Any], list[int]]] = []
        for key in reversed(keys):
            self.offsets.append((attrgetter(key.source), [cell * self.size for cell in key.cells]))
            self.size *= len(key.labels)
        nodes = {node: index for index, node in enumerate(scale.nodes) if node}
        self._cells = [key.cell_of_label for key in keys] + ([nodes] if nodes else [])
        self._arrays = [(get, np.array(cells)) for get, cells in self.offsets]

    def of_ride(self, inputs: Inputs) -> Iterator[tuple[int, float]]:
        """Index and value of each of a ride's features."""
        first = sum(cells[get(inputs)] for get, cells in self.offsets)
        for node, value in self.scale.of_ride(inputs):
            yield first + node, value

    def of_columns(self, inputs: Inputs) -> Iterator[tuple[Any, ArrayLike]]:
        """The same for columns: each index and each value a number or an array of shape (rides,)."""
        first: Any = sum(cells[get(inputs)] for get, cells in self._arrays)
        for node, value in self.scale.of_columns(inputs):
            yield first + node, value

    @property
    def zones_only(self) -> bool:
        """Whether its features are nothing but zones: then a token that no ride has is a zone that no ride has."""
        return self.scale is ONE and bool(self.keys) and all(key in (PICKUP, DROPOFF) for key in self.keys)

    def token(self, index: int) -> str:
        """The name that the vectorizer knows a feature by."""
        labels = []
        for choices in (self.scale.nodes, *(key.labels for key in reversed(self.keys))):
            index, cell = divmod(index, len(choices))
            labels.append(choices[cell])
        suffix = "_".join(label for label in reversed(labels) if label)
        return f"{self.name}={suffix}" if suffix else self.name

    def index(self, suffix: str) -> int | None:
        """The index of what follows `=` in a token (a whole float is the integer it means), None when no ride has it."""
        labels = suffix.split("_") if suffix else []
        if len(labels) != len(self._cells):
            return None
        index = 0
        for label, cells in zip(labels, self._cells, strict=True):
            cell = cells.get(label, cells.get(label.removesuffix(".0")))
            if cell is None:
                return None
            index = index * len(cells) + cell
        return index


GROUPS = [
    # the names of the MLOps course, so that its models are served unchanged
    Group("PU_DO", (PICKUP, DROPOFF)),
    Group("PULocationID", (PICKUP,), weight=0.3),
    Group("DOLocationID", (DROPOFF,), weight=0.3),
    Group("PUlocationID", (PICKUP,)),
    Group("DOlocationID", (DROPOFF,)),
    Group("trip_distance", scale=RAW_MILES),
    # ours
    Group("distance_unknown", scale=DISTANCE_UNKNOWN),
    Group("miles_over", scale=HINGES),
    Group("hour", (HOUR_OF_DAY_TYPE,)),
    Group("hour_of_week", (HOUR_OF_WEEK,)),
    Group("hour_of_week_log_miles", (HOUR_OF_WEEK,), LOG_MILES),
]

GROUP = {group.name: group for group in GROUPS}


def features(ride: Ride, groups: Sequence[Group] = GROUPS) -> dict[str, float]:
    """A ride as the dict that DictVectorizer takes: a value for each of its features' tokens.

    >>> ride = Ride(PULocationID=130, DOLocationID=205, trip_distance=3.66)
    >>> features(ride, [GROUP["PU_DO"], GROUP["trip_distance"]])
    {'PU_DO=130_205': 1.0, 'trip_distance': 3.66}
    """
    inputs = inputs_of_ride(ride)
    return {group.token(index): value for group in groups for index, value in group.of_ride(inputs)}
