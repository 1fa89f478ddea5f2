"""The model registry: MLflow's, spoken to through its REST API."""
