# SPDX-License-Identifier: Apache-2.0
"""S4xx of the server: its options, repository, stores, ports, processes, libraries and backends.

Words were measured on 24.08 where a machine without a GPU can show them. Each alternative of a pattern has a line that
was measured or that a source quotes: tests/data/fault_lines.tsv names which.
"""

import re
from functools import partial

from ensemblekit.faults.fault import Also, Context, Detail, Doc, Fault, Values
from ensemblekit.faults.serve import is_of_another_batch

__all__ = ["SERVER_FAULTS"]

REQUEST_FAILED = "Failed to process the request"
UNKNOWN_OPTION = re.compile(r"unrecognized option '([^']+)'")
PORT_TAKEN = "already in use"  # of an endpoint that cannot be opened
NO_TEXT_FILE = "failed to open text file for read {file}: No such file or directory"
NO_CANONICAL_PATH = "Failed to get the canonical path for {path}."

STORES = ("s3://", "gs://", "as://")


def _path(values: Values, _text: str, _context: Context) -> Detail | None:
    path = values.get("path", "")
    if path.startswith(STORES):
        found = f"the object store behind {path} does not have this folder, or does not show it to this server"
        return Detail(found, "check the address, the bucket, the region and the store's credentials in the environment")
    return None


def _slash(_values: Values, context: Context) -> bool | None:
    """Whether the backend table shows a backend directory with a slash at its end."""
    rows = context.backends.values()
    return True if any('/"' in row.partition('"backend-directory":')[2].partition(",")[0] for row in rows) else None


# faults, by the page that documents them
_python = partial(Fault, link=Doc.PYTHON_BACKEND)
_server = partial(Fault, link=Doc.SERVER_OPTIONS)
_repository = partial(Fault, link=Doc.REPOSITORY)
_store = partial(Fault, link=Doc.STORES)
SERVER_FAULTS = (
    _python(
        "S402",
        "a shared library is missing",
        pattern=r"(?P<program>\S+): error while loading shared libraries: (?P<library>[^:\s]+)"
        r"|(?P<needed>lib[\w.+-]+\.so[\w.]*): cannot open shared object file",
        cause="The dynamic linker could not start the program. If it is a Python model's stub, Triton waits for it "
        "without limit.",
        fix="Install the package that holds the library, or name its folder in LD_LIBRARY_PATH.",
    ),
    _server(
        "S403",
        "a port is in use",
        pattern=r"failed to start (?P<service>\w+) service: .*?Socket '(?P<address>[^']*)' already in use"
        r"|Socket '(?P<socket>[^']*)' already in use",
        cause="Another process listens there, often an older tritonserver. A line `Started ... at` may stand before "
        "it: Triton prints that before it knows.",
        fix="Find it (`ss -ltnp`), stop it, or start with other --http-port, --grpc-port and --metrics-port.",
    ),
    _python(
        "S404",
        "shared memory is too small",
        pattern=r"boost::interprocess.*No space left on device|[Uu]nable to initialize shared memory key"
        r"|Failed to increase the shared memory pool size|\bBus error\b",
        cause="Python models and their tensors live in /dev/shm; a container has 64 MB of it unless told otherwise.",
        fix="Start the container with `--shm-size=1g` (Kubernetes: an emptyDir with medium Memory on /dev/shm).",
    ),
    _repository(
        "S405",
        "the model repository is not there",
        pattern=r"creating server: Internal - failed to stat file (?P<path>\S+)|repository path is not a valid "
        r"directory|failed to open directory (?P<folder>\S+)",
        cause="The path does not exist where the server runs; in a container that is the path inside.",
        fix="Check --model-repository, and that the folder is mounted: `--volume /your/models:/models`.",
        detail=_path,
    ),
    _python(
        "S406",
        "a backend of another Triton version",
        pattern=r"TRITONBACKEND API version: [\d.]+ does not support|[Tt]riton backend API version does not support "
        r"this backend",
        cause="A backend or a compiled engine was made for another release than this server.",
        fix="Use the backend's branch of the server's release (for example r24.08), or compile the engine anew.",
    ),
    _python(
        "S407",
        "a Python package is missing",
        pattern=r"(?:ModuleNotFoundError|ImportError): No module named "
        r"'?(?!(?:model|encodings)\b)(?P<module>[^'\s]+)'?",
        cause="The model imports a package that the Python of the server's stub does not have; that is the first "
        "python3 on the server's PATH, not the one of your shell.",
        fix="Install it in that Python, or give the model an environment of its own (EXECUTION_ENV_PATH).",
    ),
    Fault(
        "S408",
        "a package has another version than the code expects",
        pattern=r"ImportError: cannot import name '(?P<name>[^']+)' from '(?P<module>[^']+)'"
        r"|AttributeError: module '(?P<other>[^']+)' has no attribute|undefined symbol: (?P<symbol>\S+)"
        r"|was removed in the NumPy 2\.0 release",
        cause="The code was written, or compiled, for another version of that package.",
        fix="Install the versions that belong together; for the vLLM backend its release's vLLM.",
        link=Doc.VLLM_BACKEND,
    ),
    _python(
        "S409",
        "a Python model's process died",
        pattern=r"Stub process '(?P<instance>[^']*)' is not healthy"
        r"|the process of (?:a )?model (?P<dead>\S*) ?ended \((?P<manner>[^)]+)\)",
        also=(
            Also(r"Stub process is unhealthy and it will be restarted", "to 24.05"),
            Also(r"stub process (?:has )?exited unexpectedly(?:: (?P<instance>\S+))?", "from 21.06"),
        ),
        found=(
            "the process (stub) of {dead} died: {manner}",
            "the process (stub) of {instance} died",
            "the process (stub) of a Python model died",
        ),
        cause="It ended without a Python exception: os._exit, a crash in native code, or the kernel's out-of-memory "
        "killer. Or it did not answer for a second on a machine that stood still: while it loads, and from 24.10 on "
        "while it answers a request, too (python_be.cc of r24.10).",
        fix="Look at what it printed before, at `dmesg | tail`, and at the memory limit of the container.",
    ),
    _python(
        "S410",
        "a Python model took too long to start",
        pattern=r"[Tt]imed out occurred while waiting for the stub process",
        cause="The stub did not report within stub-timeout-seconds, 30 by default: slow imports, a slow disk. Only "
        "21.06 to 21.08 say so.",
        fix="Start with `--backend-config=python,stub-timeout-seconds=120`.",
    ),
    Fault(
        "S411",
        "the server crashed",
        pattern=r"^Signal \((?P<signal>4|6|7|8|11)\) received|Segmentation fault|Caught signal (?P<caught>\d+)"
        r"|terminate called (?!.*(?:std::invalid_argument|lock_exception))|\(core dumped\)|Process received signal"
        r"|^Aborted\b",
        cause="The server's process was ended by a fault in native code, its own or a backend's.",
        fix="The stack below it names the library; the newest release may have the repair.",
        link=Doc.ISSUES,
    ),
    Fault(
        "S412",
        "the weights cannot be fetched",
        pattern=r"LocalEntryNotFoundError|couldn't connect to 'https://huggingface\.co'|Max retries exceeded with "
        r"url: /|is not a local folder and is not a valid model identifier|GatedRepoError|401 Client Error",
        cause="model.json names a model of a hub, and the server cannot reach it, or may not.",
        fix="Name a local folder that is mounted into the container, or give it the network and HF_TOKEN.",
        link=Doc.VLLM_BACKEND,
    ),
    _server(
        "S413",
        "an option that this server does not know",
        pattern=r"unrecognized option '(?P<option>[^']*)'",
        cause="The option belongs to another release, or to a part that this build was made without.",
        fix="`tritonserver --help` lists the options of this build.",
    ),
    Fault(
        "S414",
        "the server was killed",
        pattern=r"^Killed$|OOMKilled|exit(?:ed with)? code:? 137\b|Out of memory: Killed process",
        cause="The kernel or the container engine ended it, most often for want of memory.",
        fix="Raise the memory limit, or load fewer models; `dmesg | tail` says what was killed.",
        link=Doc.ISSUES,
    ),
    _python(
        "S415",
        "a compiled package wants another numpy",
        pattern=r"A module that was compiled using NumPy 1\.x cannot be run in NumPy 2",
        cause="numpy 2 is installed beside packages that were compiled for numpy 1.",
        fix="Install `numpy<2` (1.26.4) in the Python that the models run in.",
    ),
    _repository(
        "S422",
        "the model's file is not there",
        pattern=r"unable to find '(?!libtriton_)(?P<path>[^']+)' for model instance '(?P<instance>[^']*)'"
        r"|Load model from (?P<onnx>\S+) failed:.*File doesn't exist",
        cause="The version folder has no file of the name that the backend looks for: model.onnx, model.plan, "
        "model.pt, model.savedmodel, model.dali. Git LFS and clones without large files leave it out.",
        fix="Put the file there, or name the one that is there in `default_model_filename`.",
    ),
    Fault(
        "S423",
        "a label file that is not there",
        pattern=r"failed to open text file for read (?P<path>(?!\S*config\.pbtxt)\S+): No such file or directory",
        cause="`label_filename` of an output names a file in the model's folder, and there is none.",
        fix="Put the file beside config.pbtxt, or remove label_filename.",
        link=Doc.CONFIGURATION,
    ),
    _python(
        "S424",
        "the archive of EXECUTION_ENV_PATH is not there",
        pattern=r"Failed to get the canonical path for (?P<path>[^\s\"]+?)\.?(?=[\s\"]|$)",
        cause="EXECUTION_ENV_PATH is looked up from the folder in which the server was started, not from the model's.",
        fix="Write the whole path, or `$$TRITON_MODEL_DIRECTORY/env.tar.gz` for an archive beside config.pbtxt.",
    ),
    _python(
        "S425",
        "the archive of EXECUTION_ENV_PATH is no environment",
        pattern=r"[Pp]ath (?P<path>\S*/bin/activate) does not exist|should contain an 'activate' script",
        cause="A Python model's environment has to be made by conda-pack, with bin/activate in it.",
        fix="Pack it with conda-pack, with the Python version of the server's stub.",
    ),
    _server(
        "S426",
        "--load-model names a model that is not there",
        message="failed to poll model '{model}': model not found in any model repository",
        cause="With --model-control-mode=explicit the server loads the models that --load-model names, and no folder "
        "of any --model-repository has this name.",
        fix="Correct the name after --load-model, or add the model's folder to the repository.",
    ),
    _repository(
        "S442",
        "a model that stands in two repositories",
        pattern=r"failed to poll model '(?P<model>[^']*)': not unique across all model repositories"
        r"|model appears in two or more repositories",
        cause="Two folders given with --model-repository hold a model of the same name; Triton loads neither.",
        fix="Remove or rename one of them, or leave one repository out.",
    ),
    _store(
        "S440",
        "the object store refuses",
        pattern=r"Unable to create (?:S3 filesystem|GCS|Azure filesystem) client|Could not get MetaData for "
        r"(?:bucket|object)|Failed to get contents of directory as://|Failed to open object read stream for|Unable to "
        r"get blob property for file at as://",
        cause="The server cannot log in to the store, cannot reach it, or there is no such bucket.",
        fix="Give the server the store's credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION; "
        "GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY), and check address and bucket.",
    ),
    _store(
        "S441",
        "a store that this build cannot read",
        pattern=r"(?P<store>s3|gs|as):// file-system not supported\. To enable, build with",
        cause="The server was compiled without this kind of object store.",
        fix="Use NVIDIA's image, a build with --filesystem=s3 (gcs, azure_storage), or a local copy.",
    ),
    _store(
        "S451",
        "a blank before the store's address",
        pattern=r"failed to stat file  +(?P<path>(?:s3|gs|as)://\S*)",
        cause="The value of --model-repository begins with a blank, so that Triton takes the address for a local path.",
        fix="Remove the blank before the address (--model-repository=s3://...).",
    ),
    _repository(
        "S460",
        "--model-repository is one level too deep",
        pattern=r"Could not determine backend for model '(?P<model>\d+)' with no backend in model configuration",
        cause="It names the folder of one model, so that the server takes the model's version folder for a model.",
        fix="Give the folder above it, which holds one folder per model.",
        same_words=("E120",),
        holds=lambda values, _: values.get("model", "").isdigit(),
        general=True,
    ),
    Fault(
        "S461",
        "a step wrote a tensor of another size than the next one takes",
        pattern=r"unexpected shape for input '(?P<input>[^']*)' for model '(?P<step>[^']*)'\. "
        r"Expected (?P<expected>\[[^\]]*\]), got (?P<got>\[[^\]]*\])",
        cause="A model's outputs are checked when the next step takes them: the dims that it declares and the tensor "
        "that the step before it wrote differ. Neither has to do with batches.",
        fix="Let the step that writes the tensor write the declared size, or declare -1 where it varies.",
        link=Doc.ENSEMBLES,
        same_words=("T305",),
        holds=lambda values, _: not is_of_another_batch(values),
        found=("{step} takes {input} as {expected} and got {got} from the step before it",),
        general=True,
    ),
    _python(
        "S463",
        "a Python model failed at a request",
        pattern=r"Failed to process the request\(s\) for model(?: instance)? '(?P<model>[^']*?)(?:_\d+(?:_\d+)?)?'"
        r"(?:, message: (?P<reason>.*))?",
        cause="execute() of its model.py raised; the request was answered with an error, and the server goes on.",
        fix="Read what it raised, after `message:`; catch it in execute() and answer with a TritonError.",
        general=True,
    ),
    _server(
        "S462",
        "the disk is full",
        message="No space left on device",
        cause="A folder that the server writes to (weights, caches, logs, /tmp) has no room.",
        fix="Make room, or name another folder (HF_HOME, VLLM_CACHE_ROOT, TMPDIR).",
        general=True,
    ),
    Fault(
        "S454",
        "a trailing slash in --backend-directory",
        pattern=r"ModuleNotFoundError: No module named 'model'",
        cause="With a slash at the end of --backend-directory the stub looks for the model's code in the wrong place. "
        "`model` is the model's own file, never a package.",
        fix="Remove the slash at the end of --backend-directory.",
        link=f"{Doc.ISSUES}/6730",
        same_words=("S455",),
        holds=_slash,
    ),
    _python(
        "S455",
        "the stub does not find the model's own file",
        pattern=r"ModuleNotFoundError: No module named 'model'",
        cause="The stub looks for model.py where it is not: in another version folder, or under another name. `model` "
        "is the model's own file, never a package.",
        fix="See that the version folder holds model.py, and that its name and the folders above it hold no dot.",
        same_words=("S454",),
        general=True,
    ),
    _python(
        "S456",
        "a blank in a Python model's name",
        pattern=r"what\(\): +stol\b|terminate called .*std::invalid_argument",
        cause="The stub gets its arguments separated by blanks; a name with a blank ends it, and the server waits for "
        "it without limit.",
        fix="Name the model's folder without blanks.",
    ),
    _python(
        "S457",
        "the stub's Python is incomplete",
        pattern=r"Failed to import the site module|No module named 'encodings'|init_fs_encoding: failed to get the "
        r"Python codec",
        cause="The interpreter in the stub does not find its own library: PYTHONHOME of another Python, an environment "
        "for another version, or a .pth file that is not ASCII.",
        fix="Unset PYTHONHOME and PYTHONPATH, and give the model an environment of the stub's Python version.",
    ),
    _server(
        "S458",
        "a library for another system",
        pattern=r"version `(?P<version>GLIBC(?:XX)?_[\d.]+)' not found|wrong ELF class|cannot execute binary file"
        r"|[Ee]xec format error",
        cause="A program or library was built for a newer system, or for another processor, than this one.",
        fix="Use it in the image of the release that it was built for, or build it on this system.",
    ),
    _server(
        "S459",
        "tritonserver is not there",
        pattern=r"tritonserver: (?:command )?not found|exec: \"?tritonserver\"?: executable file not found",
        cause="The image or the PATH has no program of this name; the client's image (-sdk) has none.",
        fix="Use a server's image (-py3, -vllm-python-py3, -trtllm-python-py3), or give the whole path.",
    ),
    _python(
        "S465",
        "a Python model's process was given up",
        pattern=r"Triton waits in vain for the end of the process of model (?P<model>[^:\s]+)",
        found=("the server gave up the process (stub) of {model} while it loaded, and waited for its end",),
        cause="A stub that does not answer for a second while it loads is given up. The server then waits for its end "
        "without limit, and the stub waits for messages. A busy machine does that, and one that slept.",
        fix="Start again, with less beside it; if it comes back, give the server more processors and memory.",
    ),
    _python(
        "S466",
        "a process died while it held the server's lock",
        pattern=r"boost::interprocess::lock_exception",
        cause="The server and the processes (stubs) of its Python models lock the memory that they share. One died "
        "with that lock, and the server ends when it asks for it. A stub dies so when the server gave it up, because "
        "it did not answer for a second while it loaded (from 24.10 on: or answered a request) on a busy machine or "
        "one that slept; or it was killed, or crashed by itself.",
        fix="Start again, with less beside it. If it comes back, look in `dmesg | tail` for what was killed.",
    ),
)
