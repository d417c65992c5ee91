# SPDX-License-Identifier: Apache-2.0
"""S4xx of engines: what vLLM, TensorRT-LLM, torch and the GPU say when a model's engine does not start, or dies.

vLLM's words are those of 0.3 to 0.32, torch's those of 2.x. Each alternative of a pattern has a line that a source
quotes, and tests/data/fault_lines.tsv names that source.
"""

import re
from functools import partial

from ensemblekit.faults.fault import Also, Context, Detail, Doc, Fault, Values
from ensemblekit.gpu import MIN_DRIVER, visible_gpus

__all__ = ["ENGINE_FAULTS", "GPU_FAULTS", "POINTS_BACK"]

# words of a failure whose reason an earlier line says
POINTS_BACK = re.compile(
    r"[Ss]ee (?:the )?(?:root cause|stack trace|error).{0,10} above|Engine core initialization failed"
    r"|unable to create TensorRT engine:? *$"
    r"|(?:vLLM did not start:? ?|Internal: )(?:\w+:? ?(?:E[\w ]*)?)?$"  # the same, cut
)

FREE_SOME = "stop what holds the memory, or choose another GPU with CUDA_VISIBLE_DEVICES"
ONE_AT_A_TIME = "load engines of one GPU one after the other (--model-load-thread-count=1)"
SIZE = r"[\d.]+ [KMG]?i?[Bb](?:ytes)?"
GPU_VISIBLE = "make a GPU visible: `nvidia-smi` must list it, CUDA_VISIBLE_DEVICES not hide it"
# the same message goes on until a path of a backend; a new entry or a table ends it
IN_BACKEND = r"(?:.|\n(?![IWEF]\d{4} |\|)){0,3000}?/backends/(?P<backend>\w+)/"


def _holders(context: Context) -> str:
    """Return who holds memory of the GPUs now, if they are those of this machine."""
    held = [f"{gpu.holders} on {gpu}" for gpu in visible_gpus() if gpu.processes] if context.here else []
    return f"; held now by {'; '.join(held)}" if held else ""


def _alone(_values: Values, context: Context) -> bool | None:
    return None if context.engines is None else context.engines <= 1


def _memory(values: Values, text: str, context: Context) -> Detail | None:
    if "asked" not in values:
        if "context" not in values:
            return None
        found = f"out of GPU memory before vLLM could measure what is free ({values['context']!r}){_holders(context)}"
        return Detail(found, FREE_SOME)
    processes = re.findall(rf"Process (\d+) has ({SIZE})", text)
    held = "".join(f"; process {pid} held {size}" for pid, size in processes)
    found = f"out of GPU memory: {values['free']} of {values['total']} were free on GPU {values['gpu']}, "
    hint = f"{FREE_SOME}, or lower max_model_len, max_num_seqs or the model's size"
    return Detail(f"{found}{values['asked']} more were asked for{held or _holders(context)}", hint)


def _less_free(values: Values, _text: str, context: Context) -> Detail | None:
    if "share" not in values:
        return None
    free, total, asked = values["free"], values["total"], values["asked"]
    most = int(100 * float(free) / float(total)) / 100
    found = f"out of GPU memory: {free} of {total} GiB were free on {values['device'] or 'the GPU'}, {asked} GiB were "
    found += f"asked for (gpu_memory_utilization {values['share']}){_holders(context)}"
    return Detail(found, f"{FREE_SOME}, or set the engine argument gpu_memory_utilization to at most {most:g}")


def _no_room(_values: Values, text: str, context: Context) -> Detail:
    left = re.findall(r"Available KV cache memory: (-?[\d.]+) GiB", text)
    room = f"{left[-1]} GiB" if left else "nothing"
    found = f"out of GPU memory: gpu_memory_utilization leaves {room} for the cache of keys and values"
    # vLLM's own advice; shares that add up to more than 1 are another cause, of several engines
    hint = "raise gpu_memory_utilization in model.json, lower max_model_len, or take a smaller or quantised model"
    return Detail(found + _holders(context), f"{hint}; {ONE_AT_A_TIME}" if context.here else hint)


def _old_driver(values: Values, _text: str, context: Context) -> Detail | None:
    if "cuda" not in values:
        return None
    cuda = int(values["cuda"])  # 12020 is CUDA 12.2
    known = f"NVIDIA's driver is too old: it knows CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    if context.here:
        hint = f"update the driver to {MIN_DRIVER} or newer, or use DEVICE 'cpu'"
        return Detail(f"{known}, the locked torch has CUDA 13", hint)
    return Detail(f"{known}, the installed torch needs a newer one")


def _no_gpu(values: Values, _text: str, context: Context) -> Detail:
    hint = f"use DEVICE 'cpu', or {GPU_VISIBLE}" if context.here else f"{GPU_VISIBLE} (`docker run --gpus all`)"
    if "number" in values:
        usable = values.get("usable", "").strip() or "none"
        return Detail(f"the config asks for GPU {values['number']}, Triton can use: {usable}", hint)
    return Detail(f"no GPU that vLLM can use ({values.get('none', '')!r})", hint)


def _busy(values: Values, _text: str, context: Context) -> Detail:
    hint = "stop that process (`nvidia-smi` names it), or let the GPU be shared: `nvidia-smi --compute-mode=DEFAULT`"
    return Detail(f"the GPU is held by another process alone ({values['busy']!r}){_holders(context)}", hint)


# faults, by the page that documents them
_vllm = partial(Fault, link=Doc.VLLM_BACKEND)
_tensorrt_llm = partial(Fault, link=Doc.TRTLLM_BACKEND)
ENGINE_FAULTS = (
    _vllm(
        "S401",
        "the GPU's memory is used up",
        pattern=rf"(?:[\w.]*OutOfMemoryError: )?CUDA out of memory\. Tried to allocate (?P<asked>{SIZE})\. GPU "
        rf"(?P<gpu>\d+) has a total capacity of (?P<total>{SIZE}) of which (?P<free>{SIZE}) is free"
        r"|CUDA out of memory|(?P<context>CUDA (?:driver )?error: out of memory)|Cuda Runtime \(out of memory\)"
        r"|CUDA failure 2: out of memory|CUDA runtime error(?: in .*)?: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        cause="The model asked for more memory than the GPU has free; other models and other processes count too.",
        fix="Look at `nvidia-smi`. For vLLM lower gpu_memory_utilization or max_model_len in model.json; for several "
        "engines let the shares add up to less than 1.",
        detail=_memory,
    ),
    _vllm(
        "S417",
        "vLLM has too little memory for one request of full length",
        pattern=r"max seq len \((?P<length>\d+)\), \(?(?P<needed>[\d.]+) GiB KV cache is needed, which is larger than "
        r"the available KV cache memory \((?P<left>[\d.]+) GiB\)",
        also=(
            Also(
                r"max seq len \((?P<length>\d+)\) is larger than the maximum number of tokens that can be stored in KV "
                r"cache \((?P<tokens>\d+)\)",
                "vLLM to 0.9",
            ),
        ),
        cause="What is left for the cache of keys and values does not hold max_model_len tokens.",
        fix="In model.json lower max_model_len, or raise gpu_memory_utilization (CPU: VLLM_CPU_KVCACHE_SPACE).",
        found=(
            "out of memory: {left} GiB are left for the cache of keys and values, one request of max_model_len "
            "{length} asks for {needed} GiB",
            "the cache of keys and values holds {tokens} tokens, max_model_len is {length}",
        ),
        hint="lower max_model_len, or raise gpu_memory_utilization (on the CPU: VLLM_CPU_KVCACHE_SPACE, in GiB)",
    ),
    _vllm(
        "S420",
        "an engine's share of the GPU leaves no room for its KV cache",
        message="No available memory for the cache blocks",
        cause="gpu_memory_utilization is the engine's share of the whole GPU; the weights and one step's activations "
        "take all of it.",
        fix="Raise gpu_memory_utilization in model.json, lower max_model_len, take a smaller or quantised model, or a "
        "larger GPU.",
        same_words=("T308",),
        holds=_alone,
        detail=_no_room,
    ),
    _vllm(
        "S421",
        "less of the GPU is free than an engine asks for",
        pattern=r"Free memory on device ?(?P<device>\S*) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is "
        r"less than desired GPU memory utilization \((?P<share>[\d.]+), (?P<asked>[\d.]+) GiB\)"
        r"|Free memory on device .* is less than desired GPU memory utilization",
        cause="The share gpu_memory_utilization is of the whole GPU, and other processes hold part of it.",
        fix="Stop what holds the memory (`nvidia-smi`), choose another GPU, or lower gpu_memory_utilization.",
        same_words=("T308",),
        holds=_alone,
        detail=_less_free,
    ),
    Fault(
        "S418",
        "a GPU that is not there",
        pattern=r"invalid or unsupported gpu id (?P<number>\d+)(?:\. GPUs with at least [^\n]*? are: (?P<usable>[\d, "
        r"]*))?|(?P<none>No CUDA GPUs are available|Found no NVIDIA driver on your system|Failed to infer device type"
        r"|no CUDA-capable device is detected)",
        cause="The config or the engine asks for a GPU, and this server sees none, or not that one.",
        fix="`nvidia-smi` must list it where the server runs (`docker run --gpus all`); CUDA_VISIBLE_DEVICES must not "
        "hide it.",
        link=Doc.SERVER_OPTIONS,
        detail=_no_gpu,
    ),
    Fault(
        "S419",
        "the GPU is held by another process alone",
        pattern=r"(?P<busy>CUDA-capable device\(s\) is/are busy or unavailable)",
        cause="The GPU is in exclusive mode and somebody uses it.",
        fix="Stop that process (`nvidia-smi` names it), or `nvidia-smi --compute-mode=DEFAULT`.",
        link=Doc.SERVER_OPTIONS,
        detail=_busy,
    ),
    Fault(
        "S416",
        "the driver is too old for this image",
        pattern=r"The NVIDIA driver on your system is too old(?: \(found version (?P<cuda>\d+)\))?"
        r"|forward compatibility was attempted|system has unsupported display driver|compatibility mode is UNAVAILABLE"
        r"|(?:failed to load|Internal: ).*CUDA driver version is insufficient for CUDA runtime version",
        cause="The CUDA of the image needs a newer driver than the host has.",
        fix="Update the driver, or take an older image; NVIDIA's support matrix names the pairs.",
        link=Doc.ISSUES,
        detail=_old_driver,
    ),
    Fault(
        "S427",
        "no code for this GPU's architecture",
        pattern=r"no kernel image is available for execution on the device|(?P<gpu>[^\n]*) with CUDA capability "
        r"sm_\d+ is not compatible with the current PyTorch installation|Target GPU SM \d+ is not supported by this "
        r"TensorRT|Detected [^\n]*GPU, which is not supported by this container|provided PTX was compiled with an "
        r"unsupported toolchain",
        cause="The installed PyTorch, or the library it calls, was compiled without code for the compute capability of "
        "this GPU: the GPU is newer or older than that release.",
        fix="Install a PyTorch (and vLLM) that was built for the GPU's compute capability, take the image of another "
        "release, or another GPU.",
        link=Doc.SUPPORT,
    ),
    _vllm(
        "S447",
        "a data type that this GPU cannot compute",
        pattern=r"[Bb]float16 is only supported on GPUs with compute capability of at least (?P<capability>[\d.]+)",
        cause="The model's weights are of a type that GPUs of this generation do not have.",
        fix='Write `"dtype": "half"` in model.json, or take a newer GPU.',
    ),
    _vllm(
        "S444",
        "an engine argument that this vLLM does not know",
        pattern=r"EngineArgs(?:\.__init__\(\))? got an unexpected keyword argument '(?P<argument>[^']*)'",
        cause="model.json holds the arguments of vLLM's engine, and they change from release to release: this one was "
        "removed or renamed, or is misspelt.",
        fix="Remove it from model.json, or write it as the installed vLLM calls it.",
        found=("this vLLM does not know the engine argument '{argument}'",),
        hint="remove it from model.json, or write it as the installed vLLM calls it",
    ),
    _vllm(
        "S446",
        "max_model_len is larger than the model allows",
        pattern=r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len",
        cause="The model's own config.json gives the longest sequence it was trained for.",
        fix="Lower max_model_len in model.json, or remove it.",
    ),
    _vllm(
        "S448",
        "a model with code of its own that is not trusted",
        pattern=r"(?:pass|set|setting|option|argument)\b.{0,30}trust[-_]remote[-_]code",
        cause="The model's folder holds Python code that has to be run to load it, and nobody allowed that.",
        fix='Read that code; then write `"trust_remote_code": true` in model.json.',
    ),
    _vllm(
        "S449",
        "tensor parallelism that does not fit",
        pattern=r"must be divisible by (?:the )?tensor parallel size|number of required GPUs exceeds the total number "
        r"of available GPUs|World size \(\d+\) is larger than the number of available GPUs|Assertion failed: mpiSize "
        r"== tp",
        cause="tensor_parallel_size (TensorRT-LLM: the ranks that the engine was built for) does not divide the "
        "model's heads, or asks for more GPUs, or more processes, than there are.",
        fix="Choose a size that divides the heads and is at most the number of GPUs; for TensorRT-LLM start one "
        "process a rank (launch_triton_server.py --world_size).",
    ),
    _vllm(
        "S450",
        "a model that this engine does not know",
        pattern=r"Model architectures \[(?P<architecture>[^\]]*)\] (?:are not supported|failed to be inspected)"
        r"|does not recognize this architecture|Tokenizer class (?P<tokenizer>\S+) does not exist",
        cause="The model's architecture is newer than the installed vLLM or transformers, or needs another engine.",
        fix="Take a release whose vLLM and transformers know the model, or another model.",
    ),
    _vllm(
        "S445",
        "a backend and a package that do not belong together",
        pattern=rf"(?P<what>got an unexpected keyword argument '[^']*'|has no attribute '[^']*'|cannot import name "
        rf"'[^']*'|missing \d+ required \S+ arguments?|No module named 'vllm\.[\w.]+'){IN_BACKEND}",
        cause="The traceback ends in the backend's own model.py, not in a model of yours: the backend was written for "
        "another version of the package that it calls.",
        fix="Install the pair of versions that one image or one branch has (`pip show vllm` beside the backend's "
        "branch).",
        found=("the code of the backend {backend} and the installed package are of different releases: {what}",),
        hint="take the backend of the branch that fits the installed package, or the image's own",
    ),
    _vllm(
        "S443",
        "the engine died",
        pattern=r"Engine background task failed|(?:Async)?Engine ?DeadError|Background loop (?:has errored|is not "
        r"running)|EngineCore encountered (?:a fatal error|an issue)|(?:Engine core|Worker) proc(?:ess)? \S+ "
        r"died|Engine loop is not running|Engine iteration timed out",
        cause="vLLM's engine ended at a request; every later request fails while ready stays 200. Why stands in the "
        "exception above: often packages that do not belong together, or the GPU's memory.",
        fix="Mend what the first exception says, then start the server again.",
        general=True,
    ),
    _vllm(
        "S464",
        "the engine's process was killed while it loaded",
        pattern=r"Failed core proc\(s\): \{[^}]*'(?P<process>[^']+)': -(?P<signal>4|7|9|11)\b",
        cause="vLLM's engine is a process of its own, and a signal ended it before it could serve: 9 is mostly the "
        "kernel's, for want of memory; 4 is an instruction that this CPU does not have, 7 too little shared memory, "
        "11 a crash in compiled code.",
        fix="After signal 9, look at `dmesg | tail` and at the container's memory limit, and give it more or take a "
        "smaller model. After 4, 7 or 11, take packages for this CPU, or a larger /dev/shm.",
        found=("signal {signal} ended vLLM's process {process} while it loaded",),
    ),
    _vllm(
        "S452",
        "the GPUs cannot talk to each other",
        pattern=r"NCCL error|ncclSystemError|ncclUnhandledCudaError",
        cause="NCCL, which connects the GPUs of one engine, failed: too little shared memory, or GPUs that are not "
        "visible to every process.",
        fix="Start the container with `--shm-size=1g --ulimit memlock=-1`; NCCL_DEBUG=INFO prints the reason.",
    ),
    _tensorrt_llm(
        "S430",
        "the engine's folder holds no readable engine",
        pattern=r"modelInstanceState: \[json\.exception\.parse_error\.101\]|Error opening engine file: (?P<path>\S+)",
        cause="TensorRT-LLM reads config.json and the engines from the folder that gpt_model_path (engine_dir) names; "
        "config.json is not there or is empty: the wrong path, or a folder that is not mounted.",
        fix="Let gpt_model_path (engine_dir) in tensorrt_llm/config.pbtxt name the folder that holds config.json and "
        "rank0.engine, as the server sees it.",
    ),
    _tensorrt_llm(
        "S431",
        "an engine built by another version of TensorRT-LLM",
        # the same words without "modelInstanceState" are warnings of every good start
        pattern=r"modelInstanceState: \[json\.exception\.(?:out_of_range\.403|type_error\.\d+)\](?: key "
        r"'(?P<key>[^']*)')?",
        cause="The engine's config.json lacks what this backend reads: engines are made for one version of "
        "TensorRT-LLM.",
        fix="Build the engine again (trtllm-build) with the version that the image has, or take the image of the "
        "version that built it.",
    ),
    _tensorrt_llm(
        "S432",
        "the KV cache of TensorRT-LLM is too small for one sequence",
        pattern=r"maxTokensInPagedKvCache (?:\(\d+\) )?must be large enough to process at least 1 sequence",
        cause="What kv_cache_free_gpu_mem_fraction or max_tokens_in_paged_kv_cache allow does not hold one sequence of "
        "full length for every beam.",
        fix="Raise kv_cache_free_gpu_mem_fraction or max_tokens_in_paged_kv_cache, or build the engine for shorter "
        "sequences or fewer beams.",
    ),
    Fault(
        "S428",
        "an engine built for another TensorRT or another GPU",
        pattern=r"engine plan file is not compatible with this version of TensorRT|engine plan file is generated on an "
        r"incompatible device|Version tag does not match|Magic tag does not match|Deserialize the cuda engine failed"
        r"|Engine deserialization failed|unable to load plan file to auto complete config|unable to create TensorRT "
        r"engine",
        cause="A TensorRT engine works with the version and on the kind of GPU it was built with, and with no other.",
        fix="Build the engine again in the image that serves it (trtexec), on the same kind of GPU.",
        link=Doc.TENSORRT_BACKEND,
    ),
    Fault(
        "S429",
        "a TensorRT plugin that is not loaded",
        pattern=r"(?:getPluginCreator could not find plugin:? |IPluginRegistry::getCreator: Cannot find plugin: )"
        r"(?P<plugin>\w+)|corresponding IPluginCreator not found in Plugin Registry",
        cause="The engine uses a layer from a library that the server did not load.",
        fix="Start tritonserver with LD_PRELOAD=<the plugin's library>, or "
        "--backend-config=tensorrt,plugins=<library>.",
        link=Doc.TENSORRT_BACKEND,
    ),
    Fault(
        "S434",
        "an ONNX model that this ONNX Runtime cannot read",
        pattern=r"Unsupported model IR version: (?P<version>\d+)|ONNX Runtime only \*guarantees\* support for models"
        r"|Load model from (?P<path>\S+) failed:(?!.*File doesn't exist)|is not a registered function/op",
        cause="The file was exported for a newer ONNX than the image's ONNX Runtime knows, uses operators it lacks, "
        "or is damaged (a Git LFS pointer, half a download).",
        fix="Export with a lower opset and IR version, or take a newer image; look whether the file has its full size.",
        link=Doc.ONNX_BACKEND,
    ),
    Fault(
        "S435",
        "a model file that is no TorchScript of this PyTorch",
        pattern=r"PytorchStreamReader failed|inline_container\.cc:\d+\] \. file not found|Unknown builtin op"
        r"|Unknown type name '__torch__|version_ <= kMaxSupportedFileFormatVersion",
        cause="The PyTorch backend serves TorchScript: what torch.save wrote is none, and newer files are not read by "
        "an older PyTorch.",
        fix="Write it with torch.jit.save (torch.jit.script or trace) in a PyTorch that is no newer than the image's.",
        link=Doc.PYTORCH_BACKEND,
    ),
    Fault(
        "S437",
        "the config and the model's file name different tensors",
        pattern=r"unexpected inference (?:input|output) '(?P<tensor>[^']*)', allowed|(?:input|output) "
        r"'(?P<named>[^']*)' does not follow <name>__<index> naming convention|configuration expects \d+ inputs, "
        r"model provides (?:at most )?\d+",
        cause="config.pbtxt declares an input or output that the model's file does not have under this name.",
        fix="Use the names that the message allows (PyTorch: NAME__0), or leave input and output out so that Triton "
        "fills them in.",
        link=Doc.CONFIGURATION,
    ),
    Fault(
        "S438",
        "the config and the model's file disagree on a shape or a type",
        pattern=r"tensor '(?P<tensor>[^']*)': the model expects (?:\d+ dimensions|TYPE_\w+)"
        r"|configuration expects datatype TYPE_\w+ for input|unexpected datatype TYPE_\w+ for inference "
        r"(?:input|output)",
        cause="config.pbtxt declares other dims or another data_type than the model's file has; with max_batch_size "
        "above 0 the batch dimension is not part of dims.",
        fix="Write the dims and the data_type that the message names; set max_batch_size 0 if the file has no batch "
        "dimension.",
        link=Doc.CONFIGURATION,
    ),
    Fault(
        "S439",
        "a DALI pipeline that this DALI cannot read",
        pattern=r"Failed to load model file\. The program looked in the following locations: (?P<path>[^\s,]+)"
        r"|Failed to open serialized model file: (?P<file>\S+)|Error while instantiating DALI pipeline"
        r"|DALI Backend error: Critical error when building pipeline|Schema for operator '(?P<operator>[^']*)' not "
        r"registered",
        cause="The version folder has no model.dali or dali.py, or another DALI than the image's made it, or it uses "
        "operators that are not loaded.",
        fix="Serialize the pipeline in the image that serves it, or keep it as dali.py; the words after the message "
        "say what was missed.",
        link=Doc.DALI_BACKEND,
    ),
)
# what a GPU, its driver and its memory say; a cause before what follows from it
GPU_FAULTS = tuple(
    entry
    for code in ("S416", "S419", "S418", "S421", "S401", "S420", "S417")
    for entry in ENGINE_FAULTS
    if entry.code == code
)
