"""Optimisers: an optax transformation with the schedule it follows."""

from __future__ import annotations

import dataclasses

import optax

from ralm_jax.losses.array_types import PyTree
from ralm_jax.losses.option_types import Amount, Count, Dropout, Positive, Share
from ralm_jax.training.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optax transformation and its schedule."""

  transformation: optax.GradientTransformation  #: the learning rate included
  learning_rate_fn: Schedule  #: for the logs
  clip_norm: Positive | None = 1.0  #: gradients are scaled down to it, per module; None never

  def propose(self, grads: PyTree, opt_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    """What a step would make of parameters and state."""
    updates, opt_state = self.transformation.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _schedule(learning_rate: Amount | Schedule) -> Schedule:
  if callable(learning_rate):
    return learning_rate
  return optax.constant_schedule(learning_rate)


def adamw(
  learning_rate: Amount | Schedule = 1e-4,
  b1: Dropout = 0.9,
  b2: Dropout = 0.999,
  eps: Positive = 1e-6,
  weight_decay: Amount = 0.01,
  clip_norm: Positive | None = 1.0,
) -> Optimizer:
  """AdamW with decoupled weight decay on all parameters, as Atlas has it."""
  schedule = _schedule(learning_rate)
  return Optimizer(
    optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay), schedule, clip_norm
  )


def adafactor(
  learning_rate: Amount | Schedule = 1e-3,
  decay_rate: Share = 0.8,
  multiply_by_parameter_scale: bool = True,
  clipping_threshold: Positive | None = 1.0,
  min_dim_size_to_factor: Count = 128,
  weight_decay_rate: Amount | None = None,
  clip_norm: Positive | None = None,
) -> Optimizer:
  """Adafactor (Shazeer & Stern 2018): T5's optimiser, sublinear in memory."""
  schedule = _schedule(learning_rate)
  return Optimizer(
    optax.adafactor(
      schedule,
      min_dim_size_to_factor=min_dim_size_to_factor,
      decay_rate=decay_rate,
      multiply_by_parameter_scale=multiply_by_parameter_scale,
      clipping_threshold=clipping_threshold,
      weight_decay_rate=weight_decay_rate,
    ),
    schedule,
    clip_norm,
  )
