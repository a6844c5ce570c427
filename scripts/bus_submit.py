"""`bus submit` under the name that the source documents call it by, with the same flags."""

import sys

from bus.cli import run

if __name__ == "__main__":
    sys.exit(run(["submit", *sys.argv[1:]]))
