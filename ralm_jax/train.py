"""`python -m ralm_jax.train`, and what gin files name: `train_script.train`."""

if __name__ == '__main__':
  from ralm_jax import cli

  cli.run('train')
else:
  from ralm_jax.runs.training import *  # noqa: F403
