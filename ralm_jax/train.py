"""`python -m ralm_jax.train`, and what gin files name: `train_script.train`."""

from ralm_jax.runs.training import *  # noqa: F403

if __name__ == '__main__':
  import sys

  from ralm_jax import cli

  sys.exit(cli.main(['train', *sys.argv[1:]]))
