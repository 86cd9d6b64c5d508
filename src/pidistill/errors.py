"""The exception that the command line reports as a single `error:` line."""


class PidistillError(ValueError):
    """Bad input, or a run that cannot continue.

    The message is one line with the offending value, what was expected and what to do.
    """


class FolderHeldError(PidistillError):
    """Another process holds the run folder."""


def one_line(error: BaseException) -> str:
    """The message of a foreign exception, shortened to one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
