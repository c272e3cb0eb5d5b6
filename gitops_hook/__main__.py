"""Run the command line: ``python3 -m gitops_hook``."""

import sys

from gitops_hook.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
