"""Learning-rate schedules: T5X's factors and Atlas's shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int
from ralm_jax.losses.option_types import Amount, Count, Number, Positive

# step -> learning rate
Schedule = Callable[[Int[Array, '']], Float[Array, '']]


def create_learning_rate_scheduler(
  factors: str = 'constant * linear_warmup * rsqrt_decay',
  base_learning_rate: Amount = 0.5,
  warmup_steps: Number = 1000,
  decay_factor: Positive = 0.5,
  steps_per_decay: Count = 20000,
  total_steps: Count = 100000,
  step_offset: Number = 0,
  min_learning_rate: Amount = 1e-8,
) -> Schedule:
  """A product of factors, named as in T5X.

  Args:
    factors: joined by `*`: `constant` (base_learning_rate), `linear_warmup`, `rsqrt_decay`,
      `rsqrt_normalized_decay`, `decay_every`, `linear_decay` (to 0 at total_steps) and
      `cosine_decay` (half a cosine to 0 at total_steps).

  Raises:
    ValueError: for an unknown factor.
  """
  names = [name.strip() for name in factors.split('*')]
  decays = 'rsqrt_decay rsqrt_normalized_decay decay_every linear_decay cosine_decay'
  known = ('constant', 'linear_warmup', *decays.split())
  for name in names:
    if name not in known:
      raise ValueError(f'Learning-rate factor {name!r} is unknown; known: {known}.')

  def schedule(step: Int[Array, '']) -> Float[Array, '']:
    steps = jnp.maximum(0, jnp.asarray(step, jnp.float32) - step_offset)
    warmup = float(max(warmup_steps, 1))
    progress = jnp.clip((steps - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
    rate = jnp.ones((), jnp.float32)
    for name in names:
      if name == 'constant':
        rate *= base_learning_rate
      elif name == 'linear_warmup':
        rate *= jnp.minimum(1.0, steps / warmup)
      elif name == 'rsqrt_decay':
        rate /= jnp.sqrt(jnp.maximum(steps, warmup))
      elif name == 'rsqrt_normalized_decay':
        rate *= jnp.sqrt(warmup) / jnp.sqrt(jnp.maximum(steps, warmup))
      elif name == 'decay_every':
        rate *= decay_factor ** (steps // steps_per_decay)
      elif name == 'linear_decay':
        rate *= 1.0 - progress
      elif name == 'cosine_decay':
        rate *= 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.maximum(rate, min_learning_rate).astype(jnp.float32)

  return schedule


def atlas_schedule(
  learning_rate: Amount,
  total_steps: Count,
  warmup_steps: Number,
  shape: Literal['linear', 'cosine', 'fixed'] = 'linear',
  form: Literal['paper', 'released'] = 'paper',
) -> Schedule:
  """The schedules of Atlas's released recipes.

  Args:
    shape: 'linear', 'cosine' or 'fixed' after the warm-up.
    form: 'paper' warms up from 0 and decays to 0 ('cosine' is half a cosine);
      'released' warms 'linear' up from a tenth of the peak and decays to it,
      and its 'cosine' is 0.1 + 0.9 cos(pi s / 2).

  Raises:
    ValueError: for an unknown shape or form.
  """
  if shape not in ('linear', 'cosine', 'fixed') or form not in ('paper', 'released'):
    raise ValueError(
      f'atlas_schedule: shape {shape!r} must be linear, cosine or fixed and '
      f'form {form!r} paper or released.'
    )
  released = form == 'released'

  def schedule(step: Int[Array, '']) -> Float[Array, '']:
    steps = jnp.asarray(step, jnp.float32)
    warm = jnp.clip(steps / max(warmup_steps, 1), 0.0, 1.0)
    left = jnp.clip((steps - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
    decay = jnp.ones((), jnp.float32)  # of 'fixed'
    if shape == 'linear':
      decay = 1.0 - (0.9 if released else 1.0) * left
      warm = 0.1 + 0.9 * warm if released else warm
    elif shape == 'cosine' and released:
      decay = 0.1 + 0.9 * jnp.cos(0.5 * jnp.pi * left)
    elif shape == 'cosine':
      decay = 0.5 * (1.0 + jnp.cos(jnp.pi * left))
    return (learning_rate * warm * decay).astype(jnp.float32)

  return schedule
