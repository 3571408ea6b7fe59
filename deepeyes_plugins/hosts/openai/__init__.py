"""Policy on OpenAI-compatible servers: vLLM, SGLang, ``transformers serve``, hosted APIs."""

from deepeyes_plugins.hosts.openai.client import ChatClient
from deepeyes_plugins.hosts.openai.model import ServedModel
from deepeyes_plugins.hosts.openai.policy import OpenAIPolicy
from deepeyes_plugins.hosts.openai.settings import OpenAISettings, load_openai_settings

__all__ = ["ChatClient", "OpenAIPolicy", "OpenAISettings", "ServedModel", "load_openai_settings"]
