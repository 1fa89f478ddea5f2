"""The floor: a Flask app that reads a POST and answers as many bytes as ours, with no check, no model, no log."""

from flask import Flask, Response, request

ANSWER = b'{"duration":16.961661472176946,"model_version":"2021-01..2021-02-825bf825"}'

app = Flask(__name__)


@app.post("/predict")
def predict() -> Response:
    """Read the body whole; answer."""
    request.get_data()
    return Response(ANSWER, content_type="application/json")
