"""Makes the environment suites importable: the module `dreamer.suites.dmc` is the file `envs/dmc.py`."""

from dreamer.shipped import folder

__path__ = [str(folder("envs"))]
