"""The one exception that the command line turns into a single `error:` line."""


class PidistillError(ValueError):
    """Bad input or a run that cannot go on.

    The message is one line that names the offending value, what was expected and what to do.
    """


class FolderHeldError(PidistillError):
    """Another process holds the run folder."""


def one_line(error: BaseException) -> str:
    """The message of a foreign exception, cut to fit one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
