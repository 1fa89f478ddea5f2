"""The web service of DataTalksClub's MLOps course (module 4), written anew: it does what the course's does.

Flask; a pickled (DictVectorizer, LinearRegression) on the pair of zones and the distance; scikit-learn's `transform` and
`predict` for each ride; no check. `python -m benchmarks.web.peers.course` makes the model, fitted on made-up rides between
about as many pairs of zones (13,000) as a month of green taxis has: its size is all that counts here.
"""

import pickle
import random
from pathlib import Path
from typing import Any

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue

MODEL = Path("lin_reg.bin")

app = Flask("duration-prediction")


def prepare_features(ride: dict[str, Any]) -> dict[str, Any]:
    """The model's two features."""
    return {"PU_DO": f"{ride['PULocationID']}_{ride['DOLocationID']}", "trip_distance": ride["trip_distance"]}


def predict(features: dict[str, Any]) -> float:
    """Minutes of one ride."""
    return float(model.predict(dv.transform(features))[0])


@app.post("/predict")
def predict_endpoint() -> ResponseReturnValue:
    """One ride."""
    return jsonify({"duration": predict(prepare_features(request.get_json()))})


def write_model() -> None:
    """Fit on made-up rides."""
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LinearRegression

    chance = random.Random(1)
    features = [
        prepare_features(
            {
                "PULocationID": chance.randint(1, 265),
                "DOLocationID": chance.randint(1, 265),
                "trip_distance": chance.uniform(0.5, 20),
            }
        )
        for _ in range(14_500)
    ]
    vectorizer = DictVectorizer()
    minutes = [4 + 3 * ride["trip_distance"] + chance.gauss(0, 2) for ride in features]
    regression = LinearRegression().fit(vectorizer.fit_transform(features), minutes)
    MODEL.write_bytes(pickle.dumps((vectorizer, regression)))


if __name__ == "__main__":
    write_model()
else:
    with MODEL.open("rb") as file:
        dv, model = pickle.load(file)
