"""`python -m training scenes|train|evaluate`: the demo commands without the main program."""

from training.cli import main

raise SystemExit(main())
