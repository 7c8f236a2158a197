"""`python -m ralm_jax.train`, and what gin files name: `train_script.train`."""

import sys

from ralm_jax.runs.settings import CheckpointConfig, RetrievalConfig  # noqa: F401
from ralm_jax.runs.training import train  # noqa: F401

if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['train', *sys.argv[1:]]))
