# SPDX-License-Identifier: Apache-2.0
"""T3xx: loads without a word, and breaks later: at a request, under load, or with a certain client."""

from functools import partial

from ensemblekit.faults.fault import Doc, Fault, Values

__all__ = ["SERVE_FAULTS", "is_of_another_batch"]


def is_of_another_batch(values: Values) -> bool:
    """Return whether a tensor has one dimension more than was expected: the batch's."""
    return values.get("got", "").count(",") == values.get("expected", "").count(",") + 1


_warning = partial(Fault, severity="warning")
_note = partial(Fault, severity="note")
SERVE_FAULTS = (
    _warning(
        "T301",
        "a vLLM input that the ensemble does not pass on",
        cause="What a client sends under a name that the ensemble does not declare is no tensor but a request "
        "parameter, and reaches vLLM as a sampling parameter: refused if vLLM does not know it, silently without "
        "effect as input.",
        fix="Declare it as an optional input of the ensemble and map it in the step, or let an earlier step write it.",
        link=Doc.VLLM_BACKEND,
    ),
    _note(
        "T302",
        "a decoupled model does not answer /infer",
        message="HTTP end point doesn't support models with decoupled transaction policy",
        pattern=r"doesn't support models with decoupled transaction policy",
        status=501,
        cause="Any number of responses to one request do not fit into one HTTP answer.",
        fix="Use /generate or /generate_stream over HTTP, or a stream over gRPC (ModelStreamInfer).",
        link=Doc.DECOUPLED,
    ),
    _note(
        "T303",
        "/generate with stream true answers 200 with an error in its body",
        message="generate expects model to produce exactly 1 response, use generate stream for model that generates "
        "various number of responses",
        status=200,
        cause="The status line is sent before the second response arrives, so that the error can only come in the "
        "body: a client that looks at the status takes it for an answer.",
        fix="Send `stream: true` to /generate_stream only, and look for `error` in every body.",
        link=Doc.GENERATE,
    ),
    _warning(
        "T304",
        "numpy 2 with a Python stub of Triton up to 24.10",
        message="error: unpack_from requires a buffer of at least {bytes} bytes",
        pattern=r"unpack_from requires a buffer of at least (?P<bytes>\d+) bytes",
        cause="Stubs up to 24.10 cannot read string tensors with numpy 2, and their process ends: on 24.08 the request "
        "hangs for ever while ready stays 200, on 24.10 it is answered with an error.",
        fix="Install `numpy<2` (1.26.4) in the Python that the models run in.",
        link=Doc.PYTHON_BACKEND,
    ),
    _warning(
        "T305",
        "an ensemble that batches over a step that does not",
        message="in ensemble '{model}', unexpected shape for input '{input}' for model '{step}'",
        pattern=r"in ensemble '(?P<model>[^']*)', .*unexpected shape for input '(?P<input>[^']*)' for model"
        r" '(?P<step>[^']*)'(?:\. Expected (?P<expected>\[[^\]]*\]), got (?P<got>\[[^\]]*\]))?",
        same_words=("S461",),
        holds=lambda values, _: is_of_another_batch(values) if "got" in values else None,
        status=400,
        cause="The ensemble has max_batch_size above 0, a step has 0, and their dims agree, so that it loads without a "
        "word. Requests of batch 1 work; every larger batch is refused by the step.",
        fix="Give both the same max_batch_size; with a vLLM step that is 0, since vLLM forms its own batches.",
        link=Doc.BATCHING,
    ),
    _note(
        "T306",
        "with --exit-on-error=false this server would be ready without the model",
        message="Request for unknown model: '{model}' is not found",
        pattern=r"Request for unknown model: '(?P<model>[^']*)'",
        status=404,
        cause="With that option Triton starts although a model failed: /v2/health/ready is 200, the model has no "
        'state in the index, and its requests are answered with "unknown model".',
        fix="Ask /v2/models/<model>/ready for each model, not the server as a whole.",
        link=Doc.SERVER_OPTIONS,
    ),
    _note(
        "T307",
        "a client that hangs up is not noticed",
        cause="Without streaming, Triton's HTTP endpoint does not see that a client is gone: vLLM generates to the "
        "end.",
        fix="Stream (gRPC, or /generate_stream), or keep max_tokens small.",
        link=Doc.GENERATE,
    ),
    _warning(
        "T308",
        "several vLLM engines want more than the GPU has",
        message="No available memory for the cache blocks",
        pattern=r"No available memory for the cache blocks"
        r"|Free memory on device .* is less than desired GPU memory utilization",
        cause="Each engine takes the share gpu_memory_utilization of the whole GPU, 0.9 unless model.json says "
        "otherwise; together they ask for more than 1.",
        fix="Let the shares add up to less than 1, and load one after the other: --model-load-thread-count=1.",
        link=Doc.VLLM_BACKEND,
        same_words=("S420", "S421"),
        holds=lambda _, context: None if context.engines is None else context.engines > 1,
        general=True,
    ),
    _note(
        "T309",
        "several vLLM engines measure the GPU at once",
        message="No available memory for the cache blocks",
        pattern=r"(?:Error in memory profiling\. )?Initial free memory (?P<before>[\d.]+) GiB, current free memory "
        r"(?P<now>[\d.]+) GiB|Error in memory profiling|Initial free memory .* current free memory",
        found=("another process gave GPU memory back while vLLM measured it: {before} GiB were free, then {now}",),
        hint="start again; load engines of one GPU one after the other (--model-load-thread-count=1)",
        cause="While an engine starts it measures free memory, and takes another engine's for its own.",
        fix="Start Triton with --model-load-thread-count=1.",
        link=Doc.VLLM_BACKEND,
    ),
    _warning(
        "T310",
        "vLLM's metrics are switched half on",
        cause="The metrics need both: the parameter REPORT_CUSTOM_METRICS in config.pbtxt, and statistics in the "
        "engine (disable_log_stats not true in model.json). With one of them nothing is reported, and nothing said.",
        fix='Set REPORT_CUSTOM_METRICS to "yes" and remove disable_log_stats, or remove the parameter.',
        link=Doc.VLLM_BACKEND,
    ),
    _warning(
        "T311",
        "a template that was not filled in, in a string",
        cause="`${...}` is a placeholder; Triton passes it on as it stands, and the backend takes it for the value.",
        fix="Fill it in, or remove the parameter.",
        link=Doc.CONFIGURATION,
    ),
    _warning(
        "T312",
        "a version folder that is not loaded",
        message="ignore version directory '{version_folder}' which {reason}",
        pattern=r"ignore version directory '(?P<version_folder>[^']*)' which (?P<reason>[^\"]*)",
        cause="Triton reads only folders whose name is a number without a leading zero, and by default only the "
        "highest.",
        fix="Rename the folder to its plain number, for example `1`.",
        link=Doc.VERSION_POLICY,
    ),
    _warning(
        "T313",
        "a model that this image has no backend for",
        message="unable to find backend library for backend '{backend}'",
        cause="Each of NVIDIA's images carries some backends only, the vLLM image python and vllm.",
        fix="Use an image that has this backend, or keep this model in another repository.",
        link=Doc.VLLM_BACKEND,
        silent=True,
    ),
    _warning(
        "T314",
        "a config.pbtxt that is not read",
        cause="Triton reads the config.pbtxt of each folder below the repository. This one stands in the repository "
        "itself, and nothing is said about it.",
        fix="Move it into the folder of its model, beside the version folders, or remove it.",
        link=Doc.REPOSITORY,
    ),
    _warning(
        "T315",
        "a file outside the model's folder",
        cause="The server follows the path and runs or reads what is there. lint does not open it: a repository from "
        "elsewhere could name any file of this machine.",
        fix="Put the file into the model's folder and name it there.",
        link=Doc.REPOSITORY,
    ),
    _warning(
        "T316",
        "a map key that stands twice",
        cause="Of two entries with one key in a map only the last counts, and Triton says nothing.",
        fix="Remove one of them, or give it the key that was meant.",
        link=Doc.CONFIGURATION,
    ),
    _warning(
        "T317",
        "an ensemble that does not batch over a step that does",
        status=400,
        cause="The ensemble has max_batch_size 0: each of its requests reaches the step as a batch of one, and the "
        "size that varies in the ensemble is not that batch. It loads without a word, and larger requests are refused.",
        fix="Give the ensemble the step's max_batch_size and the step's dims.",
        link=Doc.BATCHING,
        silent=True,
    ),
)
