"""Modules outside of the package that register what a model is made of."""

from __future__ import annotations

from collections.abc import Iterable
import importlib
import os
import sys

from ralm_jax.models import dual_encoder
from ralm_jax.models.distillation import GOLD_SCORES
from ralm_jax.models.readings import READINGS
from ralm_jax.models.retrieval_lm import RetrievalLM


def make_importable(folder: str = '.') -> None:
  """Lets modules of a folder be imported, after all that are installed.

  `python -m` puts the current folder on the path, a console script its own.
  """
  if '' not in sys.path and os.path.abspath(folder) not in map(os.path.abspath, sys.path):
    sys.path.append(os.path.abspath(folder))


def modules_of(model: RetrievalLM) -> list[str]:
  """Those that its gold score, its reading and its retriever come from."""
  _, tower = dual_encoder.ENCODERS[dual_encoder.encoder_name(model.retriever_config)]
  kinds = (GOLD_SCORES[model.gold_score], READINGS[model.reading], tower)
  return sorted({kind.__module__ for kind in kinds if kind.__module__.split('.')[0] != 'ralm_jax'})


def load(modules: Iterable[str], needed_by: str) -> None:
  """Imports what `modules_of` has found, so that its names are registered.

  Raises:
    ValueError: a module is neither in the current folder nor installed.
  """
  for name in modules:
    make_importable()
    try:
      importlib.import_module(name)
    except ModuleNotFoundError as e:
      raise ValueError(
        f'{needed_by}: the model is made with the module {name}, which cannot be imported ({e}): '
        'start in the folder where it lies, or install it.'
      ) from e
