"""The commands, one module each; only programs import this folder.

Idle OpenMP threads spin for some microseconds and then sleep; it must be said before torch is
loaded, hence here. Two threads on two cores, an epoch of small matrix products: threads that sleep
at once take 1.3 s and threads that spin this long 0.8 s, as with the system's setting, which takes
4.5 s instead of 1.8 s when another program keeps one of the cores busy.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
