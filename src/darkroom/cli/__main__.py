"""`python -m darkroom.cli`."""

from darkroom.cli import main

main()
