"""The one exception that the command line turns into a single `error:` line."""


class PidistillError(ValueError):
    """Bad input or a run that cannot go on.

    The message is one line that names the offending value, what was expected and what to do.
    """


class FolderHeldError(PidistillError):
    """Another process holds the run folder."""
