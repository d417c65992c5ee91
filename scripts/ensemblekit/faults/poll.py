# SPDX-License-Identifier: Apache-2.0
"""E1xx: refused when the config is read. The load API says only "failed to poll"; the log has the reason.

The sentences with names are those that others say or know word for word: lint predicts them, a probe waits for them.
"""

from functools import partial

from ensemblekit.faults.fault import Also, Doc, Fault

ENSEMBLE_PLATFORM = "unexpected platform type 'ensemble'"  # of a server that was built without ensembles
# model_repository_manager.cc:1460 in 2.49.0; tests compare it with a genuine log
ENSEMBLE_REFUSED = f"Poll failed for model directory 'ensemble': {ENSEMBLE_PLATFORM} for ensemble"
# Where the emulation's words are not a genuine build's: scheduling beside a backend (see servers/emulation.py).
GENUINE_REFUSAL = "ensemble scheduling not supported"
PRIORITY = "default priority level must be in range [1, {levels}] for {model}"
CACHE = "Response Cache does not currently support model {model} {cause}. Please disable the response cache."
WARMUP_OF_ENSEMBLE = "model_warmup can not be specified for ensemble '{model}'"
NO_STEP = "must specify 'step' for ensemble '{model}'"
CORRELATION_TYPE = "unexpected data type for control {kind} for {model}. Allowed data types are {types}"
NEGATIVE_BATCH = "'max_batch_size' must be non-negative value for {model}"
PLATFORM_AND_BACKEND = "unexpected 'platform' and 'backend' pair, got:{platform}, {backend}"
_BACKEND_NAMES = (
    "python|vllm|onnxruntime|tensorrt|tensorrtllm|tensorflow|pytorch|openvino|dali|fil|identity|repeat|square"
)
_NO_BACKEND = (
    "Invalid model name: Could not determine backend for model '{model}' with no backend in model configuration. "
    "Expected model name of the form 'model.<backend_name>'."
)


# faults, by the page that documents them
_ensemble = partial(Fault, link=Doc.ENSEMBLES)
_core = partial(Fault, link=Doc.CORE_CHECKS)
_repository = partial(Fault, link=Doc.REPOSITORY)
POLL_FAULTS = (
    Fault(
        "E101",
        "this server was built without ensembles",
        message="unexpected platform type 'ensemble' for {model}",
        pattern=r"unexpected platform type 'ensemble' for (?P<model>[^\s\"]+)|ensemble scheduling not supported",
        cause="The server was compiled without TRITON_ENABLE_ENSEMBLE: NVIDIA's vLLM images up to 24.09 were, and so "
        "is every build.py run without --backend=ensemble. The config is right; this server does not know the "
        "platform.",
        fix="Use the base image plus the vLLM backend, a build with --backend=ensemble, or release 24.10 or later.",
        link=Doc.REPORT,
    ),
    Fault(
        "E102",
        "unknown platform",
        message="unexpected platform type '{platform}' for {model}",
        pattern=rf"unexpected platform type '(?!ensemble'|(?:{_BACKEND_NAMES})')(?P<platform>[^']*)'"
        r" for (?P<model>[^\s\"]+)",
        cause="No platform has this name, and without a backend Triton has nothing else to go by.",
        fix='Write `platform: "ensemble"` for an ensemble; for any other model write `backend: "..."`.',
    ),
    Fault(
        "E103",
        "a backend's name given as platform",
        message="unexpected platform type '{platform}' for {model}",
        pattern=rf"unexpected platform type '(?P<platform>{_BACKEND_NAMES})' for (?P<model>[^\s\"]+)",
        cause="This is the name of a backend, and it stands in the field `platform`.",
        fix='Write it as `backend: "..."`; if the model is an ensemble, write `platform: "ensemble"`.',
    ),
    _ensemble(
        "E104",
        "ensemble steps in a model of another backend",
        message="ensemble scheduling cannot be set for model '{model}' whose platform is not ensemble",
        cause="`ensemble_scheduling` belongs to the platform `ensemble`; an ensemble is no backend.",
        fix='Replace the backend line by `platform: "ensemble"`, or remove `ensemble_scheduling`.',
    ),
    _ensemble(
        "E105",
        "an ensemble with a backend as well",
        message="Ensemble model '{model}' must have platform type 'ensemble' and empty backend type",
        cause="An ensemble has no code, so no backend runs it: platform and backend exclude each other.",
        fix="Remove the backend line.",
    ),
    _ensemble(
        "E106",
        "an ensemble without its platform",
        message=_NO_BACKEND,
        cause="The config has `ensemble_scheduling` and neither platform nor backend. Triton guesses a missing backend "
        "from the model's files, and an ensemble has none.",
        fix='Add `platform: "ensemble"`.',
        same_words=("E119", "E120"),
        general=True,
    ),
    _ensemble(
        "E107",
        "an ensemble without steps",
        message="ensemble scheduling must be set for ensemble {model} whose platform is ensemble",
        pattern=r"ensemble scheduling must be set for ensemble (?P<model>\S+) whose platform is "
        r"|must specify 'step' for ensemble '(?P<empty_model>[^']*)'",
        cause="The platform is `ensemble`, but the config names no step.",
        fix="Add `ensemble_scheduling { step [ ... ] }`, one step for each model in the chain.",
    ),
    _ensemble(
        "E108",
        "a step lacks its model or a map",
        message="must specify '{field}' in step {step} of ensemble '{model}'",
        cause="Every step needs `model_name`, at least one `input_map` and at least one `output_map`.",
        fix="Add what is missing; in a map the key is the model's tensor, the value a name of the ensemble.",
    ),
    _ensemble(
        "E109",
        "an ensemble with a field that only models may have",
        message="{field} should not be specified for ensemble '{model}'",
        pattern=r"(?P<field>instance group|optimization) should not be specified for ensemble '(?P<model>[^']*)'"
        r"|model_warmup can not be specified for ensemble '(?P<warm_model>[^']*)'",
        cause="An ensemble runs nothing itself: instances, optimization and warm-up belong to its steps.",
        fix="Remove the field here, and set it in the models of the steps.",
    ),
    _core(
        "E110",
        "an output that no step produces",
        message="ensemble output '{tensor}' for ensemble {model}' is not used",
        cause='The message says "not used", and means: no step has this name in its output_map.',
        fix="Give the name as a value in a step's output_map, or remove the output.",
    ),
    _core(
        "E111",
        "an input that no step takes",
        message="ensemble input '{tensor}' for ensemble {model}' is not used",
        cause="The ensemble declares an input, and no step has its name in an input_map.",
        fix="Give the name as a value in a step's input_map, or remove the input.",
    ),
    _core(
        "E112",
        "a step waits for a tensor that nothing writes",
        message="output '{output}' for ensemble '{model}' is not written: at least one of its depending tensors, "
        "'{tensor}', is not connected",
        pattern=r"output '(?P<output>[^']*)' for ensemble '(?P<model>[^']*)' is not written"
        r"(?:: at least one of its depending tensors, '(?P<tensor>[^']*)', is not connected)?",
        cause="A step takes a tensor that is neither an input of the ensemble nor written by another step that can "
        "run: a misspelt name, or steps that wait for each other.",
        fix="Use one name on both sides: in the output_map that writes it (or the ensemble's input) and in this "
        "input_map.",
    ),
    _core(
        "E113",
        "a tensor that nothing takes",
        message="ensemble tensor '{tensor}' is unused in ensemble '{model}'",
        cause="A step writes a tensor, or waits for one, that leads to no output of the ensemble.",
        fix="Remove it from the output_map, or use it: in a later step's input_map or as an output of the ensemble.",
    ),
    _core(
        "E114",
        "two steps write the same tensor",
        message="ensemble tensor '{tensor}' can appear in an output map only once for ensemble '{model}' step {step}",
        cause="Each tensor of an ensemble is written by exactly one step.",
        fix="Give the second one another name.",
    ),
    Fault(
        "E115",
        "name and folder differ",
        message="unexpected directory name '{model}' for model '{name}', directory name must equal model name",
        cause="`name` in config.pbtxt must be the name of the model's folder.",
        fix="Remove the name line (the folder's name then counts), or make them equal.",
    ),
    Fault(
        "E116",
        "config.pbtxt cannot be parsed",
        message="failed to read text proto from {path}",
        pattern=r"failed to read text proto from (?P<path>\S+)"
        r"|Error parsing text-format inference\.ModelConfig: (?P<line>\d+):(?P<column>\d+): (?P<reason>.*)",
        cause="The file is not valid text of Triton's ModelConfig: a misspelt field, a bracket too many or too few, or "
        "two schedulers at once. The log line before says where.",
        fix="Correct the place that is named.",
        same_words=("E117",),
        holds=lambda values, _: True if "reason" in values else None,  # the parser's own line tells them apart
        general=True,
    ),
    Fault(
        "E117",
        "a template that was not filled in",
        message="failed to read text proto from {path}",
        pattern=r"Error parsing text-format inference\.ModelConfig: (?P<line>\d+):(?P<column>\d+):"
        r" (?P<reason>.*got: \$)",
        cause="`${...}` is a placeholder of the tool that makes the file (for example fill_template.py); Triton has no "
        "variables.",
        fix="Fill it in, then load.",
    ),
    _core(
        "E118",
        "a value that Triton refuses",
        message="{reason}",
        pattern=r"(?P<reason>'max_batch_size' must be non-negative value for (?P<model>\S+?)"
        r"|dynamic batching preferred size must be .+? for \S+|sequence batching .+? for \S+"
        r"|unexpected data type for control .+|default priority level must be in range .+"
        r"|priority queue policy must have .+"
        r"|Only one priority level is allowed .+|Queue policy can not have DELAY .+"
        r"|Response Cache does not currently support model .+"
        r"|unexpected 'platform' and 'backend' pair, got:.+?)(?:\"?$|\s*$)",
        cause="The field is right and its value is not.",
        fix="Choose a value as the message says.",
    ),
    _repository(
        "E119",
        "config.pbtxt one level too deep",
        message=_NO_BACKEND,
        cause="Triton looks for <repository>/<model>/config.pbtxt. Here it stands in a folder below, so that the model "
        "has no config and no file that names a backend.",
        fix="Give the folder that holds the models as repository, or move the file up beside the version folders.",
        same_words=("E106", "E120"),
        general=True,
    ),
    _repository(
        "E120",
        "a folder in which Triton finds no model",
        message=_NO_BACKEND,
        cause="Every folder of a repository is taken for a model. This one has no config that names a backend, and its "
        "version folder has no file from which Triton can tell one (model.py, model.onnx, model.plan, model.pt ...).",
        fix='Add config.pbtxt with `backend: "..."`, or move the folder out of the repository.',
        also=(
            Also(r"failed to open text file for read (?P<path>\S*config\.pbtxt): No such file", "to 22.03"),
            Also(r"must specify '?platform'?(?: or '?backend'?)? for (?:model )?'?(?P<model>[^'\s\"]+)", "to 22.03"),
        ),
        same_words=("E119", "E106", "S460"),
        holds=lambda values, _: True if "path" in values else None,  # an older release says that there is no config
    ),
    _repository(
        "E121",
        "a link that leads nowhere",
        message="failed to poll model repository '{repository}': failed to stat file {path}",
        cause="A symbolic link in the repository is broken, or leads to itself. Triton then reads none of the models, "
        "not even those beside it.",
        fix="Remove the link, or make its target.",
    ),
)
