"""`python apps/fastsam3d <command>`, from any folder."""

import sys

from lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
