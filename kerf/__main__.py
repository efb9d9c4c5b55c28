"""python -m kerf: the command kerf."""

from kerf.cli import main

raise SystemExit(main())
