"""`python -m worldline.cli`, where the `worldline` command is not installed."""

import sys

from worldline.cli import main

sys.exit(main())
