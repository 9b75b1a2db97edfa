"""Environment variables that Ray and tokenizers read when they are imported: set before, or they have no effect."""

import os
import secrets
from pathlib import Path

from raml_ray.config import ConfigError


def prepare(address: str = "local") -> None:
    """Set what the user has not. A Ray of this run's own (`local`) gets a token that dies with it and is written nowhere.

    Raises: ConfigError if a cluster is to be joined and nothing says with which token.
    """
    # Unset, the two sides of a connection can disagree about tokens: the mode is always named.
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    joins = "RAY_ADDRESS" in os.environ or address != "local"
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or Path(
        "~/.ray/auth_token"
    ).expanduser().exists()
    if mode == "token" and not has_token:
        if joins:
            raise ConfigError(
                "the cluster's token is missing: export RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, the file that holds it"
                " (RAY_AUTH_MODE=disabled joins a cluster that asks for none)"
            )
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not joins:
        # Ray's core writes an error line about the restarts of every Ray Data actor, past all Python loggers.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
