"""Uploads exports to the Hugging Face hub."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from pidistill.errors import PidistillError, one_line
from pidistill.export.card import CARD
from pidistill.files import write_text

CONFLICT = 409


def require_repo_id(repo_id: str) -> None:
    """Raise `PidistillError` unless `repo_id` is a valid OWNER/NAME."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PidistillError(
            f"repository {repo_id!r} is not OWNER/NAME: {one_line(error)}"
        ) from error
    if "/" not in repo_id:
        raise PidistillError(
            f"repository {repo_id!r} has no owner; expected OWNER/NAME, as in me/{repo_id}"
        )


def push(path: str | Path, repo_id: str, *, card: str, private: bool) -> str:
    """Upload an export with its card, in one commit.

    Args:
        path: The export, a folder or a file.
        repo_id: The repository, created if it does not exist.
        card: The text of the card.
        private: Create the repository as private, and refuse an existing public one.

    Returns:
        The URL of the repository.

    Raises:
        PidistillError: The upload failed; the message says how to retry it.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _upload(path, repo_id, private)
        with tempfile.TemporaryDirectory() as temporary:
            shutil.copy2(path, temporary)
            write_text(Path(temporary) / CARD, card)
            return _upload(Path(temporary), repo_id, private)
    except PidistillError:
        raise
    except Exception as error:  # network and hub can fail in any way
        raise PidistillError(
            f"{path} was written, but the upload to {repo_id} failed: {one_line(error)}; retry "
            f"with: hf upload {repo_id} {path}"
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
                f"{repo_id} exists and is public; nothing was uploaded: set private=False, or "
                "choose another repository"
            ) from error
    api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message="Student exported by pidistill"
    )
    return f"{api.endpoint}/{repo_id}"
