# SPDX-License-Identifier: Apache-2.0
"""Change and write a model's config, with Triton's own protobuf schema."""

from contextlib import suppress
from pathlib import Path

from ensemblekit.errors import KitError
from ensemblekit.repository.read import read_config
from ensemblekit.repository.textproto import model_config_pb2, to_text

__all__ = [
    "place_on_gpus",
    "placement_text",
    "set_parameter",
    "who_writes",
    "write_config",
]


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


def who_writes(repository: Path, model: str, name: str) -> str:
    """Return which step of an ensemble writes what a step's input takes, as a sentence; empty if no config tells."""
    for path in sorted(repository.glob("*/config.pbtxt")):
        with suppress(KitError):
            config = read_config(path)
            steps = config.ensemble_scheduling.step
            taken = {step.input_map[name] for step in steps if step.model_name == model and name in step.input_map}
            for number, step in enumerate(steps, 1):
                for output in (key for key, tensor in step.output_map.items() if tensor in taken):
                    what = f"{step.model_name}, as its output {output}{_declared(repository / step.model_name, output)}"
                    return f"step {number} of {path.parent.name} wrote it: {what}"
            if given := taken & {tensor.name for tensor in config.input}:
                return f"no step wrote it: it is the input {min(given)} of {path.parent.name}, as the client sent it"
    return ""


def _declared(model: Path, output: str) -> str:
    with suppress(KitError):
        dims = [list(tensor.dims) for tensor in read_config(model).output if tensor.name == output]
        return f", whose config says {dims[0]}" if dims else ""
    return ""
