"""The end of a process that has imported many libraries: Python takes seconds to free the objects of their modules."""

import atexit
import os
import sys
import threading


def end_process(code: int) -> int:
    """End this process with an exit code as Python does, except that the kernel frees its memory.

    Threads that are no daemons are waited for, the exit handlers of all libraries run, and the streams are flushed.
    Destructors of objects that are left do not run: whatever writes a file closes it before.

    Returns:
        The code, if a stream cannot be flushed: then Python has to end the process, with the exit code 120.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        return code
    os._exit(code)
