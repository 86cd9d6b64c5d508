"""The command line: parsing and printing only, one small file a verb.

A verb's module is imported when it is called, and imports torch only when it runs, so that help
comes at once.
"""

import importlib
import os
import signal
from collections.abc import Mapping

import click

from pidistill.processes import is_first_to_fail, is_main_process, num_processes

VERBS = {
    "quickstart": "A first result: bundled digits teacher, one-step student, report.",
    "train-teacher": "Train a diffusion model on a data set.",
    "distill": "Distil a teacher into a one-step student.",
    "sample": "Draw samples from a student or a teacher.",
    "evaluate": "Measure a student against its teacher and a reference.",
    "compare": "Several runs on equal terms: train what is missing, one table.",
    "export": "Turn a student into a diffusers pipeline or an ONNX file.",
    "inspect": "Say what a teacher or a run folder is.",
}

SHARED = ("train-teacher", "distill", "sample", "evaluate")
"""Verbs whose work several processes share (torchrun, accelerate launch)."""

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

LONGEST_LINE = 800
"""Characters of an error that people still read."""


class _Verbs(click.Group):
    """A group that imports a verb's module only when it needs the verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"pidistill.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_Verbs,
    name="pidistill",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="pidistill")
@click.pass_context
def pidistill(context: click.Context) -> None:
    """Diffusion models that sample in one network evaluation, by physics informed distillation."""
    verb = context.invoked_subcommand
    if num_processes() > 1 and verb not in SHARED:
        raise click.UsageError(
            f"{verb} works in one process, and {num_processes()} were started; leave out the "
            f"launcher, which is for {', '.join(SHARED)}"
        )


def main(
    arguments: list[str] | None = None, exit_codes: Mapping[type[Exception], int] | None = None
) -> int:
    """Run the command line and return its exit code: 0 done, 2 bad input, 130 interrupted.

    Bad input, and whatever a run cannot go on with, is one line on stderr that begins `error:`.
    Interrupted means by Ctrl-C or any other signal that asks to stop; a run has saved its state.

    Args:
        arguments: Those of the command line; None takes them from there.
        exit_codes: Exit codes of errors of certain types, in place of 2.
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

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        code = pidistill.main(arguments, prog_name="pidistill", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 0
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except Exception as error:
        if interrupted:  # a library that was being imported made another error of it
            return _interrupted()
        from pidistill.cli.failures import one_line

        line = one_line(error)
        if line is None and is_first_to_fail():
            raise
        if line is not None:
            _fail(line)
        codes = [code for kind, code in (exit_codes or {}).items() if isinstance(error, kind)]
        return codes[0] if codes else EXIT_BAD_INPUT
    finally:
        signal.signal(signal.SIGINT, previous)
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    """Print the error, unless another of several processes did already."""
    if is_first_to_fail():
        line = " ".join(message.split())
        if len(line) > LONGEST_LINE:  # of a value that is beyond reason
            line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 4 :]}"
        click.echo(f"error: {line}", err=True)
    return EXIT_BAD_INPUT


def _interrupted() -> int:
    if is_main_process():
        click.echo("interrupted", err=True)
    return EXIT_INTERRUPTED
