"""`python -m workbench.demo scenes|train|evaluate`: the demo commands without the main program."""

from workbench.demo.cli import main

raise SystemExit(main())
