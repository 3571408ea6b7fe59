"""Settings of the code sandbox."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SandboxSettings(BaseModel):
    """Where the sandbox is and what its sessions may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = Field(
        None,
        description="Base URL of a running server. Unset: $DEEPEYES_SANDBOX_URL, else a server is "
        "started on loopback for this process tree.",
    )
    token_env: str = Field(
        "DEEPEYES_TOKEN_SANDBOX",
        description="Name of the environment variable that holds the bearer token. The server asks "
        "for a token when the variable is set.",
    )
    kernel: str = Field(
        "fork",
        description="What runs the code: `fork` (isolated sessions of one warm interpreter), "
        "`jupyter` (any installed kernelspec), or a third party's, as `module:factory`.",
    )
    jupyter_kernelspec: str = Field(
        "python3", description="Name of the kernelspec that the `jupyter` kernel starts."
    )
    cell_timeout: float = Field(
        200.0, gt=0, description="Longest time a cell may run, in seconds, whatever a client asks."
    )
    interrupt_grace: float = Field(
        2.0,
        gt=0,
        description="Seconds between the interrupt of a cell at its timeout and the kill of a "
        "session that did not react.",
    )
    idle_timeout: float = Field(
        1800.0, gt=0, description="Seconds after which a session that runs nothing is closed."
    )
    max_lifetime: float = Field(
        86_400.0, gt=0, description="Seconds after which a session is closed, used or not."
    )
    max_sessions: int = Field(
        1024,
        gt=0,
        description="Sessions that have a process. One more puts the longest unused one away until "
        "its next cell.",
    )
    room_timeout: float = Field(
        10.0,
        gt=0,
        description="Seconds that a session waits for its process where all sessions are busy.",
    )
    min_free_memory_mb: int = Field(
        512,
        ge=0,
        description="Free memory of the machine, in MiB, below which unused sessions are put away.",
    )
    memory_mb: int = Field(
        2048,
        gt=0,
        description="Address space that a session may add to the warm interpreter's, in MiB.",
    )
    file_mb: int = Field(64, gt=0, description="Largest file that a session may write, in MiB.")
    scratch_mb: int = Field(
        64,
        gt=0,
        description="Size of all files that a session has at once, in MiB; they are kept in memory "
        "where the system allows it a file system of its own.",
    )
    allow_network: bool = Field(
        False,
        description="Let sessions connect to other machines (and to this one's network services).",
    )
    spare_sessions: int = Field(
        4, ge=0, description="Sessions that are started ahead of those who will ask for them."
    )
    redis_url: str | None = Field(
        None,
        pattern="^(redis|rediss|unix)://",
        description="Redis in which sessions are saved, as redis://host:6379/0. Servers that share "
        "it take over each other's sessions. Unset: sessions are put away to memory.",
    )
    redis_password_env: str = Field(
        "DEEPEYES_REDIS_PASSWORD",
        description="Name of the environment variable that holds the password of Redis, if any.",
    )
    snapshot_store_mb: int = Field(
        2048, gt=0, description="Memory for sessions that were put away, in MiB."
    )
    snapshot_mb: int = Field(
        256, gt=0, description="Largest snapshot of a session's variables and files, in MiB."
    )
    max_stdout_characters: int = Field(
        8000, ge=100, description="Characters of standard output (and of the result) per cell."
    )
    max_stderr_characters: int = Field(
        4000, ge=100, description="Characters of standard error per cell."
    )
    max_images: int = Field(10, ge=0, description="Images that one cell may return.")
    max_image_pixels: int = Field(
        100_000_000, gt=0, description="Pixels of the largest image, uploaded or returned."
    )
    lazy_pixels: int = Field(
        32_000_000,
        ge=0,
        description="Images with more pixels are not decoded once for all sessions, but by each "
        "session that uses them.",
    )
    image_cache_mb: int = Field(
        1024, gt=0, description="Decoded images kept for sessions to come, in MiB."
    )
    readable_paths: tuple[str, ...] = Field(
        (),
        description="Paths that sessions may read besides the interpreter, its packages and the "
        "system libraries.",
    )
    font_folders: tuple[str, ...] = Field(
        ("/usr/share/fonts", "/usr/local/share/fonts"),
        description="Folders that are searched for a font with Chinese, Japanese and Korean "
        "characters, which figures fall back to. Sessions may read them.",
    )
    warm_modules: tuple[str, ...] = Field(
        (),
        description="Modules imported once for all sessions, besides IPython, NumPy, Pillow and "
        "matplotlib.",
    )
    allow_unisolated: bool = Field(
        False,
        description="Run even where the kernel lacks an isolation layer. Then code from the model "
        "can do what this user can.",
    )
    startup_timeout: float = Field(
        120.0, gt=0, description="Seconds that a server may take until its first session works."
    )
    patience: float = Field(
        300.0,
        ge=0,
        description="Seconds that an agent waits for a sandbox that is down, before its "
        "trajectory counts as failed.",
    )
    circuit_failures: int = Field(
        5,
        ge=1,
        description="Failures in a row after which the sandbox is left alone for circuit_seconds; "
        "then one call tries whether it is back, and all others wait for it.",
    )
    circuit_seconds: float = Field(
        5.0, gt=0, description="Seconds for which a sandbox that keeps failing is left alone."
    )
