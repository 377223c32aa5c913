"""The `nightshift` command: turns every error of ours into one line and an exit code."""

import os
import sys
from pathlib import Path

import click

from cluster.access import restrict_umask, why_not
from cluster.errors import ClusterError
from cluster.files import is_full
from cluster.settings import umask_setting
from data_shards.errors import OptionError, ShardError
from jobs.cli.command import FAILED, USAGE
from jobs.cli.main import cli
from jobs.cli.terminal import accept_every_character, terminal_text
from jobs.cli.usage_errors import usage_line
from jobs.errors import InvalidOption, JobError
from trainer.errors import SpecError, TrainerError

ERRORS = (ClusterError, ShardError, TrainerError, JobError)
WRONG_USAGE = (SpecError, InvalidOption, OptionError)  # the value of an option, or a combination of options


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with 0 done, 1 failed, 2 wrong usage."""
    accept_every_character()
    try:
        restrict_umask(umask_setting())
        cli.main(args=arguments, prog_name="nightshift", standalone_mode=False)
    except ERRORS as error:
        _exit(str(error), USAGE if isinstance(error, WRONG_USAGE) else FAILED)
    except BrokenPipeError:  # such as `nightshift list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        if is_full(error):
            _exit(f"the storage is full ({error.strerror}); free some space and repeat the command", FAILED)
        if error.filename is None:
            raise
        path = Path(os.fsdecode(error.filename))
        _exit(f"{path} cannot be used: {why_not(error, path.absolute(), 'check the path')}", FAILED)
    except click.Abort:
        _exit("stopped by Ctrl-C", 128 + 2)
    except click.exceptions.NoArgsIsHelpError as error:  # a group of commands, such as `nightshift queue`
        click.echo(error.message, err=True)
        sys.exit(USAGE)
    except click.UsageError as error:
        _exit(usage_line(error), error.exit_code)
    except click.ClickException as error:
        _exit(error.format_message(), error.exit_code)
    except click.exceptions.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except Exception as error:
        if (line := _redis_fault(error)) is None:
            raise
        _exit(line, FAILED)


def _redis_fault(error: Exception) -> str | None:
    """Return what to say of an error of Redis after the connection was made; None for all other errors.

    Commands that need no queue do not import Redis' client, and this does not either.
    """
    redis = sys.modules.get("redis")
    if redis is None or not isinstance(error, redis.RedisError):
        return None
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return f"the connection to Redis was lost ({error}); start Redis and repeat the command"
    return f"Redis refuses a command ({error}); correct its configuration, or the user in NIGHTSHIFT_REDIS_URL"


def _exit(line: str, code: int) -> None:
    click.echo(f"Error: {terminal_text(' '.join(line.split()))}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
