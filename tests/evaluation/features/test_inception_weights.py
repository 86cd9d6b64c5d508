"""Where Inception's weights are looked up; nothing is downloaded unless requested."""

import hashlib

import pytest
import torch

from pidistill import PidistillError
from pidistill.evaluation.features import inception
from pidistill.evaluation.features.inception import FILE as NAME
from pidistill.evaluation.features.inception import weights_file


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub folder; a download fails the test unless the test replaces it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*arguments, **options):
        pytest.fail(f"fetched {arguments}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_a_file_a_folder_and_torch_hub(tmp_path, hub):
    file = tmp_path / "other-name.pth"
    file.touch()
    assert weights_file(file, False) == file
    (tmp_path / NAME).touch()
    assert weights_file(tmp_path, False) == tmp_path / NAME
    hub.mkdir(parents=True)
    (hub / NAME).touch()
    assert weights_file(None, False) == hub / NAME
    assert weights_file(None, True) == hub / NAME


def test_what_is_missing_is_named_with_its_origin_and_its_place(tmp_path, hub):
    with pytest.raises(PidistillError) as error:
        weights_file(None, False)
    for word in (NAME, inception.ORIGIN, str(hub), "set allow_download"):
        assert word in str(error.value)
    for download in (False, True):  # a path that is given is not made up for
        with pytest.raises(PidistillError, match=f"{NAME} does not exist"):
            weights_file(tmp_path, download)
    assert not hub.exists()


def test_it_is_fetched_when_asked_and_its_hash_is_checked(tmp_path, hub, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    published = tmp_path / "published.pth"
    published.write_bytes(b"weights")
    monkeypatch.setattr(inception, "ORIGIN", published.as_uri())
    with pytest.raises(PidistillError, match=r"cannot download .*invalid hash value"):
        weights_file(None, True)
    assert not list(hub.iterdir())
    checksum = hashlib.sha256(b"weights").hexdigest()[:8]
    monkeypatch.setattr(inception, "SHA256", checksum)
    assert weights_file(None, True).read_bytes() == b"weights"
    (hub / NAME).unlink()
    monkeypatch.setattr(inception, "ORIGIN", (tmp_path / "nowhere").as_uri())
    with pytest.raises(PidistillError, match="cannot download"):
        weights_file(None, True)
