"""A rollout engine on transformers' ``generate``, for tiny models where vLLM does not run.

Requests that arrive together go through one left-padded call, which is what makes it bearable.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from PIL import Image
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

from deepeyes_plugins.hosts.transformers.images import image_bounds
from deepeyes_plugins.hosts.verl.engines import FORBIDDEN_BIAS
from deepeyes_plugins.hosts.verl_cpu.activation import ENGINE

logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.03
"""A batch closes when no request has arrived for this long."""

LARGEST_BATCH = 256


@dataclass(frozen=True, slots=True)
class Request:
    """One generation request and who waits for it."""

    prompt_ids: list[int]
    images: list[Image.Image]
    settings: tuple[dict[str, Any], dict[str, Any]]
    """Sampling parameters and image settings; requests with equal ones can share a call."""
    result: asyncio.Future[TokenOutput]


class TransformersServer:
    """A Ray actor that holds the model and generates: token ids in, token ids out.

    Between :meth:`abort_all_requests` and :meth:`resume_generation` nothing is generated: what was
    running is finished, and what arrives meanwhile waits.
    """

    def __init__(self, config: Any, model_config: Any) -> None:
        self.config: RolloutConfig = omega_conf_to_dataclass(config)
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config, HFModelConfig)
        self.global_steps: int | None = None

    async def launch(self) -> None:
        """Load the model and start serving."""
        from transformers import AutoModelForImageTextToText

        self.model = AutoModelForImageTextToText.from_pretrained(
            self.model_config.local_path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._weights = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._serving = asyncio.create_task(self._serve())

    async def load_weights(
        self, weights: list[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> None:
        """Replace the model's weights.

        Args:
            weights: Names and tensors.
            global_steps: Which version they are, if that is known.

        Raises:
            KeyError: A name is not the model's.
        """
        async with self._weights:
            own = self.model.state_dict()
            with torch.no_grad():
                for name, tensor in weights:
                    own[name].copy_(tensor)
            if global_steps is not None:
                self.global_steps = global_steps

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Finish the running batch and generate nothing more until :meth:`resume_generation`.

        Args:
            reject_request: Whether requests are to go to another server; there is none.
        """
        del reject_request
        self._open.clear()
        async with self._weights:
            pass

    async def resume_generation(self) -> None:
        """Generate again."""
        self._open.set()

    async def _nothing(self, *_: Any, **__: Any) -> None:
        """Do nothing: no memory is freed, no cache outlives a call, there is no profiler."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = _nothing
    start_profile = stop_profile = _nothing

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Image.Image] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> TokenOutput:
        """Generate one continuation.

        Raises:
            RuntimeError: The call that this request was part of failed.
        """
        settings = dict(sampling_params), mm_processor_kwargs or {}
        request = Request(list(prompt_ids), image_data or [], settings, asyncio.Future())
        await self._requests.put(request)
        return await request.result

    async def _serve(self) -> None:
        waiting: list[Request] = []
        while True:
            waiting = waiting or [await self._requests.get()]
            while len(waiting) < LARGEST_BATCH:
                try:
                    async with asyncio.timeout(QUIET_SECONDS):
                        waiting.append(await self._requests.get())
                except TimeoutError:
                    break
            await self._open.wait()
            async with self._weights:
                if not self._open.is_set():
                    continue
                settings = waiting[0].settings
                batch = [request for request in waiting if request.settings == settings]
                waiting = [request for request in waiting if request.settings != settings]
                try:
                    outputs = await asyncio.to_thread(self._run, batch)
                except Exception as error:
                    logger.exception("a batch of %d requests failed", len(batch))
                    outputs = [RuntimeError(f"generation failed: {error!r}")] * len(batch)
            for request, output in zip(batch, outputs, strict=True):
                if request.result.done():  # whoever asked has given up
                    continue
                if isinstance(output, RuntimeError):
                    request.result.set_exception(output)
                else:
                    request.result.set_result(output)

    @torch.inference_mode()
    def _run(self, batch: list[Request]) -> list[TokenOutput | RuntimeError]:
        params, image_settings = batch[0].settings
        tokenizer, processor = self.model_config.tokenizer, self.model_config.processor
        pad = tokenizer.pad_token_id
        inputs = dict(
            tokenizer.pad(
                {"input_ids": [request.prompt_ids for request in batch]},
                padding_side="left",
                return_tensors="pt",
            )
        )
        if images := [image for request in batch for image in request.images]:
            bounds = image_bounds(processor.image_processor, image_settings)
            inputs |= processor.image_processor(
                images=images,
                min_pixels=bounds.minimum,
                max_pixels=bounds.maximum,
                return_tensors="pt",
            )
            image_tokens = inputs["input_ids"] == self.model.config.image_token_id
            inputs["mm_token_type_ids"] = image_tokens.long()

        temperature = params.get("temperature", 1.0)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": temperature,
                "top_p": params.get("top_p", 1.0),
                "top_k": max(params.get("top_k", 0), 0),
            }
        bias = params.get("logit_bias") or {}
        # The padding token marks where a sequence ended, so it is never generated itself.
        forbidden = {int(token) for token, value in bias.items() if value <= FORBIDDEN_BIAS} | {pad}
        output = self.model.generate(
            **inputs,
            **sampling,
            max_new_tokens=params.get("max_tokens") or self.config.response_length,
            eos_token_id=self.model.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=pad,
            suppress_tokens=sorted(forbidden),
            stop_strings=params.get("stop") or None,
            tokenizer=tokenizer,
            output_logits=True,
            return_dict_in_generate=True,
        )
        generated = output.sequences[:, inputs["input_ids"].shape[1] :]
        log_probs = torch.stack(output.logits, 1).float() / (temperature or 1.0)
        log_probs = log_probs.log_softmax(-1).gather(-1, generated[..., None])[..., 0]
        results: list[TokenOutput | RuntimeError] = []
        for row, row_log_probs in zip(generated.tolist(), log_probs.tolist(), strict=True):
            length = row.index(pad) if pad in row else len(row)
            results.append(
                TokenOutput(
                    token_ids=row[:length],
                    log_probs=row_log_probs[:length],
                    stop_reason="completed",
                    extra_fields={"global_steps": self.global_steps},
                )
            )
        return results


class TransformersReplica(RolloutReplica):
    """One server per replica, on this machine."""

    async def launch_servers(self) -> None:
        """Start the server actor.

        Raises:
            ValueError: More than one rank per replica was asked for.
        """
        if self.world_size != 1:
            raise ValueError(
                f"the {ENGINE} engine is not sharded: set rollout.tensor_model_parallel_size=1"
            )
        name = f"{server_name(self.replica_rank)}{self.name_suffix}"
        options = {"name": name, "num_cpus": 0, "max_concurrency": self.max_concurrency}
        server = ray.remote(**options)(TransformersServer).remote(self.config, self.model_config)
        await server.launch.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = name  # Requests come through Ray.


class TransformersAdapter(BaseRollout):
    """Lives in every training worker and pushes the weights to its replica's server."""

    def __init__(
        self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1
    ) -> None:
        """Find out which replica this rank belongs to; its server is launched later."""
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank

    async def resume(self, tags: list[str]) -> None:
        """Do nothing: no memory was freed."""

    async def release(self) -> None:
        """Do nothing: a CPU has no memory to share with the trainer."""

    async def update_weights(
        self,
        weights: AsyncGenerator[tuple[str, torch.Tensor]],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        **_: Any,
    ) -> None:
        """Send the weights to the server.

        Raises:
            ValueError: Another wire format was asked for.
        """
        if wire_format != "named_tensors":
            raise ValueError(f"the {ENGINE} engine takes named tensors, not {wire_format!r}")
        gathered = [
            (name, tensor.detach().to("cpu", copy=True))
            async for name, tensor in ensure_async_iterator(weights)
        ]
        server = ray.get_actor(server_name(self.replica_rank))
        await server.load_weights.remote(gathered, global_steps)


def server_name(replica_rank: int) -> str:
    """Name of a replica's server actor."""
    return f"deepeyes_{ENGINE}_server_{replica_rank}"
