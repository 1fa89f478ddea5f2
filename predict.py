"""The web service: POST /predict answers the duration of a taxi ride, in minutes.

`gunicorn predict:app` serves it on port 9696 (see `gunicorn.conf.py`); `python predict.py` is for development only.
"""

import math
import os
import sys
from typing import Any

import msgspec
import numpy as np
from flask import Flask, Response, request
from msgspec import UNSET

from ride_duration import logs
from ride_duration.explanation import explain
from ride_duration.inputs import Columns
from ride_duration.model import ModelError
from ride_duration.ride import EXAMPLE, FieldError, check_ride, decode_rides
from ride_duration.watch import WatchedModel, as_utc
from web import access, metrics, openapi, pages, problems, settings
from web.access import Access
from web.body import read_json_body
from web.contract import Description, Health, Prediction, Predictions, Readiness, Refused
from web.problems import Problem
from web.shadow import Shadow
from web.worker import DRAINING

READINESS_RIDE = check_ride(EXAMPLE)


def create_app(models: WatchedModel, shadow: Shadow | None = None) -> Flask:
    """The service for a file with a model of ride duration, and a candidate that scores the same rides beside it."""
    app = Flask(__name__, static_folder="web/static", template_folder="web/templates")
    problems.register(app)
    metrics.register(app, models)
    with_rides = settings.log_rides()
    app.wsgi_app = Access(app.wsgi_app)  # type: ignore[method-assign]

    @app.post("/predict")
    def predict() -> Response:
        model = models.current.model  # one model from start to end, whatever becomes of the file
        environ = request.environ
        interval, explanation = read_flags("interval", "explain")
        if interval and not model.has_interval:
            raise refused_parameter("interval", "can't be true: this model has no calibrated interval")
        rides = decode_rides(read_json_body(environ))
        seen = environ[access.FIELDS]
        seen["model_version"] = model.version
        answer: Prediction | Predictions
        if isinstance(rides, list):
            if explanation:
                raise refused_parameter("explain", "goes with one ride, not with an array")
            columns = Columns.of(rides)
            durations = model.predict_columns(columns)
            answer = Predictions(durations=durations.tolist(), model_version=model.version)
            metrics.count_rides(durations)
            if interval:
                answer.intervals = np.column_stack(model.interval_columns(columns, durations)).tolist()
            answered = rides, answer.durations
        else:
            answer = Prediction(duration=model.predict(rides), model_version=model.version, ride_id=rides.ride_id)
            metrics.count_rides(answer.duration)
            if interval:
                answer.interval = model.interval(rides, answer.duration)
            if explanation:
                answer.explanation = explain(model, rides)
            if rides.ride_id is not UNSET:
                seen["ride_id"] = rides.ride_id
            answered = [rides], [answer.duration]
        seen["rides"] = len(answered[0])
        if with_rides:
            seen[access.SCORED] = logs.scored(model, *answered)
        if shadow:
            shadow.add(*answered)
        return as_json(answer)

    @app.get("/model")
    def describe_model() -> Response:
        read_flags()
        model, loaded_at = models.current
        refused = models.refused
        known: dict[str, Any] = msgspec.structs.asdict(model.metadata) if model.metadata else {"target": "duration"}
        of_service: dict[str, Any] = {
            "version": model.version,
            "coefficients": model.coefficients,
            "sha256": model.sha256,
            "loaded_at": as_utc(loaded_at),
            "refused": Refused(refused.reason, as_utc(refused.at)) if refused else None,
        }
        names = {*Description.__struct_fields__} & known.keys()
        return as_json(Description(**{name: known[name] for name in names} | of_service))

    @app.get("/healthz")
    def health() -> Response:
        read_flags()
        return as_json(Health())

    @app.get("/readyz")
    def ready() -> Response:
        read_flags()
        if DRAINING.is_set():
            raise Problem("not-ready", "This worker is about to end.")
        model = models.current.model
        try:
            answer = model.predict(READINESS_RIDE)
        except Exception as error:
            raise Problem("not-ready", f"The model can't answer a ride: {error}") from error
        if not math.isfinite(answer):
            raise Problem("not-ready", f"The model answers a ride with {answer}")
        return as_json(Readiness(model_version=model.version))

    @app.get("/openapi.json")
    def describe_service() -> Response:
        read_flags()
        return as_json(openapi.document())

    @app.get("/docs")
    def docs() -> Response:
        read_flags()
        return pages.docs()

    @app.get("/")
    def page() -> Response:
        read_flags()
        return pages.index()

    return app


def as_json(content: object) -> Response:
    """A 200 with `content` as JSON."""
    return Response(msgspec.json.encode(content), content_type="application/json")


def read_flags(*allowed: str) -> list[bool]:
    """The query's parameters, each true or false, false when left out; any other is refused: a typo must not pass silently."""
    if not request.environ.get("QUERY_STRING"):
        return [False] * len(allowed)
    for name in request.args:
        if name not in allowed:
            raise refused_parameter(
                name[:64], f"is not a query parameter of this route; {', '.join(allowed) or 'there are none'}"
            )
        if request.args.getlist(name) not in (["true"], ["false"]):
            raise refused_parameter(name, f"must be true or false, once; got {', '.join(request.args.getlist(name))[:64]!r}")
    return [request.args.get(name) == "true" for name in allowed]


def refused_parameter(name: str, detail: str) -> Problem:
    """A 422 for a query parameter."""
    return Problem("invalid-query", f"{name} {detail}.", [FieldError(name, detail)])


logs.set_up()
try:
    models = WatchedModel(os.environ.get("MODEL") or "model.bin", "duration")
    candidate = os.environ.get("SHADOW_MODEL")
    shadow = Shadow(candidate, settings.log_rides()) if candidate else None
    app = create_app(models, shadow)
except ModelError as error:
    sys.exit(f"predict.py: {error}")


def watch() -> None:
    """Start the threads of this process."""
    models.watch()
    if shadow:
        shadow.watch()


if __name__ == "__main__":
    watch()
    app.run(host="127.0.0.1", port=settings.port(), use_reloader=True, use_debugger=False)
