"""What tests ask of other processes, which may end at any moment."""

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """Return the words of its command; none where it has ended, also where nobody has waited for it yet."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # ZombieProcess is a subclass
        return []


def is_alive(pid: int) -> bool:
    """Return whether a process runs: a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
