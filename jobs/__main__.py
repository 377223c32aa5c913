"""The `nightshift` command: one place turns our errors into one line and an exit code."""

import os
import sys

import click

from cluster.errors import ClusterError
from cluster.files import is_full
from data_shards.errors import ShardError
from jobs.cli.main import cli
from jobs.errors import JobError
from trainer.errors import TrainerError

OURS = (ClusterError, ShardError, TrainerError, JobError)
FAILED = 1


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with 0 done, 1 the thing asked for failed, 2 wrong usage."""
    try:
        cli.main(args=arguments, prog_name="nightshift", standalone_mode=False)
    except OURS as error:
        _leave(str(error), FAILED)
    except BrokenPipeError:  # whoever read us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        if is_full(error):
            _leave(f"the storage is full ({error.strerror}); free some space and repeat the command", FAILED)
        if error.filename is None:
            raise
        _leave(f"{os.fsdecode(error.filename)}: {error.strerror}; check the path and who may use it", FAILED)
    except click.Abort:
        _leave("stopped by Ctrl-C", 128 + 2)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _leave(error.format_message(), error.exit_code)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)


def _leave(line: str, code: int) -> None:
    click.echo(f"Error: {' '.join(line.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
