"""Files of hub repositories, through the hub client and its cache."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

from encoderlens.config.fields import check_value
from encoderlens.errors import CheckpointNotFoundError

PATIENCE = 3.0  # seconds in which the hub must answer before its cache is all that is looked at


@dataclass(frozen=True)
class Hub:
    """How the hub is asked for the files of a repository.

    Attributes:
        revision: branch, tag or commit; None for the default branch.
        token: as in ``huggingface_hub``: an access token, True for the stored one, False for none, None for the stored one if
            there is one.
        cache_dir: the folder of the cache; None for the client's own.
        local_files_only: look in the cache only.
        unreachable: why the hub could not be reached; None if that is not known.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    unreachable: str | None = None

    def check(self) -> None:
        """Refuse options of the wrong kind.

        Raises:
            ConfigError: with the name of the option.
        """
        check_value("revision", self.revision, str | None)
        check_value("token", self.token, str | bool | None)
        check_value("cache_dir", self.cache_dir, str | Path | None)
        check_value("local_files_only", self.local_files_only, bool)

    def connected(self) -> "Hub":
        """These options if the hub answers; limited to the cache if it does not, so that nobody waits for retries."""
        from huggingface_hub import constants

        if self.local_files_only or constants.HF_HUB_OFFLINE:
            return self
        why = _why_unreachable()
        return self if why is None else replace(self, local_files_only=True, unreachable=why)

    def file(self, repo: str, name: str) -> Path | None:
        """The local path of a file, downloaded if need be; None if the repository has no such file, or the cache lacks it and
        the hub is not asked.

        Raises:
            CheckpointNotFoundError: for a repository or revision that the hub does not have or does not give out.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
        )

        options: dict[str, Any] = {"revision": self.revision, "token": self.token}
        options |= {"cache_dir": self.cache_dir, "local_files_only": self.local_files_only}
        try:
            return Path(hf_hub_download(repo, name, **options))
        except (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled):
            return None
        except (HFValidationError, HfHubHTTPError) as error:
            raise CheckpointNotFoundError(f"{repo!r} is neither a folder nor a hub id that can be read: {error}") from error

    def not_found(self, repo: str, name: str) -> CheckpointNotFoundError:
        """The error for a repository of which a file that is needed was not found."""
        of = f" at revision {self.revision!r}" if self.revision else ""
        missing = f"{repo!r} is not a folder, and its {name}{of} was not found in the hub cache"
        spelling = "check the name" if self.revision is None else "check the name and the revision"
        return CheckpointNotFoundError(f"{missing}{self._where_else()}: {spelling}, {self._remedy()}")

    def _where_else(self) -> str:
        """What else was tried to find a file, for messages."""
        from huggingface_hub import constants

        if self.unreachable is not None:
            return f"; the hub could not be reached ({self.unreachable})"
        if self.local_files_only:
            return "; the hub was not asked (local_files_only=True)"
        if constants.HF_HUB_OFFLINE:
            return "; the hub was not asked (HF_HUB_OFFLINE is set)"
        return " or on the hub"

    def _remedy(self) -> str:
        if self.unreachable is not None:
            return "connect to the network once, or give a local folder"
        return "allow a download once, or give a local folder"


def _why_unreachable() -> str | None:
    """Why the hub cannot be reached, from a single short attempt; None if it answers, whatever it says.

    The attempt runs in a thread of its own, since looking up a name has no time limit.
    """
    found: list[str | None] = []
    thread = Thread(target=lambda: found.append(_problem(_ask_hub)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0] if found else f"no answer within {PATIENCE:g} s"


def _ask_hub() -> None:
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=PATIENCE)


def _problem(attempt: Callable[[], None]) -> str | None:
    """What goes wrong in an attempt; None if nothing does."""
    try:
        attempt()
    except Exception as error:  # of whatever client a user has set up for the hub
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None
