"""`python tests/isolation [OPTIONS] -- COMMAND…`: see `--help` and outer.py."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from isolation.outer import main  # noqa: E402 - the path comes first

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
