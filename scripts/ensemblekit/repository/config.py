# SPDX-License-Identifier: Apache-2.0
"""Change and write a model's config, with Triton's own protobuf schema."""

from pathlib import Path
from typing import NamedTuple

from tritonclient.grpc import model_config_pb2

from ensemblekit.repository.textproto import to_text

__all__ = ["EnsembleStep", "ensemble_steps", "place_on_gpus", "placement_text", "set_parameter", "write_config"]


def write_config(config: model_config_pb2.ModelConfig, path: Path) -> None:
    """Write a configuration as text.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_text(to_text(config))


def set_parameter(config: model_config_pb2.ModelConfig, name: str, value: str) -> None:
    """Set a string parameter of a model, as `parameters { key: ... value { string_value: ... } }`.

    >>> config = model_config_pb2.ModelConfig()
    >>> set_parameter(config, "tokenizer", "folder")
    >>> config.parameters["tokenizer"].string_value
    'folder'
    """
    config.parameters[name].string_value = value


def place_on_gpus(config: model_config_pb2.ModelConfig, replicas: int) -> None:
    """Set a model's instances: one a GPU for replicas, else one that chooses its GPUs itself.

    Args:
        config: The model's configuration.
        replicas: How many GPUs get an instance of their own (KIND_GPU); 1 is one instance over several GPUs, for
            which Triton has KIND_MODEL.

    >>> config = model_config_pb2.ModelConfig()
    >>> place_on_gpus(config, 2)
    >>> list(config.instance_group[0].gpus)
    [0, 1]
    """
    group = model_config_pb2.ModelInstanceGroup
    config.ClearField("instance_group")
    if replicas > 1:
        config.instance_group.add(count=1, kind=group.KIND_GPU, gpus=range(replicas))
    else:
        config.instance_group.add(count=1, kind=group.KIND_MODEL)


def placement_text(replicas: int) -> str:
    """Return the lines of config.pbtxt with which `place_on_gpus` places a model.

    >>> print(placement_text(1))
    instance_group {
      count: 1
      kind: KIND_MODEL
    }
    """
    config = model_config_pb2.ModelConfig()
    place_on_gpus(config, replicas)
    return to_text(config).rstrip()


class EnsembleStep(NamedTuple):
    """One step of an ensemble: the model, and which ensemble tensor feeds or takes each of its tensors."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def ensemble_steps(config: model_config_pb2.ModelConfig) -> tuple[EnsembleStep, ...]:
    """Return the steps of an ensemble in the order of its config; empty for any other model."""
    return tuple(
        EnsembleStep(step.model_name, dict(step.input_map), dict(step.output_map))
        for step in config.ensemble_scheduling.step
    )
