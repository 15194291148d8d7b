"""`python -m sailkit`."""

from sailkit.cli import main

main()
