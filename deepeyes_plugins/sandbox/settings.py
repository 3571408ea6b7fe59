"""Settings of the code sandbox."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deepeyes_plugins.remote.urls import refuse_credentials


class SandboxSettings(BaseModel):
    """URL of the sandbox, or how to start one, and limits of its sessions."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str | None = Field(
        None,
        description="Base URL of a running server. Unset: $DEEPEYES_SANDBOX_URL, else a server is "
        "started on loopback for this process tree.",
    )
    token_env: str = Field(
        "DEEPEYES_TOKEN_SANDBOX",
        description="Name of the environment variable that holds the bearer token. The server "
        "requires a token when the variable is set.",
    )
    kernel: str = Field(
        "fork",
        description="Kernel that runs the code: `fork` (isolated sessions forked from one warm "
        "interpreter), `jupyter` (any installed kernelspec), or a custom one as `module:factory`.",
    )
    jupyter_kernelspec: str = Field(
        "python3", description="Name of the kernelspec that the `jupyter` kernel starts."
    )
    cell_timeout: float = Field(
        200.0, gt=0, description="Upper limit of the timeout of a cell, in seconds."
    )
    interrupt_grace: float = Field(
        2.0,
        gt=0,
        description="Seconds between the interrupt of a cell at its timeout and the kill of its "
        "session if the cell does not react.",
    )
    idle_timeout: float = Field(
        1800.0, gt=0, description="Seconds after which an idle session is closed."
    )
    max_lifetime: float = Field(
        86_400.0, gt=0, description="Seconds after which a session is closed, even if in use."
    )
    max_sessions: int = Field(
        1024,
        gt=0,
        description="Maximum number of sessions that have a process. A further one evicts the "
        "least recently used one until its next cell.",
    )
    room_timeout: float = Field(
        10.0,
        gt=0,
        description="Seconds that a new or evicted session waits for a process while all sessions "
        "are busy.",
    )
    min_free_memory_mb: int = Field(
        512,
        ge=0,
        description="Available memory of the machine, in MiB, below which idle sessions are "
        "evicted.",
    )
    memory_mb: int = Field(
        2048,
        gt=0,
        description="Memory limit of a session, in MiB: address space beyond that of the warm "
        "interpreter.",
    )
    file_mb: int = Field(64, gt=0, description="Maximum size of a file of a session, in MiB.")
    scratch_mb: int = Field(
        64,
        gt=0,
        description="Maximum total size of a session's files, in MiB; they are in memory (tmpfs) "
        "if the system allows mount namespaces.",
    )
    allow_network: bool = Field(
        False,
        description="Allow sessions to connect to other machines, and to network services on this "
        "one.",
    )
    spare_sessions: int = Field(
        4, ge=0, description="Number of sessions that are forked in advance."
    )
    redis_url: str | None = Field(
        None,
        pattern="^(redis|rediss|unix)://",
        description="URL of the Redis in which sessions are saved, as redis://host:6379/0. Servers "
        "that share it restore each other's sessions. Unset: evicted sessions are saved in memory.",
    )
    redis_password_env: str = Field(
        "DEEPEYES_REDIS_PASSWORD",
        description="Name of the environment variable that holds the password of Redis, if any.",
    )
    snapshot_store_mb: int = Field(
        2048, gt=0, description="Memory for snapshots of evicted sessions, in MiB."
    )
    snapshot_mb: int = Field(
        256, gt=0, description="Maximum size of a snapshot of variables and files, in MiB."
    )
    max_stdout_characters: int = Field(
        8000,
        ge=100,
        description="Maximum characters of standard output, and of the result, per cell.",
    )
    max_stderr_characters: int = Field(
        4000, ge=100, description="Maximum characters of standard error per cell."
    )
    max_images: int = Field(10, ge=0, description="Maximum number of images per cell.")
    max_image_pixels: int = Field(
        100_000_000, gt=0, description="Maximum number of pixels of an image, uploaded or returned."
    )
    lazy_pixels: int = Field(
        32_000_000,
        ge=0,
        description="Images with more pixels are decoded by each session that uses them, not once "
        "for all sessions.",
    )
    image_cache_mb: int = Field(
        1024, gt=0, description="Size of the cache of decoded images, in MiB."
    )
    readable_paths: tuple[str, ...] = Field(
        (),
        description="Paths that sessions may read in addition to the interpreter, its packages and "
        "the system libraries.",
    )
    font_folders: tuple[str, ...] = Field(
        ("/usr/share/fonts", "/usr/local/share/fonts"),
        description="Folders that are searched for a fallback font of figures with Chinese, "
        "Japanese and Korean characters. Sessions may read them.",
    )
    warm_modules: tuple[str, ...] = Field(
        (),
        description="Modules that are imported once for all sessions, in addition to IPython, "
        "NumPy, Pillow and matplotlib.",
    )
    allow_unisolated: bool = Field(
        False,
        description="Run even if the kernel lacks an isolation layer. Model-written code then may "
        "have all rights of this user.",
    )
    startup_timeout: float = Field(
        120.0, gt=0, description="Time limit in seconds for the start of a server."
    )
    patience: float = Field(
        300.0,
        ge=0,
        description="Seconds that a rollout waits for a sandbox that is down, before it ends with "
        "an infrastructure error.",
    )
    circuit_failures: int = Field(
        5,
        ge=1,
        description="Consecutive failures after which the circuit of the sandbox opens for "
        "circuit_seconds; then one call probes it while all others wait.",
    )
    circuit_seconds: float = Field(
        5.0, gt=0, description="Seconds for which the circuit of a failing sandbox stays open."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        return refuse_credentials(value, "sandbox.token_env")

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        return refuse_credentials(value, "sandbox.redis_password_env")
