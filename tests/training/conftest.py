"""Lets the tests, and the processes they start, share `tiny_run`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
