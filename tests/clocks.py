"""A wall clock with an offset, for one process and its children: a small C library that LD_PRELOAD loads.

A kernel time namespace cannot do this: it shifts only the monotonic clocks, and no test needs that.
"""

import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.settings import Settings
from jobs.queue.stack import Stack, start_stack
from tests.stack import FAKE_WORKER

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *seconds;

__attribute__((constructor)) static void open_shift(void) {
    const char *name = getenv("CLOCK_SHIFT");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(0, sizeof *seconds, PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) seconds = found;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && seconds && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *seconds;
    return failed;
}

time_t time(time_t *kept) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (kept) *kept = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict kept, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    kept->tv_sec = now.tv_sec;
    kept->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@dataclass(frozen=True)
class Clock:
    """A wall clock that can be set forward and back while processes use it.

    Attributes:
        library: The library that the processes load.
        file: A file with the offset in seconds.
    """

    library: Path
    file: Path

    @property
    def command(self) -> tuple[str, ...]:
        """The prefix for a command that makes it use this clock."""
        return ("env", f"LD_PRELOAD={self.library}", f"CLOCK_SHIFT={self.file}")

    def put(self, seconds: int) -> None:
        """Set the offset to the true time; a negative offset is behind."""
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))

    @contextmanager
    def workers(self, settings: Settings, count: int = 1) -> Iterator[Stack]:
        """Run job workers that use this clock; their child processes use it too."""
        with start_stack(settings, count, worker_command=(*self.command, *FAKE_WORKER)) as running:
            yield running


def build_clock(folder: Path, seconds: int) -> Clock:
    """Return a clock that is `seconds` ahead; skip the test if there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a shifted clock with")
    folder.mkdir()
    (folder / "clock.c").write_text(SOURCE)
    order = [compiler, "-O1", "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c", "-ldl"]
    subprocess.run(order, check=True)
    clock = Clock(folder / "clock.so", folder / "shift")
    clock.put(seconds)
    return clock
