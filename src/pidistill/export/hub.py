"""Exports on the Hugging Face hub."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from pidistill.errors import PidistillError
from pidistill.files import write_text

CARD = "README.md"
CONFLICT = 409


def require_repo_id(repo_id: str) -> None:
    """Raise `PidistillError` unless `repo_id` is a possible OWNER/NAME: asked before the work."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = str(error).splitlines()[0]
        raise PidistillError(f"--push-to-hub {repo_id!r} is not OWNER/NAME: {reason}") from None
    if "/" not in repo_id:
        raise PidistillError(
            f"--push-to-hub {repo_id!r} names no owner; expected OWNER/NAME, as in me/{repo_id}"
        )


def push(path: Path, repo_id: str, *, card: str, private: bool) -> str:
    """Upload an export, a folder or a file, with its card, in one commit.

    Args:
        path: The export.
        repo_id: The repository, which is made if it is not there.
        card: The text of the card.
        private: Whether a new repository is private. One that is there has to be as private.

    Returns:
        The address of the repository.

    Raises:
        PidistillError: The upload failed; the message says how to repeat it alone.
    """
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = path
            if path.is_file():
                folder = Path(temporary)
                shutil.copy2(path, folder)
                write_text(folder / CARD, card)
            return _upload(folder, repo_id, private)
    except PidistillError:
        raise
    except Exception as error:  # whatever the network and the hub come up with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PidistillError(
            f"{path} is written, but the upload to {repo_id} failed: {reason}; repeat it with: "
            f"hf upload {repo_id} {path}"
        ) from error


def _upload(folder: Path, repo_id: str, private: bool) -> str:
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code != CONFLICT:
            raise
        if private and not api.model_info(repo_id).private:
            raise PidistillError(
                f"{repo_id} exists and is public; nothing was uploaded: add --public to upload "
                "there, or choose another repository"
            ) from error
    api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message="Student exported by pidistill"
    )
    return f"{api.endpoint}/{repo_id}"
