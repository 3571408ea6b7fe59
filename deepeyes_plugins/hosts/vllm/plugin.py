"""Entry point of the group ``vllm.general_plugins``: loaded by every process of vLLM."""

from __future__ import annotations


def register() -> None:
    """Keep linear weights replaceable on a CPU, so that a trainer can send new ones.

    vLLM 0.24.0 on a CPU packs the weights of linear layers for oneDNN after loading and discards
    the originals, so that every later load of weights fails. On other devices nothing is changed.
    """
    from vllm import _custom_ops
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _custom_ops._supports_onednn = False
