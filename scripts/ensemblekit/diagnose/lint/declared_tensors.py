# SPDX-License-Identifier: Apache-2.0
"""The tensors that a Python model adds itself in `auto_complete_config`, read from its code without running it.

Only what is written out is believed: dictionaries of constants, given directly, by name, or in a loop over a
list of them, and under no condition. Of anything else lint says nothing, rather than something wrong.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblekit.repository.read import read_bytes

__all__ = ["OwnTensors", "own_tensors"]

_FUNCTION = "auto_complete_config"
_ADDS = {"add_input": "inputs", "add_output": "outputs"}


@dataclass(frozen=True)
class OwnTensors:
    """What a model adds to its config.

    Attributes:
        inputs: The inputs, as `pb_utils` takes them.
        outputs: The outputs.
        max_batch_size: What it sets, None if it leaves that alone.
        whole: Whether this is all it adds; False if the code does something that is not understood.
    """

    inputs: tuple[dict[str, Any], ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()
    max_batch_size: int | None = None
    whole: bool = True


def own_tensors(file: Path) -> OwnTensors:
    """Return what the model in this file adds to its config: nothing if it has no such function."""
    try:
        tree = ast.parse(read_bytes(file))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return OwnTensors()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == _FUNCTION]
    if not functions:
        return OwnTensors()
    constants = dict(_assigned(tree.body)) | dict(_assigned(functions[0].body))
    return _Reader(constants).read(functions[0])


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                yield node.targets[0].id, ast.literal_eval(node.value)
            except ValueError:
                continue


class _Reader:
    """Reads one function, statement by statement."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self._constants = constants
        self._found: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
        self._batch: int | None = None
        self._whole = True

    def read(self, function: ast.FunctionDef) -> OwnTensors:
        """Return what the function adds."""
        for node in function.body:
            self._statement(node, {})
        inputs, outputs = (tuple(self._found[name]) for name in ("inputs", "outputs"))
        return OwnTensors(inputs, outputs, self._batch, self._whole)

    def _statement(self, node: ast.stmt, loop: dict[str, Any]) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._call(node.value, loop)
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            values = self._value(node.iter, loop)
            self._whole &= isinstance(values, list | tuple)
            for value in values if isinstance(values, list | tuple) else ():
                for inner in node.body:
                    self._statement(inner, loop | {node.target.id: value})
        elif not isinstance(node, ast.Return | ast.Assign | ast.Pass | ast.Expr) or _calls(node):
            self._whole = False

    def _call(self, call: ast.Call, loop: dict[str, Any]) -> None:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        argument = self._value(call.args[0], loop) if call.args else None
        if name in _ADDS:
            good = isinstance(argument, dict) and {"name", "data_type", "dims"} <= argument.keys()
            self._whole &= good
            if good and isinstance(argument, dict):
                self._found[_ADDS[name]].append(argument)
        elif name == "set_max_batch_size":
            self._whole &= isinstance(argument, int)
            self._batch = argument if isinstance(argument, int) else self._batch
        elif not name.startswith("set_"):
            self._whole = False

    def _value(self, node: ast.expr, loop: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Name):
            return loop.get(node.id, self._constants.get(node.id))
        try:
            return ast.literal_eval(node)
        except ValueError:
            return None


def _calls(node: ast.AST) -> bool:
    """Return whether anything is called but `as_dict`, which only reads."""
    calls = (part.func for part in ast.walk(node) if isinstance(part, ast.Call))
    return any(not (isinstance(call, ast.Attribute) and call.attr == "as_dict") for call in calls)
