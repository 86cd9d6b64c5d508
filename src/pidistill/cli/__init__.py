"""The command line: parsing and printing only, one small file a verb.

A verb's module is imported when it is called, and imports torch only when it runs, so that help
comes at once.
"""

import functools
import importlib
import os
import signal
import sys
import traceback

import click

from pidistill import __version__
from pidistill.errors import PidistillError
from pidistill.processes import is_first_to_fail, is_main_process, num_processes

VERBS = {
    "quickstart": "A first result: bundled digits teacher, one-step student, report.",
    "train-teacher": "Train a diffusion model on a data set.",
    "train-features": "Train a feature network for metrics on your own data.",
    "distill": "Distil a teacher into a one-step student.",
    "sample": "Draw samples from a student or a teacher.",
    "evaluate": "Measure a student against its teacher and a reference.",
    "compare": "Compare runs on equal terms: train what is missing, print one table.",
    "export": "Turn a student into a diffusers pipeline or an ONNX file.",
    "inspect": "Describe a teacher or a data set, or say where a run stands.",
}
EXAMPLES = {
    "quickstart": "--out runs/quickstart",
    "train-teacher": "folder:photos --out runs/teacher",
    "train-features": "folder:photos --out runs/features",
    "distill": "--teacher digits --out runs/digits",
    "sample": "runs/digits -n 100 --out samples.png",
    "evaluate": "runs/digits --reference digits",
    "compare": "--recipe examples/compare.toml --out runs/comparison",
    "export": "runs/digits --to onnx --out student.onnx",
    "inspect": "runs/digits",
}
SHARED = ("train-teacher", "distill", "sample", "evaluate")
"""Verbs whose work several processes share (torchrun, accelerate launch)."""

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

LONGEST_LINE = 800
"""Characters of an error that people still read."""
LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
"""What torch.distributed says when another process has ended."""


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.find_root().obj["debug"] = value


DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    envvar="PIDISTILL_DEBUG",
    callback=_set_debug,
    help="Show the traceback behind an error; so does PIDISTILL_DEBUG=1.",
)


class _Verbs(click.Group):
    """A group that imports a verb's module only when it needs the verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(cmd_name) if cmd_name in VERBS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@functools.cache
def _load(verb: str) -> click.Command:
    """The command of a verb, with what every verb has: `--debug` and an example."""
    name = verb.replace("-", "_")
    command: click.Command = getattr(importlib.import_module(f"pidistill.cli.{name}"), name)
    command.params.append(DEBUG)
    example = f"Example: pidistill {verb} {EXAMPLES[verb]}"
    command.epilog = "\n\n".join(filter(None, [command.epilog, example]))
    return command


@click.group(
    cls=_Verbs,
    name="pidistill",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(__version__)
@click.pass_context
def pidistill(context: click.Context) -> None:
    """Diffusion models that sample in one network evaluation, by physics informed distillation."""
    verb = context.invoked_subcommand
    if num_processes() > 1 and verb not in SHARED:
        raise click.UsageError(
            f"{verb} works in one process, and {num_processes()} were started; run it without the "
            f"launcher, which is for {', '.join(SHARED)}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 bad input, 130 interrupted.

    Bad input, and anything that stops a run, is one line on stderr that begins `error:`.
    Interrupted means by Ctrl-C or any other signal that asks to stop; a run has saved its state.

    Args:
        arguments: Those of the command line; None takes them from there.

    Raises:
        Exception: A bug, here or in a user's network, which keeps its traceback.
    """
    # Threads that spin for long while they wait are 20 times slower wherever something else needs
    # the cores; threads that do not spin at all are twice as slow where nothing does.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    arguments = sys.argv[1:] if arguments is None else arguments
    state = {"debug": False, "arguments": arguments}
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        code = pidistill.main(arguments, prog_name="pidistill", standalone_mode=False, obj=state)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 0
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except Exception as error:
        if interrupted:  # a library that was being imported made another error of it
            return _interrupted()
        return _fail(error, bool(state["debug"]))
    finally:
        signal.signal(signal.SIGINT, previous)
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    if is_main_process():
        click.echo("interrupted", err=True)
    return EXIT_INTERRUPTED


def _fail(error: Exception, debug: bool) -> int:
    """Print the error, unless another of several processes has; a bug is raised again."""
    if not is_first_to_fail():
        return EXIT_BAD_INPUT
    line = one_line(error)
    if line is None:
        raise error
    if debug:
        traceback.print_exception(error)
    if len(line) > LONGEST_LINE:  # of a value that is beyond reason
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 4 :]}"
    click.echo(f"error: {line}", err=True)
    return EXIT_BAD_INPUT


def one_line(error: Exception) -> str | None:
    """What to print for bad input, and for what a machine may do to a run; None for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, click.ClickException):
        return " ".join(error.format_message().split())
    if isinstance(error, (PidistillError, OSError)):
        return text
    if _is_out_of_memory(error):
        return f"out of memory: {text[:200]}; lower the batch size, or cut it into micro-batches"
    lost = num_processes() > 1 and any(word in text.lower() for word in LOST_PEER)
    if isinstance(error, RuntimeError) and lost:
        return f"another process of this run is gone: {text[:200]}"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    on_the_cpu = "DefaultCPUAllocator: can't allocate memory" in str(error)
    return on_the_cpu or isinstance(error, torch.OutOfMemoryError)
