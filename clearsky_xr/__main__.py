"""``python -m clearsky_xr``: the command line."""

from .cli import main

main()
