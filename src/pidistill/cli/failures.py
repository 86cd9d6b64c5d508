"""What the command line says of an error that is nobody's bug, in one line."""

import sys

import click

from pidistill.errors import PidistillError

LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


def one_line(error: Exception) -> str | None:
    """What to print for bad input, and for what a machine may do to a run; None for a bug."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, (PidistillError, OSError)):
        return str(error)
    text = " ".join(str(error).split())[:200]
    if _is_out_of_memory(error, text):
        return f"out of memory: {text}; lower the batch size, or cut it into more micro-batches"
    if isinstance(error, RuntimeError) and any(word in text.lower() for word in LOST_PEER):
        return f"another process of this run is gone: {text}"
    return None


def _is_out_of_memory(error: Exception, text: str) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text
