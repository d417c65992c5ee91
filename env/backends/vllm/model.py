# SPDX-License-Identifier: Apache-2.0
"""A Python-based Triton backend for vLLM: the contract of vllm_backend r24.08, and what r24.12 added to it.

Triton runs this one file for every model whose config.pbtxt says `backend: "vllm"`; the engine's arguments
stand in the model's own `<version>/model.json`. What each part does:

    triton_vllm/contract.py             the tensors and parameters a model of this backend has
    triton_vllm/process_setup.py        locale, device and start method, before vLLM is imported
    triton_vllm/engine_process.py       the engine's process, which imports vLLM at the same time and ends with this one
    triton_vllm/request.py              a Triton request, read and checked, and the way its answer takes
    triton_vllm/sampling.py             sampling parameters: from JSON and request parameters to SamplingParams
    triton_vllm/engine.py               the engine, on an asyncio loop in a thread of its own
    triton_vllm/admission.py            when new requests join the running ones
    triton_vllm/fast_path.py            answers past vLLM's per-token machinery; all that vLLM does not promise
    triton_vllm/output_buffer.py        what has come of such an answer so far
    triton_vllm/detokenizer.py          from token ids to text, in as few steps as an answer has pieces
    triton_vllm/responses.py            sends the answers with all they tell, and notices cancelled requests
    triton_vllm/metrics.py              vLLM's metrics, through Triton's metrics endpoint
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

# appended, not inserted: nothing here may hide a module of vLLM's many dependencies
sys.path.append(str(Path(__file__).resolve().parent))

from triton_vllm import contract, process_setup
from triton_vllm.engine_process import EarlyImport


class TritonPythonModel:
    """One model of this backend: an engine, and the requests it is working on."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Add the tensors that config.pbtxt leaves out, decoupled answers, and no batching by Triton.

        Triton calls this in a short-lived process, so nothing heavy is imported for it.
        """
        return contract.complete(config)

    def initialize(self, args: dict[str, str]) -> None:
        """Start the engine; the model is ready when this returns.

        Raises:
            TritonModelException: The engine arguments are wrong, or the engine did not start.
        """
        begin = time.monotonic()
        config = json.loads(args["model_config"])
        if not pb_utils.using_decoupled_model_transaction_policy(config):
            raise pb_utils.TritonModelException(
                "a vLLM model answers with any number of responses: "
                "config.pbtxt needs `model_transaction_policy { decoupled: true }`"
            )
        self.name = args["model_name"]
        try:
            folder = Path(pb_utils.get_model_dir())
            arguments = process_setup.read_engine_arguments(folder)
            adapters = process_setup.read_lora_adapters(folder, arguments)
            longest_wait_s, fast_path = contract.longest_wait_s(config), contract.wants_fast_path(config)
            process_setup.choose_device(args, arguments)
        except ValueError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        process_setup.prepare_process()
        with EarlyImport() as early:
            self._log(f"importing vLLM for {arguments['model']}")
            # imported only now: vLLM reads the environment that was just prepared
            from triton_vllm.engine import Engine
            from triton_vllm.request import RequestParser
            from triton_vllm.responses import ResponseSender

            early.offer()
            self._log(f"loading weights and starting the engine, {time.monotonic() - begin:.1f} s after the start")
            wants_metrics = contract.reports_metrics(config) and not arguments.get("disable_log_stats")
            labels = {"model": self.name, "version": args["model_version"]} if wants_metrics else None
            self.responses = ResponseSender()
            self.engine = Engine(
                arguments,
                self.responses,
                labels,
                longest_wait_s=longest_wait_s,
                fast_path=fast_path,
                lora_adapters=adapters,
            )
        self.parser = RequestParser(self.engine)
        if contract.checks_health(config):
            self.engine.watch_health(self._unload)
        self._log(f"engine ready in {time.monotonic() - begin:.1f} s")

    def execute(self, requests: list[Any]) -> None:
        """Hand the requests to the engine, with one wake-up of its loop; the answers come later."""
        if not self.engine.healthy:
            for request in requests:
                self.parser.refuse_unhealthy(request)
            return
        parsed = [known for request in requests if (known := self.parser.parse(request)) is not None]
        if parsed:
            self.engine.submit(parsed)

    def finalize(self) -> None:
        """Stop the engine and its processes."""
        self._log("stopping the engine")
        if hasattr(self, "engine"):
            self.engine.stop()
            self.responses.stop()
        self._log("engine stopped")

    def _unload(self, error: Exception) -> None:
        """Make the model not ready, since its engine is dead: as upstream, by unloading it."""
        pb_utils.Logger.log_error(f"[vllm] Engine is not healthy and model will be unloaded: {error!r}")
        try:
            pb_utils.unload_model(self.name)
        except Exception as refused:
            hint = "start the server with --model-control-mode=explicit"
            pb_utils.Logger.log_error(f"[vllm] {self.name} stays loaded: {refused}; {hint}")

    def _log(self, message: str) -> None:
        pb_utils.Logger.log_info(f"[vllm] {getattr(self, 'name', 'model')}: {message}")
