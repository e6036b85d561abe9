"""``python -m ofa_exit VERB …`` is ``ofa-exit VERB …``."""

import sys

from ofa_exit.cli.main import main

if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main())
    # The previous release printed the user-dir.
    print("python -m ofa_exit is now ofa-exit user-dir", file=sys.stderr)
    sys.exit(main(["user-dir"]))
