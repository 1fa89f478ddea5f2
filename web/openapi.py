"""`/openapi.json`: OpenAPI 3.1, made of the types that validate rides and of those that are sent."""

from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ride_duration.ride import EXAMPLE, FIELDS, MAX_RIDES, Ride
from web.contract import ANSWERS
from web.problems import CONTENT_TYPE, KINDS

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_RIDES = Annotated[list[Ride], Meta(min_length=1, max_length=MAX_RIDES)]

EXAMPLES: Json = {
    "one ride": {"value": EXAMPLE},
    "the least that a ride needs": {"value": {"PULocationID": 74, "DOLocationID": 75, "trip_distance": None}},
    "an array": {"value": [EXAMPLE | {"ride_id": "a"}, {"PULocationID": 132, "DOLocationID": 230, "trip_distance": 17.4}]},
}

_FLAGS = {
    "interval": "Add the interval that 80 % of such rides last. Refused when the model has none.",
    "explain": "Add what the duration is made of. For one ride, not for an array.",
}


@cache
def document() -> Json:
    """The description of every route that a caller uses."""
    made = msgspec.json.schema_components([Ride, _RIDES, *ANSWERS], ref_template=_REF)
    (one, many, *_), schemas = _plain(made)
    for name, field in FIELDS.items():
        schemas["Ride"]["properties"][name]["description"] = f"{field.allowed[0].upper()}{field.allowed[1:]}."
    schemas["Ride"]["description"] = "One taxi ride."
    predict = {
        "operationId": "predict",
        "summary": "How long a ride takes, or each of an array of rides",
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": "boolean", "default": False}, "description": text}
            for name, text in _FLAGS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"anyOf": [one, many]}, "examples": EXAMPLES}},
        },
        "responses": _responses(
            ("Prediction", "Predictions"),
            ["not-json", "too-slow", "too-large", "unsupported-media-type", "invalid-ride", "internal-error"],
        ),
    }
    metrics = {
        "operationId": "metrics",
        "summary": "Counts for Prometheus, summed over workers",
        "responses": {"200": _response("In Prometheus' own format.", "text/plain", {"type": "string"})},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Ride Duration",
            "version": "1",
            "description": "Predicts how long a taxi ride in New York City takes, in minutes.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/predict": {"post": predict},
            "/model": {"get": _get("model", "What the model is, and how well it did", "Description")},
            "/healthz": {"get": _get("health", "Whether the process lives", "Health")},
            "/readyz": {"get": _get("readiness", "Whether rides are answered", "Readiness", "not-ready")},
            "/metrics": {"get": metrics},
        },
        "components": {
            "schemas": schemas,
            "headers": {
                "X-Request-ID": {
                    "description": "The request's id in the log: the caller's own, or one that the service made.",
                    "schema": {"type": "string", "minLength": 1, "maxLength": 64},
                }
            },
        },
    }


def _plain(schema: Any) -> Any:
    """The same, with a pair as an array of two: generators of clients don't know `prefixItems`."""
    if isinstance(schema, dict):
        if "prefixItems" in schema:
            schema = {**schema, "items": schema["prefixItems"][0]}
            del schema["prefixItems"]
        return {name: _plain(value) for name, value in schema.items()}
    return [_plain(item) for item in schema] if isinstance(schema, (list, tuple)) else schema


def _get(operation: str, summary: str, answer: str, *problems: str) -> Json:
    responses = _responses((answer,), ["invalid-query", *problems, "internal-error"])
    return {"operationId": operation, "summary": summary, "responses": responses}


def _responses(answers: tuple[str, ...], problems: list[str]) -> Json:
    """By status: the answer, of one of these types, and what may go wrong."""
    refs = [{"$ref": _REF.format(name=name)} for name in answers]
    responses = {"200": _response("The answer.", "application/json", {"anyOf": refs} if len(refs) > 1 else refs[0])}
    for name in problems:
        status, title = KINDS[name]
        problem = _REF.format(name="ProblemDetails")
        responses[str(int(status))] = _response(f"{title}.", CONTENT_TYPE, {"$ref": problem})
    return responses


def _response(description: str, content_type: str, schema: Json) -> Json:
    return {
        "description": description,
        "headers": {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}},
        "content": {content_type: {"schema": schema}},
    }
