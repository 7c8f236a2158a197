"""Result files: what was measured, with what, when. Needs NumPy alone."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from typing import Any

import numpy as np

RESULTS = pathlib.Path(__file__).resolve().parent / 'results'
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'torch',
  'transformers',
  'faiss-cpu',
  'grpcio',
  'numpy',
)


def write_result(name: str, fields: dict[str, Any]) -> pathlib.Path:
  """Writes `results/<name>_<date>.json`; a later run of the day replaces it.

  Args:
    name: What was measured.
    fields: JSON, NumPy numbers and arrays included.

  Returns:
    The file written.
  """
  now = datetime.datetime.now(datetime.UTC)
  result = {
    'benchmark': name,
    'date': now.isoformat(timespec='seconds'),
    'hardware': hardware(),
    'versions': versions(),
    **fields,
  }
  RESULTS.mkdir(exist_ok=True)
  path = RESULTS / f'{name}_{now:%Y-%m-%d}.json'
  aside = path.with_suffix('.tmp')
  aside.write_text(json.dumps(result, indent=2, default=_plain) + '\n')
  aside.replace(path)
  return path


def hardware() -> dict[str, Any]:
  """Processor, cores and memory; no name that tells whose machine it is."""
  found = {
    'processor': _processor(),
    'architecture': platform.machine(),
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
  }
  if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
    found['memory_gib'] = round(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30, 1)
  if hasattr(os, 'getloadavg'):
    # Other work on the machine spoils a measurement: let readers see it.
    found['load_average'] = round(os.getloadavg()[0], 2)
  return found


def versions() -> dict[str, str]:
  """Python's and the installed packages' versions."""
  found = {'python': platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      pass
  return found


def _processor() -> str:
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  except OSError:
    pass
  return platform.processor() or sys.platform


def _plain(value: Any) -> Any:
  if isinstance(value, np.ndarray | np.generic):
    return value.tolist()
  raise TypeError(f'a result cannot hold {type(value).__name__}')
