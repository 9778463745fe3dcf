"""`python -m biofx`."""

import sys

from biofx.cli import main

if __name__ == "__main__":
    sys.exit(main())
