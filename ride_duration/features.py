"""What the model sees of a ride, defined once.

A feature is a **key** (which zones, which hour, which node of a distance scale) times a **value** (1, miles, log miles, a
hinge, a share between two nodes). A `Group` is all features of one kind, `GROUPS` the list of them. From that list come the
dict that scikit-learn's DictVectorizer takes (`features`), the scoring of one ride and of columns (`model.LinearModel`) and
the training matrix (`train.py`), so that they can't differ.

To add a group, add a line to `MODEL_GROUPS`, train, and read the error that `train.py` prints.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ride_duration.inputs import UNKNOWN_HOUR, Inputs, inputs_of_ride
from ride_duration.ride import Ride
from ride_duration.zones import LAST_ZONE, map_cells


class Key:
    """A way to sort rides into cells: a label for every value of one integer field of `Inputs`."""

    def __init__(self, source: str, labels: Sequence[str]) -> None:
        self.source = source
        self.labels = list(dict.fromkeys(labels))
        self.cell_of_label = {label: cell for cell, label in enumerate(self.labels)}
        self.cells = [self.cell_of_label[label] for label in labels]


class Scale:
    """A feature's value, by default 1; `nodes` are the labels of the features that it makes (one without a label here).

    `amount` is what the scale's whole part of a prediction is a multiple of.
    """

    nodes: Sequence[str] = ("",)

    def __init__(self, amount: Callable[[Inputs], Any] = lambda _: 1.0) -> None:
        self.amount = amount

    def of_ride(self, inputs: Inputs) -> Sequence[tuple[int, float]]:
        """Pairs of a node's index and the value there, for one ride."""
        return ((0, self.amount(inputs)),)

    def of_columns(self, inputs: Inputs) -> Iterator[tuple[Any, ArrayLike]]:
        """The same for columns: each index and each value a number or an array of shape (rides,)."""
        yield 0, self.amount(inputs)


class Hinges(Scale):
    """max(0, x - node) at every node: together any curve that is straight between nodes and beyond the last."""

    def __init__(self, source: str, nodes: Sequence[float]) -> None:
        super().__init__(attrgetter(source))
        self._nodes = nodes
        self.nodes = [f"{node:g}" for node in nodes]

    def of_ride(self, inputs: Inputs) -> Sequence[tuple[int, float]]:
        x = self.amount(inputs)
        return [(index, x - node) for index, node in enumerate(self._nodes) if x > node]

    def of_columns(self, inputs: Inputs) -> Iterator[tuple[Any, ArrayLike]]:
        x = self.amount(inputs)
        for index, node in enumerate(self._nodes):
            yield index, np.maximum(x - node, 0)


class Hats(Scale):
    """1 at one node and 0 at all others; between two nodes, a share of each; times another field, or 1.

    So crossed with a key, every cell has a curve of its own that is straight between nodes and level beyond the last, and a
    prediction has no step in it.
    """

    def __init__(self, source: str, nodes: Sequence[float], times: str | None = None) -> None:
        super().__init__(*([attrgetter(times)] if times else []))
        self._get, self._nodes, self._array = attrgetter(source), nodes, np.array(nodes)
        self.nodes = [f"{node:g}" for node in nodes]

    def of_ride(self, inputs: Inputs) -> Sequence[tuple[int, float]]:
        x, factor = self._get(inputs), self.amount(inputs)
        if x <= self._nodes[0]:
            return ((0, factor),)
        above = bisect_right(self._nodes, x)
        if above == len(self._nodes):
            return ((above - 1, factor),)
        low, high = self._nodes[above - 1], self._nodes[above]
        share = (x - low) / (high - low)
        return ((above - 1, (1 - share) * factor), (above, share * factor))

    def of_columns(self, inputs: Inputs) -> Iterator[tuple[Any, ArrayLike]]:
        x, factor = self._get(inputs), self.amount(inputs)
        below = np.clip(np.searchsorted(self._array, x, side="right") - 1, 0, len(self._nodes) - 2)
        low = self._array[below]
        share = np.clip((x - low) / (self._array[below + 1] - low), 0, 1)
        yield below, (1 - share) * factor
        yield below + 1, share * factor


# where a ride is in its week
_HOURS = [str(hour % 24) for hour in range(UNKNOWN_HOUR)]
_DAYTIMES = [0, 0, 0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 7, 7, 7, 8, 8, 8, 8]
_DAYS = ["weekend" if hour >= 5 * 24 else "weekday" for hour in range(UNKNOWN_HOUR)]

PICKUP = Key("PULocationID", [str(zone) for zone in range(LAST_ZONE + 1)])
DROPOFF = Key("DOLocationID", PICKUP.labels)
DAYTIME = Key("hour_of_week", [*(f"{day}:{_DAYTIMES[int(hour)]}" for day, hour in zip(_DAYS, _HOURS, strict=True)), "?"])
HOUR_OF_WEEK = Key("hour_of_week", [*map(str, range(UNKNOWN_HOUR)), "?"])


def _cells(width: float, shift: float = 0.0) -> tuple[Key, Key]:
    """The cells of pickup and drop-off on a map of squares so many miles wide, see `zones.map_cells`."""
    cells = map_cells(width, shift)
    return Key("PULocationID", cells), Key("DOLocationID", cells)


CELLS_3, CELLS_3B, CELLS_4, CELLS_4B, CELLS_6 = _cells(3), _cells(3, 0.5), _cells(4), _cells(4, 0.5), _cells(6)

ONE = Scale()
RAW_MILES = Scale(attrgetter("trip_distance"))
LOG_MILES = Scale(attrgetter("log_miles"))
HINGES = Hinges("miles", (0, 0.5, 1, 2, 3, 5, 8, 12, 20))
MILES_6 = Hats("miles", (0, 1, 2.5, 5, 10, 20))
MILES_16 = Hats("miles", (0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30))
DETOUR_LOG_MILES = Hats("detour", (1, 1.15, 1.3, 1.5, 1.8, 2.5, 4), times="log_miles")


class Group:
    """All features of one kind: every combination of its keys' cells, times every node of its scale.

    A feature's token, as DictVectorizer spells it, is the group's name, then `=` and the labels of cells and node joined by
    `_`: `PU_DO=130_205`, `miles_over=3`, `trip_distance`. Its index is its place among all of the group's, row by row.

    `weight` matters in training only: the ridge penalty on the group's coefficients is divided by its square. `words` say to a
    person what the group is for a ride; see `explanation.py` for what may stand in braces.
    """

    def __init__(self, name: str, keys: Sequence[Key] = (), scale: Scale = ONE, weight: float = 1.0, words: str = "") -> None:
        self.name, self.keys, self.scale, self.weight, self.words = name, keys, scale, weight, words or name
        self.size = len(scale.nodes)
        self._offsets: list[tuple[Callable[[Inputs], Any], list[int]]] = []
        for key in reversed(keys):
            self._offsets.append((attrgetter(key.source), [cell * self.size for cell in key.cells]))
            self.size *= len(key.labels)
        nodes = {node: index for index, node in enumerate(scale.nodes) if node}
        self._cells = [key.cell_of_label for key in keys] + ([nodes] if nodes else [])
        self._arrays = [(get, np.array(cells)) for get, cells in self._offsets]

    def of_ride(self, inputs: Inputs) -> Iterator[tuple[int, float]]:
        """Index and value of each of a ride's features."""
        first = self.first_of_ride(inputs)
        for node, value in self.scale.of_ride(inputs):
            yield first + node, value

    def first_of_ride(self, inputs: Inputs) -> int:
        """The index at the scale's first node: the others follow it."""
        first = 0
        for get, cells in self._offsets:
            first += cells[get(inputs)]
        return first

    def of_columns(self, inputs: Inputs) -> Iterator[tuple[Any, ArrayLike]]:
        """The same for columns: each index and each value a number or an array of shape (rides,)."""
        first = self.first_of_columns(inputs)
        for node, value in self.scale.of_columns(inputs):
            yield first + node, value

    def first_of_columns(self, inputs: Inputs) -> Any:
        """The same for columns: 0, or an array of shape (rides,)."""
        return sum(cells[get(inputs)] for get, cells in self._arrays)

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
            cell = cells.get(label)
            if cell is None and (cell := cells.get(label.removesuffix(".0"))) is None:
                return None
            index = index * len(cells) + cell
        return index


MODEL_GROUPS = [
    Group("PU_DO", (PICKUP, DROPOFF), words="{pickup} → {dropoff}"),
    Group("PULocationID", (PICKUP,), weight=0.3, words="from {pickup}"),
    Group("DOLocationID", (DROPOFF,), weight=0.3, words="to {dropoff}"),
    Group("miles_over", scale=HINGES, words="{miles}"),
    Group("hour_of_week", (HOUR_OF_WEEK,), LOG_MILES, words="{time}, {miles}"),
    Group("cells3_miles", CELLS_3, MILES_6, words="{around}, {miles}"),
    Group("cells3b_miles", CELLS_3B, MILES_6, words="{around}, {miles} (second map)"),
    Group("cells4b_miles", CELLS_4B, MILES_16, words="{wide}, {miles}"),
    Group("cells4_daytime", (*CELLS_4, DAYTIME), LOG_MILES, 0.3, "{wide}, {time}, {miles}"),
    Group("cells4b_daytime", (*CELLS_4B, DAYTIME), LOG_MILES, 0.3, "{wide}, {time}, {miles} (second map)"),
    Group("pickup3_daytime", (CELLS_3[0], DAYTIME), LOG_MILES, 0.3, "from around {pickup}, {time}, {miles}"),
    Group("dropoff3b_daytime", (CELLS_3B[1], DAYTIME), LOG_MILES, 0.3, "to around {dropoff}, {time}, {miles}"),
    Group("cells6_detour", CELLS_6, DETOUR_LOG_MILES, 0.3, "{wide}, {detour}"),
    Group("pickup_detour", (PICKUP,), DETOUR_LOG_MILES, 0.3, "from {pickup}, {detour}"),
    Group("dropoff_detour", (DROPOFF,), DETOUR_LOG_MILES, 0.3, "to {dropoff}, {detour}"),
]
"""What `train.py` trains on."""

COURSE_GROUPS = [
    Group("PUlocationID", (PICKUP,), words="from {pickup}"),
    Group("DOlocationID", (DROPOFF,), words="to {dropoff}"),
    Group("trip_distance", scale=RAW_MILES, words="{miles}"),
]
"""What else the models of the MLOps course were trained on, so that they are served unchanged."""

GROUPS = MODEL_GROUPS + COURSE_GROUPS
GROUP = {group.name: group for group in GROUPS}


def features(ride: Ride, groups: Sequence[Group] = GROUPS) -> dict[str, float]:
    """A ride as the dict that DictVectorizer takes: a value for each of its features' tokens.

    >>> ride = Ride(PULocationID=130, DOLocationID=205, trip_distance=3.66)
    >>> features(ride, [GROUP["PU_DO"], GROUP["trip_distance"]])
    {'PU_DO=130_205': 1.0, 'trip_distance': 3.66}
    """
    inputs = inputs_of_ride(ride)
    return {group.token(index): value for group in groups for index, value in group.of_ride(inputs)}
