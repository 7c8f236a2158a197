"""Modules of the user's own that configurations name, such as those of tasks."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from ralm_jax.runs import former_names


def make_importable(folder: str = '.') -> None:
  """Lets modules of a folder be imported, after all that are installed.

  `python -m` puts the current folder on the path, a console script its own.
  """
  if '' not in sys.path and os.path.abspath(folder) not in map(os.path.abspath, sys.path):
    sys.path.append(os.path.abspath(folder))


def load(name: str) -> ModuleType:
  """Imports a module that registers tasks; ValueError says where one of ours is now."""
  make_importable()
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as e:
    if e.name is None or not f'{name}.'.startswith(f'{e.name}.'):
      raise  # a module that it imports itself
    remedy = former_names.hint(str(e)) or (
      f' It is looked for in the current folder ({os.getcwd()}) and among installed packages.'
    )
    raise ValueError(f'MIXTURE_OR_TASK_MODULE: {e}.{remedy}') from e
