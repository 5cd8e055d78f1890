"""What all tests share."""

import os
import signal

# Models of a few thousand parameters: one thread is faster than two, and far faster where tests run side by side.
# Subprocesses inherit it. Set before torch is imported, which reads it then.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts tests in the background has them ignore Ctrl-C, and subprocesses inherit that too.
signal.signal(signal.SIGINT, signal.default_int_handler)
