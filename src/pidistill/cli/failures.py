"""What the world does to a command, in one line: a full disk, a vanished drive, no memory."""

import errno
import sys

RESUME = "what was saved before stays: add --resume, or run the comparison again, to go on"

REMEDIES = {
    errno.ENOSPC: f"make room; {RESUME}",
    errno.EDQUOT: f"make room; {RESUME}",
    errno.EIO: f"is the drive still there? {RESUME}",
    errno.ESTALE: f"is the drive still there? {RESUME}",
    errno.ENOTCONN: f"is the drive still there? {RESUME}",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "see to its permissions, or choose another",
}

OUT_OF_MEMORY = (
    "lower --batch-size (batch_size in a recipe); a run can go on by --resume with a higher "
    "--gradient-accumulation-steps, since what was saved before stays"
)

LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


def one_line(error: Exception) -> str | None:
    """What to print for an error that is nobody's bug; None for any other."""
    from pidistill.errors import PidistillError

    if isinstance(error, PidistillError):
        return str(error)
    if isinstance(error, OSError):
        remedy = REMEDIES.get(error.errno or 0)
        parts = (error.strerror or str(error), error.filename, remedy)
        return ": ".join(str(part) for part in parts if part)
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error, text):
        return f"out of memory: {text[:200] or 'no more is to be had'}; {OUT_OF_MEMORY}"
    if isinstance(error, RuntimeError) and any(word in text.lower() for word in LOST_PEER):
        return f"another process of this run is gone ({text[:200]}); {RESUME}"
    return None


def _is_torch_out_of_memory(error: Exception, text: str) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text
