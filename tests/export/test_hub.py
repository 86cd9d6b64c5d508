"""Uploads, up to the call that would reach the network."""

import contextlib
import re
import types

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from pidistill import PidistillError
from pidistill.export.hub import push, require_repo_id


@pytest.fixture
def hub(monkeypatch):
    """A hub that records requests."""
    calls = []

    def create_repo(self, repo_id, **options):
        calls.append(("create_repo", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, **options):
        calls.append(("upload_folder", repo_id, sorted(p.name for p in folder_path.iterdir())))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return calls


def http_error(status):
    """A response of the hub, of which only the status matters."""
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} for the address")
    error.response = types.SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_is_uploaded_as_it_is(tmp_path, hub, private):
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "model_index.json").write_text("{}")
    url = push(tmp_path, "me/small", card="card", private=private)
    assert url.endswith("/me/small")
    assert hub == [
        ("create_repo", "me/small", {"private": private}),
        ("upload_folder", "me/small", ["README.md", "model_index.json"]),
    ]


def test_a_file_is_uploaded_with_its_card(tmp_path, hub):
    (tmp_path / "student.onnx").write_bytes(b"x")
    push(tmp_path / "student.onnx", "me/small", card="card", private=True)
    assert hub[1] == ("upload_folder", "me/small", ["README.md", "student.onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


@pytest.mark.parametrize(
    ("there", "private", "uploaded"),
    [("public", True, False), ("public", False, True), ("private", True, True)],
)
def test_a_private_upload_never_goes_to_a_public_repository(
    tmp_path, hub, monkeypatch, there, private, uploaded
):
    def create_repo(self, repo_id, **options):
        raise http_error(409)

    info = types.SimpleNamespace(private=there == "private")
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "model_info", lambda self, repo_id: info)
    refused = pytest.raises(PidistillError, match="me/small exists and is public")
    with contextlib.nullcontext() if uploaded else refused:
        push(tmp_path, "me/small", card="", private=private)
    assert hub == ([("upload_folder", "me/small", [])] if uploaded else [])


def test_a_failed_upload_says_how_to_repeat_it(tmp_path, hub, monkeypatch):
    def upload_folder(self, **options):
        raise http_error(403)

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    with pytest.raises(PidistillError, match=r"403 .*hf upload me/small /"):
        push(tmp_path, "me/small", card="", private=True)


@pytest.mark.parametrize("repo_id", ["small", "a/b/c", "me/sm all", "", "me/--x"])
def test_names_are_checked_before_the_work(repo_id):
    with pytest.raises(PidistillError, match=re.escape(repr(repo_id))):
        require_repo_id(repo_id)
    require_repo_id("me/small-1.0")
