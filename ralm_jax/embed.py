"""`python -m ralm_jax.embed`, as T5X users type it."""

from ralm_jax import cli

if __name__ == '__main__':
  cli.run('embed')
