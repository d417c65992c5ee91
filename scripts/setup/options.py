# SPDX-License-Identifier: Apache-2.0
"""What is asked for: the set-up's own options, and those of `ensemblekit run` that choose the environment."""

import importlib.util
import json
import os
import re
from types import ModuleType
from typing import Dict, List  # noqa: F401 - in a comment, for Python 3.6

from setup import ENGINE_TEXT, ROOT
from setup.locks import read_bundle
from setup.messages import SetupError

GRAMMAR = os.path.join(ROOT, "scripts", "ensemblekit", "cli", "run_grammar.py")  # the command itself reads with it too
FLAGS = ("quick", "lab", "dev", "here", "openai")
HELP = ("-h", "--help")
PLAN = "plan.json"  # what a run was asked for, in its folder
PAIR = r"""["']?([A-Z_]+)["']?\s*:\s+["']?([\w.:/@+-]+)["']?"""
SWEEP_LINE = re.compile(r"\s*(- +)?(%s|\{\s*%s(\s*,\s*%s)*\s*\})" % (PAIR, PAIR, PAIR))


def load_grammar() -> ModuleType:
    """Return the grammar of `ensemblekit run`, whose package cannot be imported yet."""
    specification = importlib.util.spec_from_file_location("run_grammar", GRAMMAR)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def parse(arguments: list) -> tuple:
    """Return the options of the set-up as a dictionary, and the command to start afterwards."""
    options = dict(dict.fromkeys(FLAGS, False), device="auto", help=False, as_it_is=False)
    at = arguments.index("--exec") if "--exec" in arguments else len(arguments)
    rest, command = arguments[:at], arguments[at + 1 :]
    while rest:
        word = rest.pop(0)
        if word == "--device" and rest:
            options["device"] = rest.pop(0)
        elif word[:2] == "--" and word[2:] in FLAGS:
            options[word[2:]] = True
        elif word in HELP:
            options["help"] = True
        else:
            raise SetupError("understand %r" % word, "an unknown option", "python3 scripts/bootstrap.py --help")
    if command[:1] == ["ensemblekit"]:
        _read_run_options(command[1:], options)
        options["as_it_is"] = command[1:2] == ["lab"]
    return options, command


def _read_run_options(words: list, options: dict) -> None:
    """Let the options of `ensemblekit run` choose the environment; what is wrong with them the command will say."""
    grammar = load_grammar()
    run = grammar.read_run(words)
    runs = [run] if run.help else _resumed(grammar, run) or _swept(grammar, run) or [run]
    options["quick"] = options["quick"] or not any(grammar.needs_vllm(one) for one in runs)
    options["device"] = grammar.device_of(runs[0], options["device"])


def _resumed(grammar: ModuleType, run: tuple) -> list:
    """Return what the run was asked for that is to go on, nothing if there is none."""
    name = grammar.value_of(run, "--resume")
    folder = grammar.value_of(run, "--runs-dir") or os.path.join(ROOT, "runs")
    try:
        with open(os.path.join(folder, name, PLAN)) as file:
            return grammar.planned(json.load(file)) if name else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _swept(grammar: ModuleType, run: tuple) -> list:
    """Return what each set of the run's sweep asks for, nothing if there is none that can be read."""
    path = grammar.value_of(run, "--sweep")
    try:
        with open(path, encoding="utf-8") as file:
            sets = read_sets(file.read())
        return grammar.planned({"given": run.parameters, "quick": run.quick, "sets": sets}) if sets else []
    except (OSError, ValueError):
        return []


def read_sets(text: str) -> list:
    """Return the parameter sets of a sweep, [] if its YAML is more than lines of names and single words.

    There is no yaml before there is an environment; the command reads all of it.
    """
    sets = []  # type: List[Dict[str, str]]
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).rstrip()
        starts = line.lstrip().startswith("-")
        if line and (not SWEEP_LINE.fullmatch(line) or not (sets or starts)):
            return []
        if starts:
            sets.append({})
        if line:
            sets[-1].update(re.findall(PAIR, line))
    return sets


def choose_engine(options: dict, gpu: bool) -> str:
    """Return "base", "cpu" or "cuda"."""
    if options["device"] not in ("auto", "cpu", "cuda"):
        raise SetupError(
            "use device %r" % options["device"],
            "the devices are auto, cpu and cuda",
            "for example `--device cpu`",
        )
    if options["quick"]:
        return "base"
    if options["device"] == "cuda" and not gpu:
        raise SetupError(
            "set up the GPU environment",
            "no NVIDIA GPU is visible (no /proc/driver/nvidia/gpus, no answer from nvidia-smi, or hidden "
            "by CUDA_VISIBLE_DEVICES)",
            "leave --device out, or use `--device cpu`",
        )
    return "cuda" if gpu and options["device"] != "cpu" else "cpu"


def wanted_layers(engine: str, options: dict) -> list:
    """Return the lock files to install, in order, for an engine and the extras asked for."""
    layers = ["base"]
    if engine != "base" or options["lab"]:
        layers.append("lab")
    if engine != "base":
        layers.append(engine)
    if engine == "base" and (options["openai"] or options["dev"]):
        layers.append("openai")  # those of an engine have it
    if options["dev"]:
        layers += ["hub", "dev"]  # the tests start a JupyterHub
    brought = read_bundle().get("layers", layers)
    missing = [layer for layer in layers if layer not in brought and (layer != "lab" or options["lab"])]
    if missing:
        raise SetupError(
            "set up the %s" % ENGINE_TEXT[engine],
            "this kit came as a bundle without %s" % ", ".join(missing),
            "make another with `ensemblekit bundle create` where there is a network (--device, --lab)",
        )
    return [layer for layer in layers if layer in brought]
