"""The gate before the service: `python -m registry.promote ride-duration --rides sqlite:///rides.db`.

A candidate is compared with the champion on the newest rides that both have never seen. If it is good enough, the alias that
`registry.pull` follows is moved to it; if not, it says why. The comparison is kept with the candidate's run, either way.
"""

import re
import sys
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import click

try:
    import msgspec
    import numpy as np

    from registry.embedded import open_registry
    from registry.gate import FEWEST, Check, Limits, compare
    from registry.mlflow import NotThereError, Registry, RegistryError, Version
    from registry.options import registry_option
    from registry.runs import CANDIDATE
    from ride_duration.stores import KINDS, MISSING, Rides, StoreError, open_rides, pickup_now
    from ride_duration.stores.columns import columns_of, well_formed
    from ride_duration.stores.options import column_option
except ModuleNotFoundError as error:
    sys.exit(f"registry.promote needs {error.name}: run `make venv CATEGORIES='registry batch'`")

from ride_duration.inputs import Columns
from ride_duration.model import LinearModel, ModelError
from ride_duration.model_file import parse_model
from ride_duration.slices import USUAL_MINUTES

CHAMPION = "champion"
EXIT_REFUSED, EXIT_REGISTRY = 1, 3
REPLACED, ROLLED_BACK, GATE = "replaced", "rolled_back", "gate"
"""Tags of a version: the one that it took the alias from, when it was rolled back, what the gate said of it."""


class Labelled(NamedTuple):
    """Rides whose duration is known."""

    rides: Columns
    actual: "np.typing.NDArray[np.float64]"
    """Minutes, usual ones."""
    first: datetime
    last: datetime


class Refused(click.ClickException):
    """A candidate that may not take the champion's place."""

    exit_code = EXIT_REFUSED


class Comparison(msgspec.Struct, kw_only=True):
    """What is kept with the candidate's run."""

    name: str
    candidate: str
    candidate_model: str
    champion: str | None
    champion_model: str | None
    at: str
    rides: int
    first_pickup: str
    last_pickup: str
    checks: list[Check]
    refused: list[str]


def labelled(rides: Rides, days: int, after: datetime | None, until: datetime | None = None) -> Labelled:
    """The newest rides whose duration is known and usual: of the last `days` days, and after a time: what the models have seen.

    Raises
    ------
    Refused
        If there are too few to tell two models apart.
    StoreError
    """
    last = rides.span(None).last
    if last:  # a ride of a year to come is a clock that was wrong
        last = min(last, until or pickup_now())
    found: list[Columns] = []
    actual: list[np.typing.NDArray[np.float64]] = []
    start = end = datetime.min
    if last:
        end = last + timedelta(seconds=1)
        start = max(last - timedelta(days=days), after + timedelta(seconds=1) if after else datetime.min)
        for batch in rides.read(start, end) if start < end else ():
            minutes = batch["actual"].to_numpy()
            rows = well_formed(batch) & (minutes != MISSING) & (minutes >= USUAL_MINUTES[0]) & (minutes <= USUAL_MINUTES[1])
            found.append(columns_of(batch, rows))
            actual.append(minutes[rows])
    count = sum(map(len, actual))
    if count < FEWEST:
        seen = f", of which the models have seen those until {after}," if after else ""
        raise Refused(
            f"{count:,} labelled rides from {start} to {end}{seen} are too few to compare on, {FEWEST:,} are needed; "
            "--days and --until choose others"
        )
    return Labelled(Columns(*map(np.concatenate, zip(*found, strict=True))), np.concatenate(actual), start, end)


def seen_until(*models: LinearModel | None) -> datetime | None:
    """The last pickup that any of the models was trained on, as far as they tell."""
    told = [model.metadata.trained_until for model in models if model and model.metadata and model.metadata.trained_until]
    return max(told, default=None)


def show(check: Check) -> str:
    """A check as a line of the table."""
    figures = "".join("–".rjust(12) if value is None else f"{value:12.4g}" for value in (check.candidate, check.champion))
    return f"{check.name:46}{figures}{check.limit:12.4g}  {'ok' if check.passed else 'REFUSED'}  {check.where}".rstrip()


def promote(
    registry: Registry, name: str, candidate: str, rides: Rides, days: int, until: datetime | None, limits: Limits
) -> str:
    """Compare, keep the comparison, and move the alias; what was done, in words.

    Parameters
    ----------
    candidate
        An alias, or a version's number.
    until
        End of the pickups that are looked at; None is now.

    Raises
    ------
    Refused
        With the reasons.
    RegistryError, StoreError
    """
    aliases = registry.aliases(name)
    number = candidate if re.fullmatch("[1-9][0-9]*", candidate) else aliases.get(candidate)
    if number is None:
        raise NotThereError(f"{name} has no version called {candidate}: `train.py --mlflow … --register {name}` makes one")
    version, before = registry.version(name, number), aliases.get(CHAMPION)
    if number == before:
        return f"{version} is the {CHAMPION} already"
    if when := version.tags.get(ROLLED_BACK):
        raise Refused(f"{version} was rolled back on {when}; delete its tag {ROLLED_BACK} if it shall have another chance")
    try:
        content = registry.model_file(registry.place(name, number))
        model = parse_model(content, "duration")
    except ModelError as error:
        registry.tag(version, GATE, f"refused: {error}")
        raise Refused(f"{version}: {error}") from None
    champion, size = _champion(registry, name, before)
    found = labelled(rides, days, seen_until(model, champion), until)
    for one, what in ((model, "candidate"), (champion, CHAMPION)):
        if one and not (one.metadata and one.metadata.trained_until):
            click.echo(f"careful: the {what} doesn't tell until when it was trained, and may have seen these rides")
    other = f"version {before} ({champion.version})" if champion else "nothing yet"
    click.echo(
        f"{version} ({model.version}) against {other}, on {len(found.actual):,} rides from {found.first} to {found.last}\n"
        f"{'':46}{'candidate':>12}{'champion':>12}{'limit':>12}"
    )
    checks = compare(model, champion, found.rides, found.actual, (len(content), size), limits)
    for check in checks:
        click.echo(show(check))
    comparison = Comparison(
        name=name,
        candidate=number,
        candidate_model=model.version,
        champion=before,
        champion_model=champion.version if champion else None,
        at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        rides=len(found.actual),
        first_pickup=str(found.first),
        last_pickup=str(found.last),
        checks=checks,
        refused=[check.reason() for check in checks if not check.passed],
    )
    keep(registry, version, comparison)
    if comparison.refused:
        raise Refused("\n  ".join([f"{version} is refused, {_stays(before)}:", *comparison.refused]))
    if registry.aliases(name).get(CHAMPION) != before:
        raise Refused(f"{name} has got another {CHAMPION} meanwhile: compare with that one, again")
    registry.tag(version, REPLACED, before or "")
    registry.point(name, CHAMPION, number)
    return f"{version} is the {CHAMPION} now" + (f", it was version {before}; back with --rollback" if before else "")


def _stays(before: str | None) -> str:
    return f"version {before} stays the {CHAMPION}" if before else f"there is no {CHAMPION} still"


def _champion(registry: Registry, name: str, number: str | None) -> tuple[LinearModel | None, int]:
    if number is None:
        return None, 0
    try:
        content = registry.model_file(registry.place(name, number))
        return parse_model(content, "duration"), len(content)
    except ModelError as error:
        raise RegistryError(
            f"{name}'s {CHAMPION}, version {number}, is nothing to compare with: {error}; "
            "point the alias at a version that can be served, or delete it"
        ) from None


def keep(registry: Registry, version: Version, comparison: Comparison) -> None:
    """Write a comparison onto the candidate's version, and into its run if it has one."""
    if version.run:
        content = msgspec.json.format(msgspec.json.encode(comparison))
        stem = f"{comparison.champion or 'none'}-{comparison.at.replace(':', '')}"
        registry.upload(registry.run_place(version.run), f"{GATE}/{version.number}-against-{stem}.json", content)
    registry.tag(version, GATE, f"refused: {'; '.join(comparison.refused)}"[:500] if comparison.refused else "passed")


def roll_back(registry: Registry, name: str) -> str:
    """Give the alias back to the version that the champion took it from; what was done, in words.

    Raises
    ------
    Refused
        If it took it from none.
    RegistryError
    """
    number = registry.aliases(name).get(CHAMPION)
    if number is None:
        raise Refused(f"{name} has no {CHAMPION}")
    version = registry.version(name, number)
    before, seen = version.tags.get(REPLACED), {number}
    while before and before not in seen:
        seen.add(before)
        earlier = registry.version(name, before)
        if ROLLED_BACK not in earlier.tags:
            break
        before = earlier.tags.get(REPLACED)  # it was no good either
    else:
        raise Refused(f"{version}, the {CHAMPION}, took the place of none that is good: there is nothing to go back to")
    # first the tag: killed in between, the same again does the rest
    registry.tag(version, ROLLED_BACK, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    registry.point(name, CHAMPION, before)
    return f"{name}: version {before} is the {CHAMPION} again, {number} is rolled back"


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.argument("name")
@click.option(
    "--rides", "rides_url", metavar="URL", envvar="RIDES", help=f"Rides that have ended: {KINDS}. #TABLE names a table."
)
@click.option("--candidate", default=CANDIDATE, metavar="ALIAS|VERSION", help="Which version shall take the champion's place.")
@click.option("--days", type=click.IntRange(1, 3660), default=28, help="How many days before the last ride are compared on.")
@click.option("--until", type=click.DateTime(), help="End of the pickups that are compared on; now, without it.")
@click.option("--max-microseconds", type=float, default=Limits().microseconds, help="CPU time that a ride may cost.")
@click.option("--max-megabytes", type=float, default=Limits().megabytes, help="Size that the file may have.")
@click.option("--rollback", is_flag=True, help="Give the alias back to the version that had it before.")
@column_option
@registry_option
def main(
    name: str,
    rides_url: str | None,
    candidate: str,
    days: int,
    until: datetime | None,
    max_microseconds: float,
    max_megabytes: float,
    rollback: bool,
    mapping: dict[str, str],
    uri: str,
) -> None:
    """Make a candidate of the registered model NAME its champion, if it is good enough.

    It is asked for the newest rides whose duration is known and which neither it nor the champion was trained on, and must
    not be worse: RMSE, bias, coverage of the interval, with and without a time, the worst slice, the champion's golden rides,
    falling with distance, absurd answers anywhere, cost, size.

    \b
    python -m registry.promote ride-duration --rides 'data/*.parquet'
    python -m registry.promote ride-duration --rollback

    Exit codes: 0 it is the champion, 1 refused, with the reasons, 2 wrong options, 3 the registry or the rides can't be used.
    """
    if not rollback and not rides_url:
        raise click.UsageError("--rides URL is needed: rides to compare on")
    try:
        with ExitStack() as opened:
            registry = opened.enter_context(open_registry(uri))
            if rollback or not rides_url:
                click.echo(roll_back(registry, name))
                return
            rides = opened.enter_context(closing(open_rides(rides_url, mapping)))
            limits = Limits(microseconds=max_microseconds, megabytes=max_megabytes)
            click.echo(promote(registry, name, candidate, rides, days, until, limits))
    except (RegistryError, StoreError) as error:
        click.echo(f"registry.promote: {error}", err=True)
        sys.exit(EXIT_REGISTRY)


if __name__ == "__main__":
    main()
