"""`python -m cloze_operator`."""

from cloze_operator.main import main

main()
