"""The command line as `python -m fastpose`."""

import sys

from fastpose.cli import main

sys.exit(main())
