"""The commands, one module each; only programs import this folder.

Idle OpenMP threads sleep instead of spinning. It must be said before torch is loaded, hence here.
Where the cores are shared, with data loader workers or other people, spinning threads keep the
working ones off: a training of 11 s took 47 to 66 s.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
