"""The core that the web service, the batch job and the stream consumers share: the ride, its features, the model."""
