"""Keeps native libraries' start-up notes off the terminal."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def withheld_stderr() -> Iterator[None]:
  """Withholds what is written to stderr; shows it if the block raises.

  TensorFlow's C++ code logs before logging can be configured, so only the file
  descriptor itself can be redirected.
  """
  try:
    descriptor = sys.stderr.fileno()
  except (AttributeError, OSError, ValueError):
    yield  # stderr is no file, as in a notebook
    return
  sys.stderr.flush()
  saved = os.dup(descriptor)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), descriptor)
    try:
      yield
    except BaseException:
      sys.stderr.flush()
      os.dup2(saved, descriptor)
      held.seek(0)
      sys.stderr.write(held.read().decode(errors='replace'))
      raise
    finally:
      sys.stderr.flush()
      os.dup2(saved, descriptor)
      os.close(saved)
