"""`python -m training scenes|train|photos|evaluate`: the demo commands without the main program."""

from training.cli import main

raise SystemExit(main())
