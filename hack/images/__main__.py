"""`python3 hack/images <command>`: no virtual environment exists yet, so only the standard library is used."""

import sys
from pathlib import Path

# Run as a folder, Python puts the folder itself on the path; the package is one level up.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from images.command import main  # noqa: E402 the path comes first

sys.exit(main(sys.argv[1:]))
