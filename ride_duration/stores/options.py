"""What commands that read rides from a store ask for alike."""

import click


def _pairs(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """OURS=THEIRS options as a dict."""
    found = {}
    for value in values:
        ours, _, theirs = value.partition("=")
        if not (ours and theirs):
            raise click.BadParameter(f"{value!r} is not OURS=THEIRS")
        found[ours] = theirs
    return found


column_option = click.option(
    "--column",
    "mapping",
    multiple=True,
    metavar="OURS=THEIRS",
    callback=_pairs,
    help="A column of the rides that is called otherwise.",
)
