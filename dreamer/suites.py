"""The environment suites as modules: `dreamer.suites.dmc` is the file dmc.py of the folder `envs/`."""

from dreamer.shipped import folder

__path__ = [str(folder("envs"))]
