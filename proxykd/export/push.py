"""An exported folder on a hub, by huggingface_hub: its own environment has the token (HF_TOKEN) and the address."""

from __future__ import annotations

from pathlib import Path

from proxykd.config import RunConfig
from proxykd.errors import ConfigError, ModelError

OURS = ("READY", "manifest.json")
"""Of the folder, what is nobody else's business."""


def require_terms(config: RunConfig) -> None:
    """Raises:
    ConfigError: nobody has stated the teacher's terms.
    """
    if config.teacher.terms is None:
        raise ConfigError(
            f"teacher.terms is not set: whether what learned from {config.teacher.model} may be passed on, its "
            f"provider's terms say. Check them, then: proxykd run CONFIG --set teacher.terms='what you found', which "
            f"changes nothing else of a finished run"
        )


def push(config: RunConfig, folder: Path, repository: str, public: bool) -> str:
    """Uploads an export of a run of `config` to `owner/name`, which is made where it is not there, private unless
    `public`; returns the commit's address.

    Raises:
        ConfigError: nobody has stated the teacher's terms.
        ModelError: the hub refuses, in its words.
    """
    require_terms(config)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=list(OURS)))
    except LocalTokenNotFoundError:
        raise ModelError(f"{repository}: the hub asks for a token; set HF_TOKEN to one that may write there") from None
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise ModelError(f"{repository}: the hub refuses: {error}") from error
