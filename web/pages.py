"""The pages for people: a ride by name or on the map, and the routes in words. Nothing in them comes from elsewhere."""

import math
from functools import cache
from typing import Any

import msgspec
from flask import Response, render_template
from markupsafe import Markup

from ride_duration.zones import PLACES, ROAD_FACTOR, SAME_ZONE_MILES, ZONES
from web import openapi
from web.problems import KINDS

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # fmt: skip  # noqa: E501


def index() -> Response:
    """A ride's form, its map and its answer."""
    return _page("index.html", data=_zones())


def docs() -> Response:
    """`/openapi.json` as a page."""
    return _page("docs.html", api=openapi.document(), kinds=KINDS, as_json=_as_json)


def _page(template: str, **context: Any) -> Response:
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return Response(render_template(template, **context), headers=headers, content_type="text/html; charset=utf-8")


@cache
def _zones() -> Markup:
    """What the page's script needs of the zone table: ids, names, boroughs, and miles east and north on the map."""
    zones = [
        {"id": zone.zone_id, "name": zone.name, "borough": zone.borough}
        | ({} if math.isnan(PLACES[zone.zone_id, 0]) else dict(zip("yx", PLACES[zone.zone_id].round(3).tolist(), strict=True)))
        for zone in ZONES.values()
    ]
    data = {"zones": zones, "road_factor": ROAD_FACTOR, "same_zone_miles": SAME_ZONE_MILES}
    return Markup(msgspec.json.encode(data).decode().replace("<", "\\u003c"))


def _as_json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
