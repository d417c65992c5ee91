# SPDX-License-Identifier: Apache-2.0
"""vLLM behind Ray Serve, without Triton: one replica of a deployment on each node, each with an engine of its own.

`_ray_serve.py JSON`, with `{"arguments", "environment", "replicas", "gpus", "host", "port"}`: the engine's arguments,
its variables, how many replicas, how many GPUs each has, and where HTTP is answered. It answers whole chats as
`vllm serve` does, and `/health`. Run by path.
"""

import asyncio
import json
import sys
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

MOST_AT_ONCE = 1024  # requests of one replica; Ray's default of 5 would measure Ray's queue
app = FastAPI()


@serve.ingress(app)
class _Chat:
    """One replica."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Start the engine; Ray has said in CUDA_VISIBLE_DEVICES on which GPU."""
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._tokenizer = AutoTokenizer.from_pretrained(arguments["model"])
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._asked = 0

    @app.get("/health")
    async def health(self) -> None:
        """Answer once the engine is up."""

    @app.post("/v1/chat/completions")
    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a conversation with the whole text."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        named = {name: body[name] for name in ("max_tokens", "temperature", "ignore_eos") if name in body}
        sampling = SamplingParams(**named, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = self._tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        self._asked += 1
        async for output in self._llm.generate(prompt, sampling, str(self._asked)):
            answer = output.outputs[0]
        message = {"role": "assistant", "content": answer.text}
        usage = {"prompt_tokens": len(output.prompt_token_ids or ()), "completion_tokens": len(answer.token_ids)}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        return {"object": "chat.completion", "model": "llm", "choices": [choice], "usage": usage}


async def main(job: dict[str, Any]) -> None:
    """Start the deployment and stay."""
    ray.init(runtime_env={"env_vars": job["environment"]})  # replicas are children of the nodes, not of this process
    serve.start(http_options={"host": job["host"], "port": job["port"]})
    chat = serve.deployment(
        _Chat,
        name="chat",
        max_ongoing_requests=MOST_AT_ONCE,
        num_replicas=job["replicas"],
        ray_actor_options={"num_gpus": job["gpus"]},
    )
    serve.run(chat.bind(job["arguments"]))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
