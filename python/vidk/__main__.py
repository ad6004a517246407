"""`python -m vidk`: the command line, where the console script is not on the path."""

import sys

from vidk.cli import main

sys.exit(main())
