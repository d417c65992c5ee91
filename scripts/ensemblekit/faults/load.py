# SPDX-License-Identifier: Apache-2.0
"""E2xx: the config is read, and the model refused when it is loaded. The load API says why (HTTP 400)."""

from functools import partial

from ensemblekit.faults.fault import Also, Context, Detail, Doc, Fault, Values

# Triton's and the vLLM backend's sentences that lint predicts
BAD_DIMENSION = "dimension must be integer >= 1, or -1 to indicate a variable-size dimension"
BAD_RESHAPE = "reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension"
EMPTY_RESHAPE = "cannot have empty reshape for non-batching model as scalar tensors are not supported"
BATCHES_OF_VLLM = (
    "configuration specified max_batch_size {size}, but in auto-complete-config function for model '{model}' specified "
    "max_batch_size 0"
)
DECOUPLED_OF_VLLM = (
    "trying to change decoupled property in auto-complete-config for model '{model}', which is already set to 'False'."
)
# Which of NVIDIA's images has a backend: the end of its tag, the first and the last release, empty if it goes on.
# From `enable_all` and the parts for vLLM and TensorRT-LLM in build.py of triton-inference-server/server, by branch.
IMAGES = {
    "vllm": ("-vllm-python-py3", "23.10", ""),
    "tensorrtllm": ("-trtllm-python-py3", "23.10", ""),
    "tensorflow": ("-py3", "", "25.02"),
    **dict.fromkeys(("onnxruntime", "tensorrt", "pytorch", "openvino", "dali", "fil", "python"), ("-py3", "", "")),
}


def _image(values: Values, _text: str, context: Context) -> Detail | None:
    """Return where a backend is that this server lacks."""
    backend = values.get("backend") or values.get("library", "")
    if backend not in IMAGES:
        return None
    tag, first, last = IMAGES[backend]
    release, span = context.release or "<release>", ""
    if last and (not context.release or release > last):
        release, span = last, f" ({last} is the last release that has it)"
    elif context.release and release < first:
        release, span = first, f" ({first} is the first release that has it)"
    hint = f"use an image that has the backend {backend}: nvcr.io/nvidia/tritonserver:{release}{tag}{span}"
    return Detail(f"this server has no backend {backend}", hint)


# faults, by the page that documents them
_vllm = partial(Fault, link=Doc.VLLM_BACKEND)
_config = partial(Fault, link=Doc.CONFIGURATION)
LOAD_FAULTS = (
    Fault(
        "E201",
        "a step names a model that is not there",
        message="ensemble {model} contains models that are not available or ambiguous: {missing}",
        pattern=r"ensemble (?P<model>\S+) contains models that are not available or ambiguous: "
        r"(?P<missing>[^\n\"\\;]+)",
        also=(
            Also(r"ensemble (?P<model>\S+) contains models that are not available: (?P<missing>[^\n\";]+)", "to 23.02"),
        ),
        cause="The repository has no model folder of this name, or its own config was refused.",
        fix="Correct `model_name` in the step, or add the model to the repository.",
        link=Doc.ENSEMBLES,
    ),
    Fault(
        "E202",
        "a step maps an input that its model does not have",
        message="in ensemble {model}, ensemble tensor {tensor} is mapping to non-existing input {input} in model "
        "{step}",
        cause="In input_map the key is the name of the model's tensor, the value the name within the ensemble; they "
        "may be swapped, or one is misspelt.",
        fix="Use one of the model's own inputs as key.",
    ),
    Fault(
        "E203",
        "a step maps an output that its model does not have",
        message="in ensemble {model}, ensemble tensor {tensor} is mapped from non-existing output {output} "
        "in model {step}",
        cause="In output_map the key is the name of the model's tensor, the value the name within the ensemble.",
        fix="Use one of the model's own outputs as key.",
    ),
    Fault(
        "E204",
        "a required input of a step is left unmapped",
        message="in ensemble {model}, input {input} in model {step} is not mapped to any ensemble tensors",
        cause="The model of the step needs this input, and the step's input_map does not give it.",
        fix="Add an input_map for it, or declare it `optional: true` in the model if it can do without.",
    ),
    Fault(
        "E205",
        "the two ends of a tensor have different types",
        message="in ensemble {model}, ensemble tensor {tensor}: inconsistent data type: {here} is inferred from model "
        "{origin} while {there} is inferred from model {step}",
        cause="A tensor has one data type everywhere in an ensemble.",
        fix="Write the same data_type on both sides.",
    ),
    Fault(
        "E206",
        "the two ends of a tensor have different shapes",
        message="in ensemble {model}, ensemble tensor {tensor}: inconsistent shape: {here} is inferred from model "
        "{origin} while {there} is inferred from model {step}",
        cause="A tensor has one shape everywhere in an ensemble; -1 fits any size. A model with max_batch_size above 0 "
        "has a batch dimension before its dims.",
        fix="Write the same dims on both sides, or -1 where the size varies.",
    ),
    Fault(
        "E207",
        "no version folder",
        message="at least one version must be available under the version policy of model '{model}'",
        cause="A model is served by version: a subfolder whose name is a number (no leading zero), which an ensemble "
        "needs as well, empty. Git keeps no empty folders, so it is often lost in a clone. A version_policy that "
        "names only absent versions does the same.",
        fix="Make the folder `1` beside config.pbtxt, for an ensemble with a `.gitkeep` in it.",
        link=Doc.VERSION_POLICY,
    ),
    Fault(
        "E208",
        "a step, or the answer, holds the prompt and the generation",
        message="in ensemble {model}, step of model '{model}' receives inputs originated from different decoupled "
        "models",
        pattern=r"in ensemble (?P<model>\S+), step of model '(?P<step>[^']*)' receives inputs originated from different"
        r" decoupled models",
        cause="A decoupled model (vLLM is one) answers any number of times, the prompt comes once: a step that takes "
        "both could not be told which belong together, nor could a client who gets both as outputs. The message names "
        "the ensemble, not the step.",
        fix="Take only tensors from behind the decoupled model. What else is needed has to pass through that model, or "
        "through a decoupled step with code that asks it (BLS).",
        link=Doc.DECOUPLED,
    ),
    Fault(
        "E209",
        "a step's model failed first",
        message="ensemble '{model}' depends on '{step}' which has no loaded version",
        pattern=r"ensemble '(?P<model>[^']*)' depends on '(?P<step>[^']*)'"
        r" which (?:has no loaded version|is not valid)",
        cause="Only a consequence: the model of a step did not load, so the ensemble cannot.",
        fix="Correct the model of the step; the ensemble needs no change for this.",
        link=Doc.ENSEMBLES,
        consequence=True,
    ),
    Fault(
        "E210",
        "ensembles that contain each other",
        message="circular dependency between ensembles: {model} -> ... -> {step} -> {model}",
        cause="A step of the ensemble is the ensemble itself, or one that contains it.",
        fix="Break the circle: a step can only name a model or an ensemble that does not lead back.",
    ),
    Fault(
        "E211",
        "an ensemble that batches more than a step can",
        message="ensemble {model} allows maximum batch size {size}, but it contains model {step} which only allows "
        "maximum batch size to be {step_size}",
        cause="The ensemble's max_batch_size is above that of a step.",
        fix="Lower the ensemble's max_batch_size, or raise the step's.",
        link=Doc.BATCHING,
    ),
    Fault(
        "E212",
        "a step asks for a version that is not loaded",
        message="ensemble '{model}' depends on '{step}' whose required version {version} is not loaded.",
        cause="`model_version` in the step names a version without a folder, or one that the model's version_policy "
        "leaves out (by default only the latest is loaded).",
        fix="Write `model_version: -1` for the latest, or have the model load that version.",
        link=Doc.VERSION_POLICY,
    ),
    _config(
        "E213",
        "a tensor is declared incompletely",
        message="{reason} for {model}",
        pattern=r"(?P<reason>model (?:input|output) (?:'(?P<tensor>[^']*)' )?(?:must specify '(?:name|data_type|dims)'"
        r"|dimension must be integer >= 1, or -1 to indicate a variable-size dimension"
        r"|reshape dimensions must be .+?|cannot have empty reshape .+?|has different (?:size|number) .+?))"
        r" for (?P<model>[^\s\";]+)",
        cause="Every tensor needs a name, a data_type and dims of at least 1, or -1 where the size varies.",
        fix="Add what the message names.",
    ),
    _config(
        "E214",
        "a backend that this server does not have",
        message="unable to find backend library for backend '{backend}', try specifying runtime on the model "
        "configuration.",
        pattern=r"unable to find backend library for backend '(?P<backend>[^']*)'",
        also=(Also(r"unable to find 'libtriton_(?P<library>\w+)\.so' for model '(?P<model>[^']*)'", "to 23.12"),),
        detail=_image,
        cause="Each image carries only some backends: NVIDIA's vLLM image python and vllm, the base image no vllm.",
        fix="Correct the backend's name, or use a server that has it.",
    ),
    Fault(
        "E215",
        "a Python model without its model.py",
        message="Failed to preinitialize Python stub: Python model file not found in '{path}'",
        pattern=r"Python model file not found in (?:neither )?'(?P<path>[^']*)'",
        cause="The version folder has no model.py. The stub process ends, and Triton 24.07 to 24.10 waits for it "
        "without limit: the load never answers and the server is never ready.",
        fix="Put model.py into the version folder, or name the file in `default_model_filename`.",
        link=Doc.PYTHON_BACKEND,
        status=None,
    ),
    Fault(
        "E216",
        "a Python model's code failed",
        message="failed to load '{model}' version {version}: Internal: {reason}",
        pattern=r"(?:failed to load '(?P<model>[^']*)' version (?P<version>\d+)"
        r"|(?:load failed for model |Model )'(?P<asked_model>[^']*)'(?: loading failed with error)?:"
        r" version \d+ is at UNAVAILABLE state): Internal: "
        r"(?P<reason>(?P<kind>[A-Za-z_.]*(?:Error|Exception|Interrupt))\b.*)",
        cause="model.py raised while it was imported or initialised: a syntax error, a package that is not installed "
        "in the Python of the server, or an error of its own.",
        fix="Read the Python traceback in the log; the last line names the cause.",
        link=Doc.PYTHON_BACKEND,
        general=True,
    ),
    _config(
        "E217",
        "a model that wants a GPU where there is none",
        message="instance group {group} of model {model} has kind KIND_GPU but no GPUs are available",
        pattern=r"instance group (?P<group>\S+) of model (?P<model>\S+) has kind KIND_GPU but "
        r"(?:no GPUs are available|server does not support GPUs)",
        cause="`KIND_GPU` was asked for by name, and the server sees no GPU.",
        fix="Write `kind: KIND_AUTO` (a GPU if there is one) or `KIND_CPU`, or give the container its GPUs.",
    ),
    _vllm(
        "E218",
        "tensor parallelism in an instance of one GPU",
        message="KIND_GPU is currently for single-GPU models, please specify KIND_MODEL in the model's config.pbtxt "
        "for multi-GPU models",
        cause="KIND_GPU gives an instance one GPU, and model.json asks vLLM for more (tensor_parallel_size above 1).",
        fix="Write `instance_group [ { count: 1 kind: KIND_MODEL } ]`: vLLM then chooses the devices itself.",
    ),
    _vllm(
        "E219",
        "model.json is missing or wrong",
        message="{reason}",
        pattern=r"(?P<reason>\w*(?:Error|Exception): [^\n]*?\bmodel\.json\b[^\n]*)",
        cause="A model of the vLLM backend has its engine arguments in <version>/model.json, one JSON object that "
        "names at least `model`.",
        fix='Write the file, for example { "model": "HuggingFaceTB/SmolLM2-135M-Instruct" }.',
    ),
    _vllm(
        "E220",
        "a vLLM model with settings that its backend does not allow",
        message="ValueError: {reason}",
        pattern=r"ValueError: (?P<reason>configuration specified max_batch_size (?P<size>\d+), but in"
        r" auto-complete-config function for model '(?P<model>[^']*)' specified max_batch_size 0"
        r"|trying to change decoupled property in auto-complete-config for model '(?P<decoupled_model>[^']*)',"
        r" which is already set to 'False'\.)",
        cause="The vLLM backend sets max_batch_size 0 and decoupled answers itself, and refuses a config that says "
        "otherwise: vLLM forms its own batches.",
        fix="Remove max_batch_size and model_transaction_policy from the model's config.",
    ),
    Fault(
        "E221",
        "a model declares an output twice",
        message="in ensemble {model}, multiple outputs in model {step} are mapped to the same ensemble tensor {tensor}",
        cause="The model of the step has two outputs of one name. By itself it loads; in an ensemble it is refused.",
        fix="Remove one of them from the model's config.",
    ),
)
