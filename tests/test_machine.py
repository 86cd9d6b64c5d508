import subprocess

import pidistill
from pidistill.machine import machine


def test_a_checkout_says_its_commit(tmp_path, monkeypatch):
    package = tmp_path / "src" / "pidistill" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    monkeypatch.setattr(pidistill, "__file__", str(package))
    assert "commit" not in machine()

    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=e")
        done = subprocess.run(
            ["git", *who, "-C", str(tmp_path), *arguments], check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    git("init")
    assert "commit" not in machine()  # there is none yet
    git("add", "-A")
    git("commit", "-m", "first")
    assert machine()["commit"] == git("rev-parse", "--short", "HEAD")
    package.write_text("changed")
    assert machine()["commit"].endswith("-dirty")
