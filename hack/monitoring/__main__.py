"""`python hack/monitoring <command>`, with the virtual environment's Python."""

import sys
from pathlib import Path

# Run as a folder, Python puts the folder itself on the path; the package is one level up.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from monitoring.command import main  # noqa: E402 - found through the line above

sys.exit(main(sys.argv[1:]))
