"""`python -m freeloc_fx.cli`, the same as `freeloc`."""

from freeloc_fx.cli import main

main()
