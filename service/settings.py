"""Every environment variable of the service and the worker, once: they all start with MATNAS_."""

import json
import os
from collections.abc import Mapping
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.quota import Quota

BROKERS = ("filesystem://", "redis://", "rediss://")


def _listed(text: object) -> object:
    """`a, b` as people write it; a JSON list is taken, too."""
    if not isinstance(text, str):
        return text
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [name.strip() for name in text.split(",") if name.strip()]


def _from_files(environment: Mapping[str, str]) -> dict[str, str]:
    """What stands in the files that MATNAS_<NAME>_FILE name: secrets are mounted as files."""
    return {
        name.removeprefix("MATNAS_").removesuffix("_FILE").lower(): Path(file).read_text().strip()
        for name, file in environment.items()
        if name.startswith("MATNAS_") and name.endswith("_FILE")
    }


def _a_broker(url: str) -> str:
    if not url.startswith(BROKERS):
        raise ValueError(f"a broker is one of {', '.join(BROKERS)}, with what follows")
    return url


Names = Annotated[frozenset[str], NoDecode, BeforeValidator(_listed)]

Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """What an installation may set; the defaults need no database server and no broker."""

    model_config = SettingsConfigDict(env_prefix="MATNAS_", frozen=True)

    home: Path = Path(".matnas")
    # Where data that no Python package carries are put by `matnas data`, and looked for.
    data: Path | None = None
    database_url: str = ""
    # Of the user that the URL names, where it does not say.
    database_password: SecretStr | None = None
    broker_url: Annotated[str, AfterValidator(_a_broker)] = "filesystem://"
    # Where files are kept, `home` unless it is set: a folder, or a store as in s3://bucket/prefix.
    artifacts_url: str = ""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    # The names, beside this machine's own, that a request may give as its Host.
    allowed_hosts: Names = frozenset()
    # What the client and the command line show to the service.
    api_key: SecretStr | None = None
    worker_concurrency: PositiveInt = 1
    threads: PositiveInt | None = None
    lease_seconds: PositiveFloat = 60.0
    reap_seconds: PositiveFloat = 5.0
    hint_seconds: PositiveFloat = 30.0
    max_attempts: PositiveInt = 3
    # Garbage: how often it is collected, and how long what nothing refers to is kept.
    gc_seconds: PositiveFloat = 3600.0
    keep_uploads_days: PositiveFloat = 7.0
    keep_cache_days: PositiveFloat = 30.0
    keep_answers_hours: PositiveFloat = 24.0
    # Each key's; nobody is counted while there are no keys. Nothing is no limit.
    rate_limit: Annotated[str, Field(pattern=r"^$|^[1-9][0-9]{0,8}/(second|minute|hour|day)$")] = (
        "6000/minute"
    )
    quota_live_searches: NonNegativeInt | None = None
    quota_compute_seconds_a_day: NonNegativeFloat | None = None
    quota_artifact_bytes: NonNegativeInt | None = None
    max_upload_bytes: PositiveInt = 256 * 1024 * 1024
    max_body_bytes: PositiveInt = 1024 * 1024
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    # A file that a worker touches as long as it looks for lost work.
    heartbeat: Path | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Each setting is a variable, or the content of the file that <variable>_FILE names."""
        files = InitSettingsSource(settings_cls, init_kwargs=_from_files(os.environ))
        return init_settings, env_settings, files

    # Webhooks: how long one message may take, how often and how soon it is sent again, and after
    # how many failures in a row nothing more is sent.
    webhook_seconds: PositiveFloat = 10.0
    webhook_attempts: PositiveInt = 8
    webhook_retry_seconds: PositiveFloat = 5.0
    webhook_failures: PositiveInt = 30
    # Networks that are not public and that messages may go to all the same.
    webhook_networks: Networks = ()

    @property
    def data_folder(self) -> Path:
        """Where fetched data are: `data` under `home` unless another folder is set."""
        return (self.data or self.home / "data").resolve()

    @property
    def quota(self) -> Quota:
        """What holds for every key that has no quota of its own."""
        return Quota(
            live_searches=self.quota_live_searches,
            compute_seconds_a_day=self.quota_compute_seconds_a_day,
            artifact_bytes=self.quota_artifact_bytes,
        )

    @property
    def sees_data(self) -> bool:
        """Whether what is not in the data folder here is nowhere: the workers' may be elsewhere."""
        return self.data is None or self.data.is_dir()

    @property
    def database(self) -> str:
        """Where the rows are: a SQLite file under `home` unless a URL is set."""
        if not self.database_url:
            return f"sqlite:///{self.home.resolve() / 'matnas.db'}"
        parts = urlsplit(self.database_url)
        if self.database_password is None or parts.password is not None or not parts.username:
            return self.database_url
        password = quote(self.database_password.get_secret_value(), safe="")
        place = parts.netloc.replace("@", f":{password}@", 1)
        return parts._replace(netloc=place).geturl()

    @property
    def fresh_seconds(self) -> float:
        """How long ago a worker may have told of itself, which it does with every sweep."""
        return 3 * self.reap_seconds + 5  # one sweep may be slow

    @property
    def trial_threads(self) -> int:
        """How many threads one trial may use: its share of the cores."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.worker_concurrency)


@cache
def get_settings() -> Settings:
    """Read the environment once for the process."""
    return Settings()
