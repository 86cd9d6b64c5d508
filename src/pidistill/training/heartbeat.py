"""A small file that says how a run is doing, for whoever looks at its folder from outside.

Nothing depends on it: a run that cannot write it goes on. Reading it imports no torch.
"""

import collections
import contextlib
import datetime
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidistill.files import replacing

if TYPE_CHECKING:
    from pidistill.methods.base import Preparation

log = logging.getLogger("pidistill")

HEARTBEAT_FILE = "heartbeat.json"
"""Name in a run folder."""

INTERVAL = 10.0
"""Seconds between two beats, at least."""

RECENT_BEATS = 7
"""The recent speed is that of the last so many beats, a minute."""


class Heartbeat:
    """Writes the file of one run: when a part of it begins and ends, and now and then meanwhile.

    The file is a JSON object. Always there: `state` (preparing, training, finished, stopped or
    failed), `step`, `max_train_steps`, `images`, `pid`, `host`, `started` and `time` (UTC, ISO
    8601). Where known: `loss`; `images_per_second` since this process began to train;
    `recent_images_per_second` over the last minute; `remaining_seconds` at that speed;
    `preparation` (`title`, `done`, `total`, `unit`); `error`, why it failed.
    """

    def __init__(self, folder: Path | None, max_train_steps: int, batch_size: int) -> None:
        """Write to `folder`; None writes nothing, for a process that is not the first."""
        self._path = None if folder is None else folder / HEARTBEAT_FILE
        self._max_train_steps, self._batch_size = max_train_steps, batch_size
        self._step = 0
        self._facts: dict[str, Any] = {}
        self._started = _now()
        self._last = -math.inf
        self._beats: collections.deque[tuple[float, int]] = collections.deque(maxlen=RECENT_BEATS)
        self._began = (0.0, 0)
        self._warned = False

    @contextlib.contextmanager
    def training(self, step: int) -> Iterator[None]:
        """Say that training goes on from `step`, and at the end of the block how it ended."""
        self._step, self._facts = step, {}
        self._began = (time.monotonic(), step)
        self._beats.append(self._began)
        self._write("training")
        with self._failing():
            yield
            done = self._step >= self._max_train_steps
            self._write("finished" if done else "stopped")

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Say at the end of the block how preparation ended, unless it is done."""
        with self._failing():
            yield

    def prepared(self, progress: "Preparation") -> None:
        """Say how far preparation is."""
        self._facts = {
            "preparation": {
                "title": progress.title,
                "done": progress.done,
                "total": progress.total,
                "unit": progress.unit,
            }
        }
        self._write_in_time("preparing")

    def trained(self, step: int, loss: float) -> None:
        """Say that `step` is done."""
        self._step, self._facts = step, {"loss": loss}
        self._write_in_time("training")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            self._write("stopped")
            raise
        except BaseException as error:
            self._facts["error"] = " ".join(str(error).split()) or type(error).__name__
            self._write("failed")
            raise

    def _write_in_time(self, state: str) -> None:
        if time.monotonic() - self._last >= INTERVAL:
            self._write(state)

    def _write(self, state: str) -> None:
        self._last = time.monotonic()
        if self._path is None:
            return
        facts = {
            "state": state,
            "step": self._step,
            "max_train_steps": self._max_train_steps,
            "images": self._step * self._batch_size,
            **self._facts,
            **({} if state == "preparing" else self._speed()),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "time": _now(),
        }
        try:
            replace_text(self._path, json.dumps(facts, indent=2) + "\n")
        except OSError as error:
            if not self._warned:
                log.warning("cannot write the heartbeat of this run, which goes on: %s", error)
            self._warned = True

    def _speed(self) -> dict[str, float]:
        """Images a second, overall and lately, and the seconds that are left; empty at first."""
        now = (self._last, self._step)
        if self._step == self._began[1]:
            return {}
        overall = self._images_per_second(self._began, now)
        recent = self._images_per_second(self._beats[0], now)
        self._beats.append(now)
        left = (self._max_train_steps - self._step) * self._batch_size
        return {
            "images_per_second": overall,
            "recent_images_per_second": recent,
            **({"remaining_seconds": left / recent} if recent else {}),
        }

    def _images_per_second(self, first: tuple[float, int], last: tuple[float, int]) -> float:
        steps, seconds = last[1] - first[1], last[0] - first[0]
        return round(steps * self._batch_size / max(seconds, 1e-9), 3)


def replace_text(path: Path, text: str) -> None:
    """Write what is replaced soon: whole for every reader, but not flushed to the disk.

    Waiting for the disk (`pidistill.storage`) would cost training time, and a heartbeat that a
    power cut takes is no loss.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_heartbeat(folder: Path) -> dict[str, Any]:
    """The heartbeat of the run in `folder`; empty where there is none that can be read."""
    try:
        content = json.loads((folder / HEARTBEAT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
