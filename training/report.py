"""One self-contained page on how a model was trained and how wrong it is: `train.py --report report.html`."""

import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray

from ride_duration.model import LinearModel
from ride_duration.slices import BANDS, HOURS, slices
from ride_duration.zones import AIRPORTS, ZONES
from training.evaluation import Evaluation
from training.fit import Values
from training.records import TARGETS, RecordsError, Trips

try:
    import matplotlib as mpl

    mpl.use("svg")
    # the same page for the same records, and text that a reader can select
    mpl.rcParams |= {"svg.hashsalt": "", "svg.fonttype": "none", "font.size": 9}
    mpl.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise RecordsError(f"the report needs {error.name}: run `make venv CATEGORIES='train report'`") from None

INK, ACCENT, PALE = "#1f2a37", "#c2410c", "#94a3b8"
FEWEST = 50
"""Rides that a slice must have to be shown."""

Rows = NDArray[np.bool_]


def render(
    model: LinearModel,
    old: LinearModel | None,
    train: Trips,
    evaluation: Evaluation | None,
    accounts: dict[str, list[tuple[int, str]]],
) -> bytes:
    """The page, as UTF-8.

    Parameters
    ----------
    model, old
        The model that was trained, and the one that it replaces, if any.
    evaluation
        Of the model fitted on the training months alone; None when there was no test.
    """
    metadata = model.metadata
    assert metadata is not None
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("report.html")
    metrics = evaluation.metrics if evaluation else {}
    content = template.render(
        model=model,
        metadata=metadata,
        unit=TARGETS[metadata.target].unit,
        accounts=accounts,
        changes=_changes(model, old, train),
        metrics=metrics,
        columns=list(dict.fromkeys(name for row in metrics.values() for name in row)),
        plots=_plots(evaluation, TARGETS[metadata.target].unit) if evaluation else [],
        coverage=_coverage(evaluation) if evaluation else [],
        worst=_worst_pairs(evaluation) if evaluation else [],
    )
    return content.encode()


def _plots(evaluation: Evaluation, unit: str) -> list[tuple[str, str]]:
    test, predicted = evaluation.test, evaluation.predictions["model"]
    off = predicted - test.actual
    places = slices(test.rides)
    tenths = np.quantile(predicted, np.linspace(0, 1, 11))
    names = np.array(["?"] + [zone.borough for zone in ZONES.values()])
    boroughs = [f"{p} → {d}" for p, d in zip(names[test.rides.PULocationID], names[test.rides.DOLocationID], strict=True)]
    common = [pair for pair in sorted(set(boroughs), key=boroughs.count, reverse=True)[:12] if boroughs.count(pair) >= FEWEST]
    return [
        ("Error by hour of pickup", _bars([(hour, places["hour"] == i) for i, hour in enumerate(HOURS)], off, unit)),
        ("Error by miles", _bars([(band, places["miles"] == i) for i, band in enumerate(BANDS)], off, unit)),
        ("Error by boroughs", _bars([(pair, np.array(boroughs) == pair) for pair in common], off, unit, across=True)),
        (
            f"Error by predicted {unit}",
            _bars(
                [(f"{low:.0f}–{high:.0f}", (predicted >= low) & (predicted <= high)) for low, high in pairwise(tenths)],
                off,
                unit,
            ),
        ),
        ("Residuals: predicted less actual", _histogram(off, unit)),
        ("Predicted and actual", _scatter(predicted, test.actual, unit)),
    ]


def _bars(slices: Sequence[tuple[str, Rows]], off: Values, unit: str, across: bool = False) -> str:
    shown = [(label, rows) for label, rows in slices if rows.sum() >= FEWEST]
    figure = Figure(figsize=(5.4, 2.6 if not across else 3.4), layout="constrained")
    axes = figure.subplots()
    labels = [label for label, _ in shown]
    rmse = [float(np.sqrt((off[rows] ** 2).mean())) for _, rows in shown]
    bias = [float(off[rows].mean()) for _, rows in shown]
    if across:
        axes.barh(labels[::-1], rmse[::-1], color=PALE)
        axes.plot(bias[::-1], labels[::-1], "o", color=ACCENT, markersize=4)
        axes.set_xlabel(unit)
    else:
        axes.bar(labels, rmse, color=PALE)
        axes.plot(labels, bias, "o", color=ACCENT, markersize=4)
        axes.set_ylabel(unit)
        axes.tick_params(axis="x", labelrotation=0 if max(map(len, labels)) < 4 else 45)
    return _svg(figure)


def _histogram(off: Values, unit: str) -> str:
    figure = Figure(figsize=(5.4, 2.6), layout="constrained")
    axes = figure.subplots()
    reach = float(np.quantile(np.abs(off), 0.995))
    axes.hist(np.clip(off, -reach, reach), bins=61, color=PALE)
    axes.axvline(float(off.mean()), color=ACCENT)
    axes.set_xlabel(unit)
    return _svg(figure)


def _scatter(predicted: Values, actual: Values, unit: str) -> str:
    figure = Figure(figsize=(5.4, 2.6), layout="constrained")
    axes = figure.subplots()
    chosen = np.linspace(0, len(actual) - 1, min(len(actual), 1500)).astype(int)
    axes.scatter(predicted[chosen], actual[chosen], s=3, color=PALE)
    axes.axline((0, 0), slope=1, color=ACCENT, linewidth=1)
    axes.set(xlabel=f"predicted {unit}", ylabel=f"actual {unit}", xlim=(0, None), ylim=(0, None))
    return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def _coverage(evaluation: Evaluation) -> list[tuple[str, int, float, float]]:
    """Slice, rides, share within the interval, mean width; of the model with and without time."""
    rides, actual = evaluation.test.rides, evaluation.test.actual
    airports = np.isin(rides.PULocationID, list(AIRPORTS)) | np.isin(rides.DOLocationID, list(AIRPORTS))
    rows = []
    for name, (low, high) in evaluation.intervals.items():
        within = (low <= actual) & (actual <= high)
        predicted = evaluation.predictions[name]
        fifth = np.digitize(predicted, np.quantile(predicted, [0.2, 0.4, 0.6, 0.8]))
        slices: Iterable[tuple[str, Rows]] = [
            ("all rides", np.ones(len(actual), bool)),
            *((f"predicted {predicted[fifth == f].min():.0f}–{predicted[fifth == f].max():.0f}", fifth == f) for f in range(5)),
            ("airports", airports),
        ]
        for label, chosen in slices:
            if chosen.sum() >= FEWEST:
                mean_width = float((high - low)[chosen].mean())
                rows.append((f"{name}: {label}", int(chosen.sum()), float(within[chosen].mean()), mean_width))
    return rows


def _worst_pairs(evaluation: Evaluation) -> list[tuple[str, int, float, float, float]]:
    """Pairs of zones with the largest error among those with enough rides: rides, actual, predicted, RMSE."""
    test, predicted = evaluation.test, evaluation.predictions["model"]
    pair = test.rides.PULocationID * 1000 + test.rides.DOLocationID
    rows = []
    for value in np.unique(pair):
        chosen = pair == value
        if chosen.sum() >= FEWEST / 2:
            off = predicted[chosen] - test.actual[chosen]
            name = f"{ZONES[int(value) // 1000].name} → {ZONES[int(value) % 1000].name}"
            rmse = float(np.sqrt((off**2).mean()))
            rows.append((name, int(chosen.sum()), float(test.actual[chosen].mean()), float(predicted[chosen].mean()), rmse))
    return sorted(rows, key=lambda row: -row[-1])[:15]


def _changes(model: LinearModel, old: LinearModel | None, train: Trips) -> list[tuple[str, Any]]:
    """What is different from the model in the file's place: nothing to say of one that predicts something else."""
    if not (old and old.metadata and model.metadata) or old.metadata.target != model.metadata.target or old.needs_distance:
        return []
    apart = np.abs(model.predict_columns(train.rides) - old.predict_columns(train.rides))
    before, after = (m.metadata.metrics.get("model", {}).get("rmse") for m in (old, model) if m.metadata)
    return [
        ("replaces", old.version),
        ("RMSE before → after, each on its own test", f"{before} → {after}"),
        ("coefficients", f"{old.coefficients:,} → {model.coefficients:,}"),
        ("predictions apart on the training rides, on average", f"{apart.mean():.2f}"),
        ("and the 99th percentile", f"{np.quantile(apart, 0.99):.2f}"),
    ]
