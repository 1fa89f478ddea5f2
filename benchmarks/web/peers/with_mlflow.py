"""MLflow with our scorer, as a model from code. `python -m benchmarks.web.peers.with_mlflow` saves it in two folders."""

import os
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import infer_signature

from ride_duration.inputs import Columns, hours_of_week
from ride_duration.model_file import load_model
from ride_duration.ride import EXAMPLE


class Durations(mlflow.pyfunc.PythonModel):
    """Scores MLflow's data frame of rides as columns: no limits are checked."""

    def load_context(self, context: Any) -> None:
        self.model = load_model(os.environ["MODEL"], "duration")

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return self.model.predict_columns(
            Columns(
                model_input["PULocationID"].to_numpy(),
                model_input["DOLocationID"].to_numpy(),
                model_input["trip_distance"].to_numpy(),
                hours_of_week(pd.to_datetime(model_input["pickup_datetime"]).to_numpy()),
            )
        )


if __name__ == "__main__":
    rides = pd.DataFrame([EXAMPLE])
    for name, signature in {"signed": infer_signature(rides, [17.0]), "unsigned": None}.items():
        mlflow.pyfunc.save_model(name, python_model=__file__, signature=signature, pip_requirements=["mlflow"])
else:
    mlflow.models.set_model(Durations())
