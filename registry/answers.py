"""What MLflow's REST API answers, as far as it is read: an answer that is not so is none of MLflow's."""

# ruff: noqa: D101  # the names are MLflow's

import msgspec


class Known(msgspec.Struct):
    """An answer in which nothing is looked for: some object."""


class Info(msgspec.Struct):
    artifact_uri: str
    run_id: str = ""
    name: str = ""


class Output(msgspec.Struct):
    model_id: str


class Outputs(msgspec.Struct):
    model_outputs: list[Output] = []


class OneRun(msgspec.Struct):
    info: Info
    outputs: Outputs = msgspec.field(default_factory=Outputs)


class Run(msgspec.Struct):
    run: OneRun


class OneLoggedModel(msgspec.Struct):
    info: Info


class LoggedModel(msgspec.Struct):
    model: OneLoggedModel


class Experiment(msgspec.Struct):
    experiment_id: str
    lifecycle_stage: str = ""


class FoundExperiment(msgspec.Struct):
    experiment: Experiment


class Tag(msgspec.Struct):
    key: str
    value: str = ""


class OneVersion(msgspec.Struct):
    version: str
    run_id: str | None = None
    tags: list[Tag] = []


class Version(msgspec.Struct):
    model_version: OneVersion


class Alias(msgspec.Struct):
    alias: str
    version: str


class OneModel(msgspec.Struct):
    aliases: list[Alias] = []


class Model(msgspec.Struct):
    registered_model: OneModel


class Download(msgspec.Struct):
    artifact_uri: str


class File(msgspec.Struct):
    path: str
    is_dir: bool = False


class Files(msgspec.Struct):
    files: list[File] = []


class Error(msgspec.Struct):
    message: str = ""
    error_code: str = ""
