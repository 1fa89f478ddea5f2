"""The predictions database in a browser: `python -m batch.dashboard --predictions sqlite:///predictions.db`, then port 8050.

It only reads, and the database adds up. The filters are in the page's address, so a view can be sent to somebody.
`/metrics` tells Prometheus how wrong the model is, see `live`.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import click

from ride_duration.logs import shown
from ride_duration.serving import serve

try:
    import plotly.graph_objects as go
    from dash import Dash, Input, Output, ctx, dcc, html
    from flask import Response
    from prometheus_client import CONTENT_TYPE_LATEST

    from batch import summary
    from batch.live import Live
    from batch.summary import Row, Scope, errors, total
    from ride_duration.stores import Address, StoreError
    from ride_duration.stores.databases import Database
except ModuleNotFoundError as error:
    sys.exit(
        f"batch.dashboard needs {error.name}: run `make venv CATEGORIES=dashboard`, then .venv/bin/python -m batch.dashboard"
    )

from ride_duration.slices import DAYS, USUAL_MINUTES
from ride_duration.zones import ZONES

INK, COLOURS, PALE = "#64748b", ("#c2410c", "#2563eb", "#059669", "#9333ea", "#ca8a04"), "#94a3b8"
SMALL_DRIFT, LARGE_DRIFT = 0.1, 0.25
SHOWN_REASON, SHOWN_ZONES = 120, 12
WINDOW_DAYS = 7


def create_app(predictions: str, days: int = WINDOW_DAYS) -> Dash:
    """The Dash app over a predictions database; it opens a connection for each view.

    Parameters
    ----------
    predictions
        The database's address.
    days
        How many days of pickup `/metrics` is of, the newest.

    Raises
    ------
    StoreError
        If the address is not a database's.
    """
    address = Address.of(predictions)
    if address.kind == "parquet":
        raise StoreError(f"{shown(predictions)}: the dashboard reads a database; give sqlite:///FILE.db or postgresql://…")
    app = Dash("batch.dashboard", title="Ride Duration: predictions", assets_folder=str(Path(__file__).parent / "assets"))
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    for path in ("/healthz", "/readyz"):
        app.server.get(path, endpoint=path)(lambda: {"status": "alive"})
    live = Live(address, days)

    def metrics() -> Response:
        try:
            return Response(live.text(), content_type=CONTENT_TYPE_LATEST)
        except StoreError as error:  # a scrape that fails is what Prometheus calls down
            return Response(f"{error}\n", HTTPStatus.SERVICE_UNAVAILABLE, content_type="text/plain; charset=utf-8")

    app.server.add_url_rule("/metrics", view_func=metrics)
    app.layout = html.Main(
        [
            dcc.Location(id="url", refresh=False),
            html.Header(
                [
                    html.H1("Ride Duration"),
                    html.Div(
                        [
                            html.Label(["From", dcc.Input(id="first", placeholder="YYYY-MM-DD", maxLength=10, debounce=True)]),
                            html.Label(["To", dcc.Input(id="last", placeholder="YYYY-MM-DD", maxLength=10, debounce=True)]),
                            html.Label(["Model", dcc.Dropdown(id="version", placeholder="all versions")]),
                        ],
                        className="filters",
                    ),
                ]
            ),
            dcc.Loading(html.Div(id="view"), delay_show=400),
        ]
    )

    @app.callback(
        Output("url", "search"),
        Output("first", "value"),
        Output("last", "value"),
        Output("version", "value"),
        Output("version", "options"),
        Output("view", "children"),
        Input("url", "search"),
        Input("first", "value"),
        Input("last", "value"),
        Input("version", "value"),
    )
    def show(search: str | None, first: str | None, last: str | None, version: str | None) -> tuple[Any, ...]:
        asked = ctx.triggered_id in (None, "url")  # else a filter was changed
        scope = scope_of(search or "") if asked else Scope(_day(first), _day(last), _version(version))
        try:
            with closing(Database(address, read_only=True)) as database:
                versions, content = view(database, scope)
        except StoreError as error:
            versions, content = [], empty("The predictions can't be read", str(error), SCORE)
        return search_of(scope), scope.first, scope.last, scope.version, versions, content

    app.server.test_client().get("/")  # Dash serves a script only where the page was asked for: before workers are forked
    return app


def scope_of(search: str) -> Scope:
    """The filters of an address: `?from=2021-02-01&to=2021-02-07&version=…`; what is no date counts for nothing."""
    values = {name: texts[0] for name, texts in parse_qs(search.removeprefix("?")).items()}
    return Scope(_day(values.get("from")), _day(values.get("to")), _version(values.get("version")))


def search_of(scope: Scope) -> str:
    """The inverse of `scope_of`."""
    names = {"from": scope.first, "to": scope.last, "version": scope.version}
    chosen = {name: value for name, value in names.items() if value}
    return f"?{urlencode(chosen)}" if chosen else ""


def _day(text: Any) -> date | None:
    try:
        return date.fromisoformat(text[:10])
    except (ValueError, TypeError):
        return None


def _version(text: Any) -> str | None:
    """A version as it may be asked for: text that a database takes."""
    return text if isinstance(text, str) and text.isprintable() else None


SCORE = "python -m batch.score --rides URL --predictions URL"


def view(database: Database, scope: Scope) -> tuple[list[str], Any]:
    """The versions that there are, and the page below the filters."""
    known = summary.known(database)
    timeless = summary.timeless(database)
    if known.first is None and timeless:
        text = f"All {sum(timeless.values()):,} are of rides without a time, which are in no hour until they have ended:"
        return known.versions, empty("No prediction has a time yet", text, f"{SCORE} --actuals")
    if known.first is None:
        text = "batch.served reads some from a service's log, and a run of the batch job makes some:"
        return known.versions, empty("There are no predictions yet", text, SCORE)
    by = {what: summary.sums(database, scope, what) for what in ("day", "hour", "borough", "miles")}
    if not by["day"]:
        return known.versions, empty(
            "No prediction is within these filters",
            f"There are predictions of rides from {known.first} to {known.last}, by {', '.join(known.versions)}.",
        )
    versions = [version for version in known.versions if any(row["model_version"] == version for row in by["day"])]
    # what a shadow says was nobody's answer: it is looked at by itself, or beside
    answers = [row for row in by["day"] if row["model_version"] in known.answered] if scope.version is None else []
    answers = answers or by["day"]
    whole = total(answers)
    refused = summary.rejects(database, scope)
    parts: list[Any] = [
        headline(whole, refused, len({row["model_version"] for row in answers})),
        panel("Rides and predicted minutes by day", rides_by_day(answers)),
    ]
    if whole["usual"]:
        low, high = USUAL_MINUTES
        parts += [
            panel(
                "Error by day",
                lines(by["day"], versions, lambda row: errors(row).rmse, "RMSE, minutes"),
                f"Of rides that took {low:g} to {high:g} minutes, as in training; others are mostly meter errors.",
            ),
            panel(
                "Interval coverage by day",
                lines(by["day"], versions, lambda row: errors(row).coverage, "share inside", percent=True),
                "The share of rides that took as long as their interval said.",
            ),
            *(
                panel(f"Error by {title}", bars(by[what], versions))
                for what, title in {"hour": "hour of pickup", "borough": "borough of pickup", "miles": "miles"}.items()
            ),
            panel(
                "Interval coverage by hour of pickup",
                lines(by["hour"], versions, lambda row: errors(row).coverage, "share inside", percent=True),
            ),
            panel("By model version", by_version(by["day"], versions), wide=True),
            worst_zones(summary.zones(database, scope)),
            worst(summary.worst_pairs(database, scope)),
        ]
    else:
        parts.append(
            empty(
                "No ride has its actual duration yet",
                "Once rides have ended, this writes how long they took:",
                f"{SCORE} --actuals",
            )
        )
    if len(known.versions) > 1:
        parts.append(side_by_side(summary.side_by_side(database, scope, known.answered)))
    if timeless and scope == Scope():
        text = f"{sum(timeless.values()):,} more were asked for without a time; they are in no hour until they have ended."
        parts.append(panel("Rides without a time", html.P(text), wide=True))
    parts.append(drift(database, scope, versions, by))
    parts += [rejected(refused), panel("Newest runs", run_table(summary.runs(database, scope)), wide=True)]
    return known.versions, html.Div(parts, className="panels")


def headline(whole: Row, refused: list[Row], versions: int) -> Any:
    """The figures at the top; those of several versions together say so."""
    found, of = errors(whole), f" of {versions} versions" if versions > 1 else ""
    figures = [
        (f"{int(whole['rides']):,}", f"predictions{of}"),
        (f"{whole['predicted'] / whole['rides']:.1f} min", "mean prediction"),
        (f"{sum(row['rides'] for row in refused):,}", "rejects"),
        (f"{int(whole['ended']):,}", "have ended"),
        (_minutes(found.rmse), f"RMSE{of}"),
        (_minutes(found.mae), "MAE"),
        (_minutes(found.bias, "+"), "bias"),
        (_share(found.coverage), "inside the interval"),
    ]
    return html.Dl([html.Div([html.Dd(value), html.Dt(label)]) for value, label in figures], className="headline")


def rides_by_day(rows: list[Row]) -> Any:
    """Rides as bars, the mean prediction and the mean duration as lines."""
    days = sorted({row["key"] for row in rows})
    of_day = [total([row for row in rows if row["key"] == day]) for day in days]
    figure = go.Figure()
    figure.add_bar(x=days, y=[row["rides"] for row in of_day], name="rides", marker_color=PALE, opacity=0.5)
    means = [row["predicted"] / row["rides"] for row in of_day]
    figure.add_scatter(x=days, y=means, name="predicted", yaxis="y2", line_color=COLOURS[0])
    if any(row["usual"] for row in of_day):
        actual = [row["actual"] / row["usual"] if row["usual"] else None for row in of_day]
        figure.add_scatter(x=days, y=actual, name="actual", yaxis="y2", line={"color": COLOURS[1], "dash": "dot"})
    minutes = {"title": "minutes", "rangemode": "tozero", "showgrid": False, "tickmode": "auto", "tickformat": ".0f"}
    figure.update_layout(yaxis2=minutes | {"overlaying": "y", "side": "right"})
    return graph(figure, "rides")


def lines(
    rows: list[Row], versions: Sequence[str], value: Callable[[Row], float | None], title: str, percent: bool = False
) -> Any:
    """A line a version, by day."""
    figure = go.Figure()
    for number, version in enumerate(versions):
        own = [row for row in rows if row["model_version"] == version]
        x, y = [row["key"] for row in own], [value(row) for row in own]
        figure.add_scatter(x=x, y=y, name=version, mode="lines+markers", line_color=COLOURS[number % len(COLOURS)])
    figure.update_yaxes(rangemode="tozero", tickformat=".0%" if percent else None)
    return graph(figure, title)


def bars(rows: list[Row], versions: Sequence[str]) -> Any:
    """RMSE as bars, bias as points, a colour a version."""
    figure = go.Figure()
    keys = list(dict.fromkeys(row["key"] for row in rows))
    for number, version in enumerate(versions):
        own = {row["key"]: errors(row) for row in rows if row["model_version"] == version}
        colour = COLOURS[number % len(COLOURS)]
        x = [key for key in keys if key in own and own[key].rides]
        figure.add_bar(x=x, y=[own[key].rmse for key in x], name=f"RMSE {version}", marker_color=colour, opacity=0.6)
        bias = [own[key].bias for key in x]
        figure.add_scatter(x=x, y=bias, name=f"bias {version}", mode="markers", marker={"color": colour, "symbol": "diamond"})
    figure.update_xaxes(type="category")
    return graph(figure, "minutes")


def by_version(rows: list[Row], versions: Sequence[str]) -> Any:
    """Errors of each version."""
    cells = []
    for version in versions:
        whole = total([row for row in rows if row["model_version"] == version])
        found = errors(whole)
        everything = (whole["squared_error_of_all"] / whole["ended"]) ** 0.5 if whole["ended"] else None
        cells.append(
            [
                version,
                f"{int(whole['rides']):,}",
                f"{found.rides:,}",
                _minutes(found.rmse),
                _minutes(found.mae),
                _minutes(found.bias, "+"),
                _share(found.coverage),
                _minutes(everything),
            ]
        )
    low, high = USUAL_MINUTES
    names = ["Model", "Predictions", f"Took {low:g}–{high:g} min", "RMSE", "MAE", "Bias", "Coverage", "RMSE of any duration"]
    return table(names, cells)


def worst(rows: list[Row]) -> Any:
    """The pairs of zones that are predicted worst."""
    if not rows:
        return panel("Worst pairs", html.P(f"No pair has {summary.FEWEST} rides that have ended."), wide=True)
    cells = [
        [
            row["pickup"],
            row["dropoff"],
            row["model_version"],
            f"{row['rides']:,}",
            _minutes(row["rmse"]),
            _minutes(row["bias"], "+"),
        ]
        for row in rows
    ]
    names = ["From", "To", "Model", "Rides", "RMSE", "Bias"]
    note = f"Of the newest {summary.NEWEST:,} rides that have ended, pairs of {summary.FEWEST} or more."
    return panel("Worst pairs", table(names, cells), note, wide=True)


def worst_zones(rows: list[Row]) -> Any:
    """The zones of pickup that are predicted worst."""
    found = [(row, errors(row)) for row in rows if row["usual"] >= summary.FEWEST]
    if not found:
        return panel("Worst zones of pickup", html.P(f"No zone has {summary.FEWEST} rides that have ended."), wide=True)
    found.sort(key=lambda each: each[1].rmse or 0.0, reverse=True)
    cells = [
        [
            ZONES[row["key"]].name,
            row["model_version"],
            f"{of.rides:,}",
            _minutes(of.rmse),
            _minutes(of.bias, "+"),
            _share(of.coverage),
        ]
        for row, of in found[:SHOWN_ZONES]
    ]
    note = f"Of the newest {summary.NEWEST:,} rides that have ended, zones of {summary.FEWEST} or more."
    return panel("Worst zones of pickup", table(["Zone", "Model", "Rides", "RMSE", "Bias", "Coverage"], cells), note, wide=True)


def side_by_side(rows: list[Row]) -> Any:
    """Versions that have answered the same rides, two by two: a shadow beside the champion."""
    cells = [
        [
            row["one"],
            row["other"],
            f"{row['rides']:,}",
            _minutes(row["mean"], "+"),
            _minutes(row["rms"]),
            f"{row['ended']:,}",
            _minutes(row["rmse_of_one"]),
            _minutes(row["rmse_of_other"]),
        ]
        for row in rows
    ]
    names = ["One", "Other", "Same rides", "Other − one", "RMS of it", "Have ended", "RMSE of one", "RMSE of other"]
    note = f"Versions that have answered the same rides, among the newest {summary.NEWEST:,} predictions."
    content = table(names, cells) if cells else html.P("No two versions have answered the same ride.")
    return panel("Side by side", content, note, wide=True)


def drift(database: Database, scope: Scope, versions: Sequence[str], by: dict[str, list[Row]]) -> Any:
    """The inputs now against the training records."""
    version = scope.version or versions[0]
    found = summary.drift(database, version, by)
    if found is None:
        return panel(
            "Drift",
            html.P(f"{version} does not tell what it was trained on: `--model FILE` of batch.score or batch.served does."),
        )
    parts = []
    for one in found:
        figure = go.Figure()
        labels = [label[:3] for label in one.labels] if one.labels == DAYS else one.labels
        figure.add_bar(x=labels, y=one.trained, name="trained on", marker_color=PALE)
        figure.add_bar(x=labels, y=one.now, name="now", marker_color=COLOURS[0])
        figure.update_yaxes(tickformat=".0%")
        figure.update_xaxes(type="category")
        size = "small" if one.stability_index < SMALL_DRIFT else "large" if one.stability_index > LARGE_DRIFT else "moderate"
        parts.append(
            html.Div(
                [
                    html.H3(f"{one.name.capitalize()}: {size} drift ({one.stability_index:.2f})", className=size),
                    graph(figure, "share"),
                ]
            )
        )
    note = f"Against the records that {version} was trained on; the population stability index is in brackets."
    return panel("Drift of the inputs", html.Div(parts, className="drifts"), note, wide=True)


def rejected(rows: list[Row]) -> Any:
    """What was refused, and why."""
    if not rows:
        return panel("Rejects", html.P("None: every ride could be scored."), wide=True)
    cells = [[row["field"], f"{row['rides']:,}", row["reason"][:SHOWN_REASON]] for row in rows]
    return panel("Rejects", table(["Field", "Rides", "For example"], cells), wide=True)


def run_table(rows: list[Row]) -> Any:
    """The newest runs."""
    names = ["Interval", "Model", "Read", "Predicted", "Rejected", "Seconds", "Finished, UTC"]
    cells = [
        [
            f"{_short(row['interval_start'])} to {_short(row['interval_end'])}",
            row["model_version"],
            f"{row['rides_read']:,}",
            f"{row['predicted']:,}",
            f"{row['rejected']:,}",
            f"{row['seconds']:.2f}",
            row["finished_at"].replace("T", " "),
        ]
        for row in rows
    ]
    return table(names, cells)


def panel(title: str, content: Any, note: str = "", wide: bool = False) -> Any:
    """A titled part of the page."""
    return html.Section([html.H2(title), content, html.P(note, className="note")], className="wide" if wide else "")


def table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> Any:
    """A table that can be scrolled on a phone."""
    head = html.Thead(html.Tr([html.Th(name, scope="col") for name in names]))
    body = html.Tbody([html.Tr([html.Td(cell) for cell in row]) for row in rows])
    return html.Div(html.Table([head, body]), className="scrolled", tabIndex=0)


def graph(figure: go.Figure, title: str) -> Any:
    """A figure in the page's style."""
    figure.update_layout(
        margin={"l": 45, "r": 45, "t": 45, "b": 30},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="x unified",
        yaxis_title=title,
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.15)")
    figure.update_yaxes(gridcolor="rgba(128,128,128,.2)", zerolinecolor="rgba(128,128,128,.4)")
    return dcc.Graph(figure=figure, config={"displayModeBar": False}, responsive=True, style={"height": "17.5rem"})


def empty(title: str, text: str, command: str = "") -> Any:
    """What to do when there is nothing to show."""
    return html.Section([html.H2(title), html.P(text), html.Pre(command) if command else None], className="empty wide")


def _minutes(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f} min"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _short(time: str) -> str:
    return time.replace("T", " ").removesuffix(":00").removesuffix(" 00:00")


@click.command(context_settings={"show_default": True})
@click.option(
    "--predictions",
    required=True,
    envvar="PREDICTIONS",
    metavar="URL",
    help="The predictions database: sqlite:///… or postgresql://…",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8050, envvar="PORT", help="Port to answer on.")
@click.option("--host", default="127.0.0.1", help="Address to answer on; 0.0.0.0 is all. It asks nobody who they are.")
@click.option(
    "--days", type=click.IntRange(1, 366), default=WINDOW_DAYS, help="Days of pickup that /metrics is of, the newest."
)
def main(predictions: str, port: int, host: str, days: int) -> None:
    """Show rides, errors and drift of the predictions database, in a browser; /metrics has them for Prometheus."""
    try:
        app = create_app(predictions, days)
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port} shows {shown(predictions)}")
    serve(lambda: app.server, host, port, workers=2, threads=4)


if __name__ == "__main__":
    main()
