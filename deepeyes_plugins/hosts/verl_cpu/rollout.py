"""A rollout engine on transformers' ``generate``, for tiny models where vLLM does not run.

Requests that arrive together go through one left-padded call, which is what makes it bearable.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray
import torch
from PIL import Image
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

from deepeyes_plugins.hosts.transformers.images import ImageBounds, image_bounds
from deepeyes_plugins.hosts.verl.engines import FORBIDDEN_BIAS
from deepeyes_plugins.hosts.verl_cpu.activation import ENGINE

logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.03
"""A batch closes when no request has arrived for this long."""

LARGEST_BATCH = 256

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "max_tokens", "max_new_tokens", "stop")


@dataclass(slots=True)
class Request:
    """One generation request and who waits for it."""

    prompt_ids: list[int]
    sampling_params: dict[str, Any]
    images: list[Image.Image]
    image_settings: dict[str, Any]
    result: asyncio.Future[TokenOutput]

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Requests with equal keys can share a call."""
        bias = self.sampling_params.get("logit_bias") or {}
        rest = (repr(self.sampling_params.get(key)) for key in _SAMPLING_KEYS)
        return (*rest, tuple(sorted(bias.items())))


class TransformersServer:
    """A Ray actor that holds the model and generates: token ids in, token ids out.

    Between :meth:`abort_all_requests` and :meth:`resume_generation` nothing is generated: what was
    running is finished, and what arrives meanwhile waits.
    """

    def __init__(self, config: Any, model_config: Any, replica_rank: int) -> None:
        """Take verl's rollout and model configuration; the model is loaded by :meth:`launch`."""
        self.config: RolloutConfig = omega_conf_to_dataclass(config)
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config, HFModelConfig)
        self.replica_rank = replica_rank
        self.global_steps: int | None = None

    async def launch(self) -> tuple[str, int]:
        """Load the model and start serving.

        Returns:
            Host and port; the port is 0, since requests come through Ray.
        """
        from transformers import AutoModelForImageTextToText

        self.processor = self.model_config.processor
        self.tokenizer = self.model_config.tokenizer
        self.model = AutoModelForImageTextToText.from_pretrained(
            self.model_config.local_path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.ends = set(ends) if isinstance(ends, list) else {ends}
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._weights = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._pixels = lru_cache(maxsize=4096)(self._process_image)
        self._serving = asyncio.create_task(self._serve())
        return ray.util.get_node_ip_address(), 0

    async def stop(self) -> None:
        """Stop serving; requests that wait are not answered any more."""
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)

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

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Nothing was freed."""

    async def sleep(self) -> None:
        """Nothing to free on a CPU."""

    async def clear_kv_cache(self) -> None:
        """No cache outlives a call."""

    async def release_kv_cache(self) -> None:
        """No cache outlives a call."""

    async def resume_kv_cache(self) -> None:
        """No cache outlives a call."""

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

    async def start_profile(self, **_: Any) -> None:
        """No profiler."""

    async def stop_profile(self) -> None:
        """No profiler."""

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
        result: asyncio.Future[TokenOutput] = asyncio.get_running_loop().create_future()
        request = Request(
            list(prompt_ids),
            dict(sampling_params),
            image_data or [],
            mm_processor_kwargs or {},
            result,
        )
        await self._requests.put(request)
        return await result

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
            waiting = [request for request in waiting if not request.result.done()]
            if not waiting:
                continue
            key = waiting[0].batch_key
            batch = [request for request in waiting if request.batch_key == key]
            try:
                async with self._weights:
                    if not self._open.is_set():
                        continue
                    waiting = [request for request in waiting if request.batch_key != key]
                    outputs = await asyncio.to_thread(self._run, batch)
            except Exception as error:
                logger.exception("a batch of %d requests failed", len(batch))
                for request in batch:
                    if not request.result.done():
                        request.result.set_exception(RuntimeError(f"generation failed: {error!r}"))
                continue
            for request, output in zip(batch, outputs, strict=True):
                if not request.result.done():
                    request.result.set_result(output)

    def _process_image(
        self, size: tuple[int, int], pixels: bytes, bounds: ImageBounds
    ) -> tuple[Any, Any]:
        image = Image.frombytes("RGB", size, pixels)
        features = self.processor.image_processor(
            images=[image],
            min_pixels=bounds.minimum,
            max_pixels=bounds.maximum,
            return_tensors="pt",
        )
        return features["pixel_values"], features["image_grid_thw"]

    @torch.inference_mode()
    def _run(self, batch: list[Request]) -> list[TokenOutput]:
        started = time.monotonic()
        params = batch[0].sampling_params
        width = max(len(request.prompt_ids) for request in batch)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(batch), width), pad)
        attention = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            attention[row, width - len(request.prompt_ids) :] = 1
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": attention}
        features = [
            self._pixels(
                image.size,
                image.tobytes(),
                image_bounds(self.processor.image_processor, request.image_settings),
            )
            for request in batch
            for image in request.images
        ]
        if features:
            inputs["pixel_values"] = torch.cat([pixels for pixels, _ in features])
            inputs["image_grid_thw"] = torch.cat([grid for _, grid in features])
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).long()

        limit = params.get("max_tokens") or params.get("max_new_tokens")
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
            max_new_tokens=limit or self.config.response_length,
            eos_token_id=sorted(self.ends),
            pad_token_id=pad,
            suppress_tokens=sorted(forbidden),
            stop_strings=params.get("stop") or None,
            tokenizer=self.tokenizer,
            output_logits=True,
            return_dict_in_generate=True,
        )
        generated = output.sequences[:, width:]
        log_probs = torch.stack(output.logits, 1).float() / (temperature or 1.0)
        log_probs = log_probs.log_softmax(-1).gather(-1, generated[..., None])[..., 0]
        results = []
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
        logger.info(
            "generated %d x %d tokens in %.2f s",
            len(batch),
            generated.shape[1],
            time.monotonic() - started,
        )
        return results


class TransformersReplica(RolloutReplica):
    """One server per replica, on the node of its training worker."""

    async def launch_servers(self) -> None:
        """Start the server actor.

        Raises:
            ValueError: More than one rank per replica was asked for.
        """
        if self.world_size != 1:
            raise ValueError(
                f"the {ENGINE} engine is not sharded: set rollout.tensor_model_parallel_size=1"
            )
        node = await self.workers[0].__ray_call__.remote(
            lambda _: ray.get_runtime_context().get_node_id()
        )
        server = (
            ray.remote(TransformersServer)
            .options(
                name=f"{server_name(self.replica_rank)}{self.name_suffix}",
                num_cpus=0,
                max_concurrency=self.max_concurrency,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
            )
            .remote(self.config, self.model_config, self.replica_rank)
        )
        host, port = await server.launch.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"{host}:{port}-{self.replica_rank}"


class TransformersAdapter(BaseRollout):
    """Lives in every training worker and pushes the weights to its replica's server."""

    def __init__(
        self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1
    ) -> None:
        """Find out which replica this rank belongs to; its server is launched later."""
        super().__init__(config, model_config, device_mesh)
        rank = int(os.environ["RANK"])
        size = (
            self.config.tensor_model_parallel_size
            * self.config.data_parallel_size
            * self.config.pipeline_model_parallel_size
        )
        self.replica_rank = rank // size if replica_rank == -1 else replica_rank
        self._leads = rank % size == 0

    @property
    def server(self) -> Any:
        """The replica's server actor."""
        return ray.get_actor(server_name(self.replica_rank))

    async def resume(self, tags: list[str]) -> None:
        """Wake the server up."""
        if self._leads:
            await self.server.wake_up.remote(tags=tags)

    async def release(self) -> None:
        """Put the server to sleep."""
        if self._leads:
            await self.server.sleep.remote()

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
        # Every rank drains the generator: gathering a sharded tensor is a collective call.
        gathered = [
            (name, tensor.detach().to("cpu", copy=True))
            async for name, tensor in ensure_async_iterator(weights)
        ]
        if self._leads:
            await self.server.load_weights.remote(gathered, global_steps)


def server_name(replica_rank: int) -> str:
    """Name of a replica's server actor."""
    return f"deepeyes_{ENGINE}_server_{replica_rank}"
