"""Makes `python -m dreamer` the same as the command `dreamer`."""

import sys

from dreamer.apps.start import main

if __name__ == "__main__":
    sys.exit(main())
