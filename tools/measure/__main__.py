"""Runs the measurement of a pattern, which Ctrl-C ends quietly.

Usage: `python -m tools.measure MODULE [ARGUMENT...]`.
"""

import os
import runpy
import signal
import sys

from tools.run.interrupts import interrupt_once

INTERRUPTED = 130


def main() -> int:
    interrupt_once()
    measurement = os.fork()
    if measurement == 0:
        # Ctrl-C reaches every process of its terminal. Outside, only the measurement is told, which
        # ends the programs that it has started; each of them would print a traceback.
        os.setsid()
        return measure()
    try:
        _, status = os.waitpid(measurement, 0)
    except KeyboardInterrupt:
        os.kill(measurement, signal.SIGINT)
        _, status = os.waitpid(measurement, 0)
        print("interrupted: nothing is left running", file=sys.stderr)
    return os.waitstatus_to_exitcode(status)


def measure() -> int:
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
