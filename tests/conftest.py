"""What all tests share."""

import os
import signal

# Models of a few thousand parameters: one thread is faster than two, and far faster where tests run side by side.
# Subprocesses inherit it. Set before torch is imported, which reads it then.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it starts in the background ignore Ctrl-C, and nohup the end of the terminal; that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
