"""`python -m ralm_jax.eval`, as T5X users type it."""

import sys

if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['eval', *sys.argv[1:]]))
