"""The linear model: an intercept and a table of coefficients, scored without scikit-learn."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from ride_duration.features import GROUP, GROUPS, Group, Scale
from ride_duration.inputs import UNKNOWN_HOUR, Columns, Inputs, inputs_of_columns, inputs_of_ride
from ride_duration.ride import MAX_ERRORS, FieldError, InvalidRide, Ride, Target

MAX_NUMBER = 1e9
"""The largest coefficient: no minutes or dollars of anything get there, and no sum of them overflows."""

_BLOCK = 16_384  # rows scored at a time: what the arrays of a block need stays in the processor's cache


class ModelError(ValueError):
    """A model that can't be served, and why, in a sentence."""


class GoldenRide(msgspec.Struct):
    """A ride and the prediction that the model gave it when it was trained."""

    ride: Ride
    prediction: float


class Interval(msgspec.Struct):
    """How far actual durations lie from predictions: low and high = prediction + q · (prediction + `offset`).

    The two q of rides whose time is known, and of those whose isn't, are quantiles on rides later than those trained on.
    """

    level: float
    """Share of rides within, 0.8."""
    offset: float
    time_known: tuple[float, float]
    time_unknown: tuple[float, float]


class Metadata(msgspec.Struct, kw_only=True):
    """What a model file says of itself: the attribute `metadata_` of its regression, as plain data."""

    version: Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,100}$")]
    target: Target
    trained_on: list[str]
    """Months, like 2021-01."""
    trained_until: Annotated[datetime, msgspec.Meta(tz=False)] | None = None
    """The last pickup among the rides trained on, of New York's clock: rides after it are new to the model."""
    rows: int
    """Rides trained on."""
    metrics: dict[str, dict[str, float]]
    """Errors in the target's unit, of the model and of baselines, on rides of the months `tested_on`, when all of them were
    trained on the months `metrics_trained_on` alone. Empty when there was no test."""
    metrics_trained_on: list[str]
    tested_on: list[str]
    bounds: tuple[float, float]
    """Lowest and highest prediction."""
    floor: float = 0.0
    """No prediction is less than so much a mile."""
    interval: Interval | None = None
    golden: list[GoldenRide]
    inputs: dict[str, dict[str, float]] = {}
    """Shares of the rides trained on by hour, weekday, borough and miles (see `slices`); what drift is measured against."""
    libraries: dict[str, str]


class LinearModel:
    """intercept + Σ coefficient x value over a ride's features, then held within the metadata's bounds.

    Parameters
    ----------
    intercept
        In the target's unit, minutes for duration.
    coefficients
        By token, as the model's DictVectorizer spells them (see `features.Group`). A zone that no ride can have is harmless.
    metadata
        None for a model that carries none: it is then served as it is.
    sha256
        Digest of the file that it came from, in hex.

    Raises
    ------
    ModelError
        If a number isn't finite or absurdly large, or a token is one that no ride can produce: it would silently count as zero.
    """

    def __init__(
        self, intercept: float, coefficients: Mapping[str, float], metadata: Metadata | None = None, sha256: str = ""
    ) -> None:
        values = np.array([intercept, *coefficients.values()], np.float64)
        if not (np.abs(values) <= MAX_NUMBER).all():  # NaN is not either
            raise ModelError(f"it has coefficients that are not finite numbers of at most {MAX_NUMBER:g}")
        found: dict[str, dict[int, float]] = {}
        for token, value in coefficients.items():
            name, equals, suffix = token.partition("=")
            group = GROUP.get(name)
            index = group.index(suffix) if group and bool(equals) == bool(suffix) else None
            if group and index is not None:
                if index in found.setdefault(name, {}):
                    raise ModelError(f"its feature {token[:60]!r} is there in two spellings")
                found[name][index] = value
            elif not (group and group.zones_only and suffix):
                raise ModelError(
                    f"it was trained with the feature {token[:60]!r}, which no ride can produce: "
                    "its part of every prediction would be missing (zones are features when they are strings in training)"
                )
        for name in {token.partition("=")[0] for token in coefficients} - found.keys():
            raise ModelError(
                f"none of its values of {name!r} is one that a ride can have; zones are spelled like 130 or 130_205"
            )

        self.intercept = float(intercept)
        self.metadata = metadata
        self.target: Target = metadata.target if metadata else "duration"
        self.sha256 = sha256
        self.version = metadata.version if metadata else f"sha256:{sha256[:12]}"
        self.coefficients = len(coefficients)
        self.has_interval = metadata is not None and metadata.interval is not None
        self.groups = [group for group in GROUPS if group.name in found]
        self.needs_distance = "trip_distance" in found
        """Whether a ride of unknown distance can't be scored: the course's `trip_distance` has no value for it."""
        # groups of one scale share its values; a memoryview gives Python floats, twice as fast as its array gives numpy's
        self._by_scale: dict[Scale, list[tuple[Group, NDArray[np.float64], memoryview]]] = {}
        for group in self.groups:
            table = np.zeros(group.size)
            table[list(found[group.name])] = list(found[group.name].values())
            self._by_scale.setdefault(group.scale, []).append((group, table, table.data))

    def predict(self, ride: Ride) -> float:
        """The prediction for one ride: minutes, or dollars.

        Raises
        ------
        InvalidRide
            If its distance is unknown and the model `needs_distance`.
        """
        inputs = self._inputs(ride)
        return self.hold(self._linear(inputs), inputs)

    def linear(self, ride: Ride) -> float:
        """The prediction before it is held within bounds: what scikit-learn's `predict` gives."""
        return self._linear(self._inputs(ride))

    def hold(self, value: float, inputs: Inputs) -> float:
        """`value` held within the metadata's bounds and above its floor."""
        if self.metadata is None:
            return value
        low, high = self.metadata.bounds
        held: float = min(max(value, low, self.metadata.floor * inputs.miles), high)
        return held

    def interval(self, ride: Ride, prediction: float) -> tuple[float, float]:
        """Low and high ends of what the ride may last, around its prediction, for a model that `has_interval`."""
        table, low = self._interval_table()
        below, above = table.time_unknown if ride.pickup_datetime is None else table.time_known
        spread = prediction + table.offset
        return max(prediction + below * spread, min(low, prediction)), prediction + above * spread

    def parts(self, ride: Ride) -> Iterator[tuple[Group, float, float]]:
        """Each group's amount (of its scale) and its part of the prediction, for one ride; see `explanation.explain`."""
        inputs = self._inputs(ride)
        for scale, groups in self._by_scale.items():
            nodes = scale.of_ride(inputs)
            for group, _, table in groups:
                first = group.first_of_ride(inputs)
                yield group, scale.amount(inputs), sum(table[first + node] * value for node, value in nodes)

    def _inputs(self, ride: Ride) -> Inputs:
        if self.needs_distance and ride.trip_distance is None:
            raise InvalidRide([_distance_needed()])
        return inputs_of_ride(ride)

    def _linear(self, inputs: Inputs) -> float:
        total = self.intercept
        for scale, groups in self._by_scale.items():
            nodes = scale.of_ride(inputs)
            for group, _, table in groups:
                first = group.first_of_ride(inputs)
                for node, value in nodes:
                    total += table[first + node] * value
        return total

    def _interval_table(self) -> tuple[Interval, float]:
        if self.metadata is None or self.metadata.interval is None:
            raise ModelError("it has no interval")
        return self.metadata.interval, self.metadata.bounds[0]

    def predict_columns(self, columns: Columns) -> NDArray[np.float64]:
        """`predict` for every row; shape (rides,)."""
        return self._columns(columns, held=True)

    def interval_columns(
        self, columns: Columns, predictions: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`interval` for every row: lows and highs, each of shape (rides,)."""
        table, low = self._interval_table()
        unknown = columns.hour_of_week == UNKNOWN_HOUR
        below, above = (
            np.where(unknown, if_unknown, if_known)
            for if_unknown, if_known in zip(table.time_unknown, table.time_known, strict=True)
        )
        spread = predictions + table.offset
        return np.maximum(predictions + below * spread, np.minimum(low, predictions)), predictions + above * spread

    def linear_columns(self, columns: Columns) -> NDArray[np.float64]:
        """`linear` for every row; shape (rides,).

        Raises
        ------
        InvalidRide
            If distances are unknown and the model `needs_distance`; `index` is the row.
        """
        return self._columns(columns, held=False)

    def _columns(self, columns: Columns, held: bool) -> NDArray[np.float64]:
        unknown = np.flatnonzero(np.isnan(columns.trip_distance))[:MAX_ERRORS] if self.needs_distance else ()
        if len(unknown):
            raise InvalidRide([_distance_needed(int(row)) for row in unknown])
        totals = np.full(len(columns.trip_distance), self.intercept)
        for start in range(0, len(totals), _BLOCK):
            block = totals[start : start + _BLOCK]
            inputs = inputs_of_columns(columns.part(slice(start, start + _BLOCK)))
            for scale, groups in self._by_scale.items():
                nodes = list(scale.of_columns(inputs))
                for group, table, _ in groups:
                    first = group.first_of_columns(inputs)
                    for node, value in nodes:
                        block += table[first + node] * value
            if held and self.metadata is not None:
                low, high = self.metadata.bounds
                np.minimum(np.maximum(block, np.maximum(low, self.metadata.floor * inputs.miles)), high, out=block)
        return totals


def _distance_needed(index: int | None = None) -> FieldError:
    return FieldError("trip_distance", "must be a number of miles: this model has no answer for an unknown distance", index)
