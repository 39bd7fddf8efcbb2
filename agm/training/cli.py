"""The command `agm`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import torch

import agm
from agm.training.commands.datasets import data_group
from agm.training.commands.information import info_command
from agm.training.commands.many_runs import compare_command, competition_command, tune_command
from agm.training.commands.one_run import evaluate_command, plot_command, train_command
from agm.training.commands.outcome import DIVERGED, INTERRUPTED, USER_ERROR
from agm.training.commands.report import report_command
from agm.training.commands.usage import advice
from agm.training.errors import DivergedError, UserError
from agm.training.printable import printable, quiet_streams

__all__ = ["cli", "run"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(agm.__version__, prog_name="agm")
def cli() -> None:
    """Balanced multimodal training by Adaptive Gradient Modulation (AGM).

    Begin with the bundled data, then give your own: an .npz with one array per modality, target and split.

    \b
    agm train                                     train on the bundled AV-Digits, in half a minute
    agm compare --methods joint,agm               does AGM help? five seeds each, with intervals
    agm train --dataset mine.npz                  your own data; what was read is printed first
    agm report RUN                                one page: curves, confusions, contributions, samples
    agm tune --setting alpha=0.5,1,1.5 --validation 0.2
                                                  choose a setting without looking at the test split
    agm competition --methods joint,agm           what each modality loses to the competition
    agm data layouts                              datasets of the field, read as they lie on a disk
    agm info                                      versions, devices, backends
    """


for _command in (
    train_command,
    compare_command,
    tune_command,
    competition_command,
    evaluate_command,
    plot_command,
    report_command,
    info_command,
    data_group,
):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; mistakes of the user become one line on stderr.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 2 for a mistake of the user, 1 for a run that diverged, 130 after Ctrl-C.
    """
    with quiet_streams():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = cli.main(args=arguments, prog_name="agm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        return USER_ERROR
    except click.ClickException as error:
        message = error.format_message()
        if isinstance(error, click.UsageError):
            where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            told = advice(error)
            message = f"{message.rstrip('.')}. {told}{where}" if told else message + where
        return _fail(message, USER_ERROR)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except UserError as error:
        return _fail(str(error), DIVERGED if isinstance(error, DivergedError) else USER_ERROR)
    except OSError as error:
        return _fail(_of_system(error), USER_ERROR)
    except Exception as error:
        if isinstance(error, ValueError) and "null byte" in str(error):
            return _fail("Expected a path without NUL characters, but got one that has some. Correct it.", USER_ERROR)
        if not _is_memory(error):
            raise
        return _fail(
            "Expected the run to fit into memory, but it does not. Use a smaller --batch-size, --width or --jobs, or "
            "less data.",
            USER_ERROR,
        )
    return status if isinstance(status, int) else 0


def _of_system(error: OSError) -> str:
    """What the system refused: a full disk, a folder that cannot be written, a file in the way ..."""
    name = error.filename2 or error.filename
    place = f" {str(name)!r}" if name is not None else ""
    reason = error.strerror or str(error) or type(error).__name__
    return (
        f"Expected to read or write{place}, but got: {reason}. Make room, or correct the path or its permissions. "
        "The same command, or agm train --resume RUN, goes on from what is finished."
    )


def _is_memory(error: Exception) -> bool:
    found = str(error)
    told = isinstance(error, RuntimeError) and ("not enough memory" in found or "can't allocate" in found)
    return told or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def _fail(message: str, status: int) -> int:
    print("agm: error: " + printable(" ".join(message.split())), file=sys.stderr)
    return status
