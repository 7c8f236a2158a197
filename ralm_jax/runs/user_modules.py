"""Modules of the user's own that configurations name, such as those of tasks."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from ralm_jax.checkpoints import registering
from ralm_jax.runs import former_names


def load(name: str) -> ModuleType:
  """Imports a module that registers tasks; ValueError says where one of ours is now."""
  registering.make_importable()
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as e:
    if e.name is None or not f'{name}.'.startswith(f'{e.name}.'):
      raise  # a module that it imports itself
    remedy = former_names.hint(str(e)) or (
      f' It is looked for in the current folder ({os.getcwd()}) and among installed packages.'
    )
    raise ValueError(f'MIXTURE_OR_TASK_MODULE: {e}.{remedy}') from e
