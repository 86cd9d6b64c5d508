import os
import socket
import subprocess
import sys
import time

from pidistill.files import clear_leftovers, temporary_name


def test_leftovers_of_killed_processes_are_removed(tmp_path, monkeypatch):
    def left(host, process, age=0):
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        monkeypatch.setattr(os, "getpid", lambda: process)
        path = temporary_name(tmp_path / "weights.safetensors")
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
        return path

    living = os.getpid()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    killed = left("here.lan", process.pid)
    writing = left("here.lan", living, age=1_000_000)
    elsewhere, forgotten = left("there.lan", process.pid), left("there.lan", 1, age=1_000_000)
    monkeypatch.setattr(socket, "gethostname", lambda: "here.lan")
    clear_leftovers(tmp_path)
    assert not killed.exists()
    assert not forgotten.exists()
    assert sorted(tmp_path.iterdir()) == sorted([writing, elsewhere])
