"""Where the weights of feature networks lie; nothing is fetched unless it is asked for."""

import urllib.error
from pathlib import Path

import torch

from pidistill.errors import PidistillError


def weights_file(
    what: str, name: str, *, given: Path | None, origin: str, sha256: str, allow_download: bool
) -> Path:
    """The file of a network's weights.

    Args:
        what: The network, for errors.
        name: Name of the file, as published.
        given: The file or the folder that it is in; None means the checkpoints of torch hub, where
            the libraries keep it.
        origin: Where it is published.
        sha256: The first digits of its hash, checked after a download.
        allow_download: Whether to fetch it into the checkpoints of torch hub where it is missing.

    Raises:
        PidistillError: It is not there, or cannot be fetched.
    """
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    path = hub / name
    if given is not None:
        path = given / name if given.is_dir() else given
    if path.is_file():
        return path
    if given is not None:
        raise PidistillError(f"{path} does not exist; expected the file {name} from {origin}")
    if not allow_download:
        raise PidistillError(
            f"the features {what!r} need {name} from {origin}, and nothing is downloaded unless "
            f"you ask for it; put the file into {hub}, or say where it is"
        )
    try:
        hub.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(origin, str(path), hash_prefix=sha256, progress=False)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise PidistillError(
            f"{name} cannot be fetched from {origin}: {error}; put it into {hub} yourself"
        ) from error
    return path
