"""`python -m ralm_jax.embed`, as T5X users type it."""

import sys

if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['embed', *sys.argv[1:]]))
