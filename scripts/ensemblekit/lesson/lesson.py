# SPDX-License-Identifier: Apache-2.0
"""A lesson: the checked parameters of a notebook, its staged repository, and the server its cells talk to."""

import atexit
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from IPython.core.getipython import get_ipython
from IPython.display import Markdown, display

from ensemblekit.assets.weights import PINNED_MODEL, ModelSource, ensure_checkpoint, require_vllm
from ensemblekit.bench.targets import VllmServe, engine_arguments
from ensemblekit.clients.http import load_model
from ensemblekit.diagnose.probe.start import ProbeAnswer
from ensemblekit.diagnose.probe.target import probe_installation
from ensemblekit.errors import ParameterError
from ensemblekit.faults.log import LogLine, parse_log, poll_errors, read_log
from ensemblekit.lesson.show import StatusLine, as_text, quick_banner, show_figures_in_kernel, stop_button
from ensemblekit.paths import BATCH_VARIABLE, PAGE_VARIABLE, current_run_dir, repo_root
from ensemblekit.records import Value, record_values
from ensemblekit.releases import DocumentedRelease, Flavour, get_release, has_ensembles, list_releases
from ensemblekit.repository.stage import ENGINE_ARGUMENTS, StagedRepository, stage_repository
from ensemblekit.servers.attach import URL_VARIABLE, AttachedServer
from ensemblekit.servers.container import ContainerInstallation, install_container
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.emulation import EMULATION_TEXT
from ensemblekit.servers.openai import OpenAIGateway
from ensemblekit.servers.outcome import StartOutcome
from ensemblekit.servers.process import Installation, ServerOptions, TritonServer
from ensemblekit.servers.running import LAB_VARIABLE, mark_idle, stop_idle_servers
from ensemblekit.settings import Provider, Settings, check_settings

__all__ = [
    "GENUINE_LOG",
    "QUESTION",
    "Lesson",
    "Server",
    "emulation_note",
    "last_refusal",
    "log_lines",
    "open_lesson",
    "parameters",
]

Server = TritonServer | AttachedServer
# the log of a genuine r24.08 core that was compiled without ensembles, on the report's own repository
GENUINE_LOG = repo_root() / "tests" / "data" / "logs" / "genuine-24.08-ensemble-off.log"
QUESTION = "What is the capital of France?"
STAND_IN_ANSWER = f"(stand-in) You asked: {QUESTION}"
GREEDY_ANSWER = "The capital of France is Paris."  # of the pinned model, on every device
NEARLY = 0.85  # how alike a name and a parameter must be for one to be taken as a slip of the other


class Lesson:
    """What the cells of one notebook share. Made by `open_lesson`."""

    def __init__(self, name: str, settings: Settings) -> None:
        """Hold the settings; nothing is fetched or started yet."""
        self.name = os.environ.get(PAGE_VARIABLE) or name
        self.settings = settings
        self.run_dir = current_run_dir()
        self._servers: dict[str, TritonServer] = {}
        self._current: Server | None = None
        self._beside: list[OpenAIGateway | VllmServe] = []
        self._images: dict[str, Value] = {}

    @property
    def release(self) -> DocumentedRelease:
        """The release table's row for RELEASE."""
        return self.settings.release_row

    def repository(
        self,
        name: str = "models",
        *,
        replicas: int = 1,
        servers: int = 1,
        openai: bool = False,
        retrieval: bool = False,
        stand_in: bool = False,
        **engine_arguments: Any,
    ) -> StagedRepository:
        """Stage the model repository for this run and return it; fetches the model on first use.

        Args:
            name: The folder's name under this lesson's part of the run folder.
            replicas: How many engines answer, each on a GPU of its own.
            servers: How many servers serve it, each on a GPU of its own.
            openai: Whether the ensemble that OpenAI's API needs is there too.
            retrieval: Whether the retrieval pipeline, in both its forms, takes the place of the plain one.
            stand_in: Whether `llm` is the stand-in whatever ENGINE says.
            **engine_arguments: vLLM engine arguments that win over the kit's.

        Raises:
            FetchError: The pinned model cannot be fetched.
            RepositoryError: The repository cannot be staged.
            UnsupportedMachine: ENGINE is vllm, and vLLM is not installed.
            UnsupportedMachine: More GPUs are asked for than are visible.
            OutOfGpuMemory: Less memory of a GPU is free than the model needs.
        """
        return stage_repository(
            self._folder(name),
            source=None if stand_in else self._source(),
            device=self.settings.resolved_device,
            original=Path(self.settings.repository) if self.settings.repository else None,
            engine_arguments=engine_arguments,
            replicas=replicas,
            servers=servers,
            openai=openai,
            bls=retrieval,
            retrieval=retrieval,
        )

    def _source(self) -> ModelSource | None:
        if self.settings.engine == "stand-in":
            return None
        if self.settings.provider == "embedded":
            require_vllm()
        return ensure_checkpoint(self.settings.model, progress=StatusLine("weights"))

    def server(
        self,
        repository: StagedRepository | Path,
        *,
        name: str = "server",
        release: str | None = None,
        flavour: Flavour | None = None,
        **options: Any,
    ) -> TritonServer:
        """Return a server for a repository, not started.

        Args:
            repository: What it serves.
            name: The folder of its log, under this lesson's part of the run folder.
            release: Another release than RELEASE.
            flavour: Another flavour than FLAVOUR.
            **options: Fields of `ServerOptions`.

        Raises:
            ParameterError: PROVIDER is `attach`: that server is started by somebody else.
            FetchError: The server's wheel cannot be fetched.
            UnsupportedMachine: It cannot run here.
        """
        if self.settings.provider == "attach":
            raise ParameterError(
                "start a server with PROVIDER 'attach'",
                found="this lesson starts servers of its own, to see how they start",
                hint="run it with PROVIDER 'embedded'; `attach` is for lesson 06 and exercises 04 and 05",
            )
        settings = self._other_settings(release, flavour, self.settings.provider)
        folder = self._folder(name)
        staged = repository if isinstance(repository, StagedRepository) else StagedRepository(Path(repository), {})
        return TritonServer(
            installation=self._installation(settings.release_row, settings.flavour, folder),
            repository=staged.path,
            folder=folder,
            options=replace(ServerOptions(), **options),
            environment=staged.environment,
        )

    def _other_settings(self, release: str | None, flavour: Flavour | None, provider: Provider) -> Settings:
        return check_settings(
            RELEASE=release or self.settings.release,
            FLAVOUR=flavour or self.settings.flavour,
            PROVIDER=provider if provider == "container" else "embedded",
        )

    def _installation(
        self, release: DocumentedRelease, flavour: Flavour, folder: Path, provider: Provider | None = None
    ) -> Installation:
        if (provider or self.settings.provider) != "container":
            return install_embedded(get_release(release.name), flavour, folder)
        gpu = self.settings.engine == "vllm" and self.settings.resolved_device == "cuda"
        with StatusLine("image") as line:
            made = install_container(release, flavour, self.run_dir.name, gpu=gpu, progress=line.tick)
        self._images[made.image] = made.digest
        return made

    def probe(
        self, *, release: str | None = None, flavour: Flavour | None = None, provider: Provider | None = None
    ) -> ProbeAnswer:
        """Ask a server whether it knows ensembles, without models of its own; takes about 0.3 s.

        Raises:
            KitError: The server cannot be had, or did not answer.
        """
        settings = self._other_settings(release, flavour, provider or self.settings.provider)
        folder = self._folder(f"probe-{settings.release}-{settings.flavour}")
        installation = self._installation(settings.release_row, settings.flavour, folder, provider)
        return probe_installation(installation, folder, f"{settings.release}/{settings.flavour}")

    def attempt_start(self, server: TritonServer) -> StartOutcome:
        """Start a server and return how that ended, with a progress line while it loads.

        Raises:
            PortBusy: Something else listens on one of its ports.
        """
        self._adopt(server)
        with StatusLine(f"starting Triton {server.installation.release.name}") as line:
            outcome = server.attempt_start(self.settings.ready_timeout_s, lambda _server: line.tick())
        if outcome.note:
            display(Markdown(as_text(outcome.note)))
        return outcome

    def start(self, server: TritonServer | None = None) -> Server:
        """Start a server for the cells below and return it; replaces the one this notebook started before.

        With PROVIDER `attach`, the server at URL is returned, and `server` may be None.

        Raises:
            ServerError: It exited early, was not ready in time, or a port is busy.
        """
        self.stop()
        if server is None:
            self._current = AttachedServer.at(self.settings.url).start()
            return self._current
        self._adopt(server)
        with StatusLine(f"starting Triton {server.installation.release.name}") as line:
            server.start(self.settings.ready_timeout_s, lambda _server: line.tick())
        self._current = server
        return server

    def serve(self, **options: Any) -> Server:
        """Stage the repository and start a server on it, or attach to the one at URL.

        Raises:
            KitError: See `repository`, `server` and `start`.
        """
        if self.settings.provider == "attach":
            return self.start()
        self.stop()  # first: what the server before this one holds of a GPU is free for the new one
        return self.start(self.server(self.repository(), **options))

    def knows(self, text: str) -> bool:
        """Return whether a greedy answer to `QUESTION` is the known one; of another model any text is."""
        if self.settings.model != PINNED_MODEL or self.settings.provider == "attach":
            return text != ""
        return text == (STAND_IN_ANSWER if self.settings.engine == "stand-in" else GREEDY_ANSWER)

    def try_variants(
        self, server: Server, repository: StagedRepository, model: str, variants: Mapping[str, Mapping[str, str]]
    ) -> list[tuple[str, int, str]]:
        """Load changed copies of a model one after the other and return what came of each.

        Returns:
            The variant, the HTTP status of the load API, and the reason in the server's log.

        Raises:
            RequestError: The server does not answer.
            RepositoryError: The model's config cannot be read.
        """
        results = []
        for number, (what, fields) in enumerate(variants.items()):
            name = repository.add_variant(model, f"attempt_{number}", **fields)
            status = load_model(server, name).status
            results.append((what, status, last_refusal(server).split(": ", 1)[1]))
        return results

    def openai_gateway(self, **listening: Any) -> OpenAIGateway:
        """Let clients of OpenAI's API ask the running server, whose repository was staged for it, and return how.

        Args:
            **listening: `host` and `port` of `OpenAIGateway`.

        Raises:
            ParameterError: No server of this lesson runs.
            ServerError: The gateway did not start.
        """
        if not isinstance(self._current, TritonServer):
            raise ParameterError(
                "start the gateway for OpenAI's API", found="no server of this lesson's own", hint="lesson.start first"
            )
        gateway = OpenAIGateway(self._current, **listening)
        self._beside.append(gateway)
        return gateway.start()

    def vllm_serve(self) -> str:
        """Start `vllm serve` on the lesson's model, in place of what runs, and return its `base_url`.

        Without vLLM there is nothing to serve: one line says so, and the address is empty.

        Raises:
            FetchError: The model cannot be fetched.
            ServerError: It ended, or was not ready in time.
        """
        source, device = self._source(), self.settings.resolved_device
        if source is None:
            print("Skipped: `vllm serve` needs vLLM, and here a Python stand-in is in its place.")
            return ""
        self.stop()
        serve = VllmServe(source, ENGINE_ARGUMENTS[device] | engine_arguments(device), device, self._folder("serve"))
        self._beside.append(serve)
        with StatusLine("starting vllm serve") as line:
            serve.start(self.settings.ready_timeout_s, line.tick)
        return serve.url.removesuffix("/chat/completions")

    def start_phases(self) -> dict[str, float]:
        """Return where the seconds of the running server's start went, by phase; empty for one started elsewhere."""
        return self._current.start_phases if isinstance(self._current, TritonServer) else {}

    def stop(self) -> None:
        """Stop every server that this notebook started; an attached one is left alone."""
        while self._beside:
            self._beside.pop().stop()
        for server in self._servers.values():
            server.stop()
        self._servers.clear()
        self._current = None

    def finish(self) -> None:
        """End a page: a batch run stops its servers; in a live kernel they stay for the cells above.

        There they end with the Stop button that is shown, with the kernel, or when another lesson starts a server.
        """
        if not self._servers or os.environ.get(BATCH_VARIABLE):
            self.stop()
            return
        mark_idle(self.run_dir / "servers" / self.name, True)
        display(stop_button(self.stop))

    def record(self, **values: Value) -> dict[str, Value]:
        """Write named values to this run's records and return them, with what they were measured on.

        Raises:
            ParameterError: A number is not finite.
        """
        context: dict[str, Value] = {
            "release": self.settings.release,
            "flavour": self.settings.flavour,
            "provider": self.settings.provider,
            "engine": self.settings.engine,
            "device": self.settings.resolved_device,
        }
        if self._images:  # by digest: a tag may name another image tomorrow
            context["images"] = self._images
        record_values(self.name, context | values)
        return values

    def _adopt(self, server: TritonServer) -> None:
        """Remember a server under its folder; one that ran there before is stopped first."""
        if (lab := os.environ.get(LAB_VARIABLE)) and not os.environ.get(BATCH_VARIABLE):
            mark_idle(self.run_dir / "servers" / self.name, False)
            for other in stop_idle_servers(lab):
                print(f"stopped the server of {other.lesson}, which was done", file=sys.stderr)
        key = str(server.folder)
        if key in self._servers and self._servers[key] is not server:
            self._servers[key].stop()
        self._servers[key] = server

    def _folder(self, name: str) -> Path:
        folder = self.run_dir / "servers" / self.name / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def __str__(self) -> str:
        return f"{self.name}: {self.settings}"

    __repr__ = __str__


WITHOUT_VLLM = "> vLLM is not installed in this environment, so a small Python stand-in is the model `llm`."
_OPEN: dict[str, Lesson] = {}  # this kernel's lessons: opening one again stops what the old one left running


def parameters() -> dict[str, Any]:
    """Return the parameters of this notebook that a lesson knows, by name, with the values they have now.

    They are the annotated upper-case names of its `parameters` cell; those of the page itself are left out.

    Raises:
        ParameterError: A name is nearly that of a parameter, and so a slip.
    """
    shell = get_ipython()
    namespace: dict[str, Any] = {} if shell is None else shell.user_ns
    known = [name.upper() for name in Settings.model_fields]
    given = [name for name in namespace.get("__annotations__", {}) if name.isupper()]
    for name in given:
        if name not in known and (close := get_close_matches(name, known, 1, NEARLY)):
            raise ParameterError(
                f"use the parameter {name}", found="no such parameter", hint=f"did you mean {close[0]}?"
            )
    values = {name: namespace[name] for name in given if name in known}
    url = os.environ.get(URL_VARIABLE)
    if url and values.get("URL") == "":  # a page that can use a server of somebody else, and names none itself
        values |= {"PROVIDER": "attach", "URL": url}
    return values


def open_lesson(
    name: str, *, needs: Literal["", "no-ensemble"] = "", made_for: Literal["", "stand-in"] = "", **given: Any
) -> Lesson:
    """Check a notebook's parameters and return its lesson; says plainly what is emulated or stood in for.

    Args:
        name: The notebook's name without suffix.
        needs: `no-ensemble` for a lesson about the failure, which only some releases and flavours have.
        made_for: `stand-in` for a lesson that is written for it, and says so itself.
        **given: The names of its `parameters` cell, for example `RELEASE="24.08"`.

    Raises:
        ParameterError: A parameter is unknown, of the wrong type or out of range.
        UnsupportedMachine: DEVICE is `cuda`, and there is no GPU that could be used.
    """
    settings = check_settings(**given)
    if needs == "no-ensemble":
        _require_failure(name, settings)
    if name in _OPEN:
        _OPEN[name].stop()
    lesson = _OPEN[name] = Lesson(name, settings)
    atexit.register(lesson.stop)
    show_figures_in_kernel()
    _put_own_programs_on_the_path()
    if settings.provider == "attach":
        address = settings.url.rpartition("@")[2]  # without a seat's key
        display(Markdown(f"> This page starts no server. It asks the one at `{as_text(address)}`."))
    elif settings.engine == "stand-in" and "ENGINE" in given and not made_for:
        display(Markdown(WITHOUT_VLLM if given["ENGINE"] == "auto" else quick_banner()))
    return lesson


def _put_own_programs_on_the_path() -> None:
    """Let `!ensemblekit ...` find its program in a kernel that was started without the environment's own PATH."""
    own, path = os.path.dirname(sys.executable), os.environ.get("PATH", "")
    if own not in path.split(os.pathsep):
        os.environ["PATH"] = own + os.pathsep + path


def _require_failure(name: str, settings: Settings) -> None:
    if settings.provider != "attach" and not has_ensembles(settings.release_row, settings.flavour):
        return
    failing = ", ".join(row.name for row in list_releases() if not row.ensemble_in_vllm_image)
    raise ParameterError(
        f"show the failure in {name} with {settings}",
        found="this server has ensembles, or is not started by the lesson: there is no failure to see",
        hint=f"use FLAVOUR vllm-image with one of the releases {failing}",
    )


def emulation_note(server: TritonServer) -> str:
    """Return what a page that shows this server has to say about it."""
    if isinstance(server.installation, ContainerInstallation) and not server.installation.emulated:
        return f"the server as it is in the image {server.installation.image}"
    return EMULATION_TEXT if server.installation.emulated else "the server as it is in the wheel"


def log_lines(path: Path) -> list[LogLine]:
    """Return the lines of a Triton log, parsed.

    Raises:
        OSError: It cannot be read.
    """
    return list(parse_log(read_log(path)))


def last_refusal(server: Server) -> str:
    """Return the last poll error in a server's log.

    Raises:
        ParameterError: The log is not here, or the server has refused nothing.
    """
    refusals = poll_errors(log_lines(server.log_path)) if isinstance(server, TritonServer) else ()
    if not refusals:
        raise ParameterError(
            "read what the server refused", found="no poll error in a log that is here", hint="start the server here"
        )
    return refusals[-1]
