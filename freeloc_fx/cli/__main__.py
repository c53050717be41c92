"""`python -m freeloc_fx.cli`, the same as `freeloc`."""

from . import main

main()
