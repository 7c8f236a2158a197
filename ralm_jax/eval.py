"""`python -m ralm_jax.eval`, as T5X users type it."""

from ralm_jax import cli

if __name__ == '__main__':
  cli.run('eval')
