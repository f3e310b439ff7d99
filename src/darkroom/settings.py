"""Every setting, with its default and its help, once. Flags beat DARKROOM_* variables, which beat darkroom.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


class Settings(BaseSettings):
    """Settings of one process, frozen. `Settings(port=9000)` is how flags are laid over the rest."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", toml_file="darkroom.toml", frozen=True, extra="forbid", env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    data_dir: Path = Field(Path("data"), description="where rows, pictures, secrets and measured costs are kept")
    public_url: str = Field("", description="base URL that clients see, when a proxy stands before the server")
    proxy_headers: bool = Field(False, description="believe X-Forwarded-* of a proxy on this machine; only where every call comes through one")
    model: str = Field(
        "auto",
        description="the model to serve: a known name, a folder, a .safetensors file or a hub id; several with commas between, "
        "the first is the default; auto takes stable-diffusion-xl-base-1.0 where it is installed, else the models in the box",
    )
    models: dict[str, str] = Field({}, description="further models by name: a path or a hub id each, as `darkroom models add` keeps them")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    backend: Literal["auto", "eager", "openvino", "int8", "compile"] = Field(
        "auto", description="what runs the nets: eager (PyTorch, the reference), compile (torch.compile, for GPUs), openvino (CPU), int8 (CPU: openvino "
        "with the denoiser in int8, faster and lossy); auto takes the faster of eager and openvino on a CPU, as measured once "
        "while a server is idle, and else eager"
    )
    graphs_dir: Path | None = Field(None, description="where models converted for openvino are kept; the data folder where not set")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 leaves the choice to torch")
    exact: bool = Field(False, description="bit-equal pictures whoever shares the batch, at the price of speed")
    max_lora_bytes: int = Field(2 * 2**30, ge=0, description="bytes of LoRAs kept in memory for later requests, beside those in use")
    max_rows: int = Field(16, ge=2, description="rows of one forward pass at most (a guided sample takes two)")
    max_queue: int = Field(1000, ge=1, description="jobs that wait or run at once, of which one key may have three quarters; more are answered with 429")
    max_streams: int = Field(2000, ge=1, description="open streams of events at once, of which one key may have three quarters; more are answered with 429")
    worker_timeout: float = Field(
        45, gt=0, description="seconds without a sign of life or work after which the worker is ended and its jobs are tried again"
    )
    max_attempts: int = Field(3, ge=1, description="times that a worker may die on a job before the job fails")
    max_concurrent: int = Field(256, ge=1, description="open requests at once, of which one key may have three quarters; more are answered with 429")
    max_connections: int = Field(
        0, ge=0, description="open connections at most, of which one address may have three quarters; more are answered with 503; "
        "0 takes three quarters of the open files that this process may have"
    )
    head_timeout: float = Field(
        15, gt=0, description="seconds that the head of a request may take to arrive, also the first one of a connection; a client has four times as long "
        "to read something of a reply"
    )
    max_body_bytes: int = Field(20 * 2**20, ge=2**16, description="bytes of a request body at most")
    body_timeout: float = Field(60, gt=0, description="seconds that a request body may take to arrive")
    max_input_pixels: int = Field(40_000_000, ge=2**14, description="pixels of an uploaded picture at most, before it is decoded")
    max_pixels: int = Field(2048 * 2048, ge=2**14, description="pixels of a picture made here at most")
    cors_origins: list[str] = Field(["*"], description="origins that browsers may call from")
    embed_prompt: bool = Field(True, description="write the prompt into the PNG; X-Embed-Prompt: false does the same for one request")
    preload: bool = Field(True, description="load the models at the start, as far as they fit into the memory; false loads each at its first use")
    memory_budget: float = Field(
        0, ge=0, description="GB that the weights of all models may take; the least recently used idle one leaves; 0 means 80 % of the device's memory"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="least that standard error tells; what pages and probes read is told at debug alone; warning for "
        "`generate` and `edit` where not set",
    )
    load_timeout: float = Field(1800, gt=0, description="seconds that a model may take to load before it counts as failed")
    password: str = Field("", repr=False, description="of the dashboard, where nobody can follow the one-time link; at least 10 characters")
    password_file: Path | None = Field(None, description="a file that holds the password of the dashboard, which has at least 10 characters")
    webhook_allow_private: bool = Field(
        False, description="let webhooks go to private addresses and over plain http; only where every client may reach what this machine can"
    )

    database_url: str = Field("", description="PostgreSQL as postgresql://user:password@host/name; an SQLite file in the data folder where empty")
    shared_dir: Path | None = Field(None, description="where pictures and secrets are kept, for gateways that share a database; the data folder where not set")
    lease_seconds: float = Field(60, ge=1, description="seconds after which another gateway takes over the jobs of one that has gone silent")
    keep_days: float = Field(30, ge=0, description="days that jobs and their pictures are kept; 0 keeps them for ever")
    keep_gb: float = Field(20, ge=0, description="GB that all pictures may take, before the oldest go; 0 means no bound")
    result_cache: bool = Field(True, description="a repeated request that names its seed gets the picture that is here; Cache-Control: no-cache skips it")
    key_concurrent: int = Field(0, ge=0, description="jobs of a key that run at once, more wait; 0 means no limit; `darkroom key limits` changes it for one")
    key_queued: int = Field(0, ge=0, description="jobs of a key that wait or run at once; more are answered with 429; 0 means no limit")
    key_pictures_per_minute: int = Field(0, ge=0, description="pictures a key may ask for in a minute; 0 means no limit")
    key_pixel_steps_per_day: int = Field(0, ge=0, description="pixels x steps a key may use in a day (UTC); 0 means no limit")

    @property
    def graphs(self) -> Path:
        """The folder of converted models."""
        return self.graphs_dir or self.data_dir / "graphs"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
