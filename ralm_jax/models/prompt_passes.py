"""A decoder-only reader's passes over the prompts of one batch.

What its prompts begin with, the head, is read once for all of them, and its keys and values are
attended to by whatever follows: all passages in one prompt, each in one of its own, or (joined)
each read by itself, all at the same positions, and attended to together.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.losses import sequence
from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree, Shaped
from ralm_jax.models import attention, decoder_lm, layers, packing
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.decoder_lm import Context, DecoderLM
from ralm_jax.models.decoder_stepper import DecoderStepper
from ralm_jax.models.generation import Generation, Prefix
from ralm_jax.models.packing import Prompt
from ralm_jax.models.reader_batch import ReaderBatch

Segment = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class PromptPasses:
  """Passes over one batch; those of each passage and of all but one are without dropout.

  Attributes:
    order: of passages in a prompt, see `packing.PASSAGE_ORDERS`.
    joined: passages are read by themselves and attended to together.
    n_read: how many passages are read together.
    chunk: passages at a time, to bound memory; None takes all at once.
    dropout_rng: of the pass over all passages; None for no dropout.
  """

  reader: DecoderLM
  params: PyTree
  batch: ReaderBatch
  order: str = 'best_last'
  joined: bool = False
  n_read: int | None = None
  chunk: int | None = None
  dropout_rng: Array | None = None

  def frozen(self) -> PromptPasses:
    """The same over all passages, without dropout and gradients; nothing is read twice."""
    batch = self.batch
    if self.dropout_rng is None:
      if self.head:
        batch = dataclasses.replace(batch, head_context=jax.lax.stop_gradient(self.head[0]))
      if self.joined and self._n_passages == batch.reader_tokens.shape[1]:
        context = jax.lax.stop_gradient(self.passages_context)
        batch = dataclasses.replace(batch, passages_context=context)
    params = jax.lax.stop_gradient(self.params)
    return dataclasses.replace(self, params=params, batch=batch, n_read=None, dropout_rng=None)

  @property
  def config(self) -> DecoderConfig:
    return self.reader.config

  @property
  def _n_passages(self) -> int:
    return self._passages[0].shape[1]

  @functools.cached_property
  def _of_each(self) -> dict[float, Array]:
    return {}

  @property
  def _passages(self) -> Segment:
    tokens, mask = self.batch.reader_tokens, self.batch.reader_mask
    return tokens[:, : self.n_read], mask[:, : self.n_read]

  @property
  def _tail(self) -> Segment:
    return self.batch.given('tail_tokens'), self.batch.given('tail_mask')

  def _read(self, tokens: Array, mask: Array, contexts: tuple[Context, ...], **options: Any) -> Any:
    apply = functools.partial(layers.call, self.reader, self.params, method='read')
    if self.dropout_rng is not None:
      options |= {'deterministic': False, 'rngs': {'dropout': self.dropout_rng}}
    return apply(tokens, mask, contexts, **options)

  @functools.cached_property
  def head(self) -> tuple[Context, ...]:
    """What all prompts begin with; nothing where that is empty."""
    batch = self.batch
    if batch.head_context is not None:
      return (batch.head_context,)
    if batch.head_tokens is None or not batch.head_tokens.shape[1]:
      return ()
    tokens, mask = batch.head_tokens, batch.given('head_mask')
    if batch.head_is_shared:
      tokens, mask = tokens[:1], mask[:1]
    _, context = self._read(tokens, mask, (), logits=0)
    return (context,)

  @functools.cached_property
  def passages_context(self) -> Context:
    """Keys and values of every passage behind the head, side by side."""
    if self.batch.passages_context is not None:
      return self.batch.passages_context
    tokens, mask = self._passages
    flat = lambda array: layers.constrain(array.reshape(-1, array.shape[-1]), 'batch', 'length')
    _, context = self._read(flat(tokens), flat(mask), self.head, logits=0)
    return context.joined(tokens.shape[1])

  def _prompts(self, passages: Segment) -> Prompt:
    """Of passages [rows, k, s] and the tail of their example."""
    tail = [self._rows(part, len(passages[0])) for part in self._tail]
    segments = [(tail[0], tail[1])]
    if passages[0].shape[1]:
      segments = [packing.passage_segments(*passages, self.order), *segments]
    return packing.pack(segments, self.batch.prompt_length)

  @staticmethod
  def _rows(array: Shaped[Array, ' b *rest'], rows: int) -> Shaped[Array, ' rows *rest']:
    return jnp.repeat(array, rows // len(array), axis=0)

  def together(
    self, include: Bool[Array, 'b n k'] | None = None
  ) -> tuple[tuple[Context, ...], Prompt]:
    """What n prompts an example attend to and what they read, of the passages they include."""
    tokens, mask = self._passages
    rows = len(tokens)
    if include is not None:
      rows *= include.shape[1]
      mask = (mask.astype(bool)[:, None] & include[..., None]).reshape(rows, *mask.shape[1:])
    if self.joined:
      context = dataclasses.replace(self.passages_context, mask=mask.reshape(rows, -1))
      return (*self.head, context), self._prompts((self._rows(tokens, rows)[:, :0], mask[:, :0]))
    return self.head, self._prompts((self._rows(tokens, rows), mask))

  def each(self, passages: Segment | None = None) -> tuple[tuple[Context, ...], Prompt]:
    """What b * k prompts of one passage attend to and read; of some passages alone if named."""
    tokens, mask = passages or self._passages
    if self.joined:
      return self.together(
        jnp.broadcast_to(
          jnp.eye(tokens.shape[1], dtype=bool), (len(tokens), *(tokens.shape[1],) * 2)
        )
      )
    one = lambda array: array.reshape(-1, 1, array.shape[-1])
    return self.head, self._prompts((one(tokens), one(mask)))

  def _read_targets(
    self, contexts: tuple[Context, ...], prompt: Prompt, **options: Any
  ) -> tuple[Any, Any]:
    """Logits of the targets behind prompts, teacher-forced, and what `read` gives besides."""
    targets = self._rows(self.batch.target_tokens, len(prompt.tokens))
    tokens = jnp.concatenate([prompt.tokens, targets[:, :-1]], axis=1)
    # Padding of targets stands behind all that counts.
    mask = jnp.pad(prompt.mask, ((0, 0), (0, targets.shape[1] - 1)), constant_values=True)
    return self._read(tokens, mask, contexts, logits=targets.shape[1], **options)

  def logits_together(self) -> Float[Array, 'b t v']:
    """Of the target's tokens, behind the passages that are read."""
    return self._read_targets(*self.together())[0]

  def _log_probs(
    self, contexts: tuple[Context, ...], prompt: Prompt, temperature: float = 1.0
  ) -> Float[Array, 'b n t']:
    logits, _ = self._read_targets(contexts, prompt)
    if temperature != 1.0:
      logits = logits / temperature
    targets = self._rows(self.batch.target_tokens, len(logits))
    log_probs = sequence.token_log_probs(logits, targets)
    return log_probs.reshape(len(self.batch.target_tokens), -1, targets.shape[1])

  def log_probs_of_each(self, temperature: float = 1.0) -> Float[Array, 'b k t']:
    """log p(target token | query, one passage), of logits over a temperature."""
    if temperature in self._of_each:
      return self._of_each[temperature]
    if self.joined:
      found = self._log_probs_including(jnp.eye(self._n_passages, dtype=bool), temperature)
    else:
      self.each()  # Before the loop over chunks, whose own values stay in it.
      found = self._map(
        lambda *passages: self._log_probs(*self.each(passages), temperature), self._passages
      )
    self._of_each[temperature] = found
    return found

  def log_probs_leaving_out(self) -> Float[Array, 'b k t']:
    """log p(target token | query, all passages but one)."""
    return self._log_probs_including(~jnp.eye(self._n_passages, dtype=bool))

  def _log_probs_including(
    self, include: Bool[Array, 'n k'], temperature: float = 1.0
  ) -> Float[Array, 'b n t']:
    self.together()  # As above.
    include = jnp.broadcast_to(include, (len(self.batch.target_tokens), *include.shape))
    return self._map(lambda part: self._log_probs(*self.together(part), temperature), (include,))

  def _map(self, function: Callable[..., Array], arrays: tuple[Array, ...]) -> Array:
    # The logits of a chunk are computed again for a gradient.
    run = jax.checkpoint(function) if self.chunk else function
    return layers.map_passages(run, arrays, self.chunk, 'gold_chunk')

  def attention_norms(
    self, target_mask: Shaped[Array, 'b t'], last_layers: int | None = None
  ) -> Float[Array, 'b k s']:
    """Attention norms of the passages' tokens, all read together.

    Args:
      target_mask: the positions that count.
      last_layers: how many of the last layers count; None counts all.
    """
    contexts, prompt = self.together()
    length = prompt.tokens.shape[1]
    # A target token is predicted one position before its own.
    weights = jnp.pad(target_mask.astype(jnp.float32), ((0, 0), (length - 1, 0)))
    _, variables = self._read_targets(
      contexts, prompt, norm_weights=weights, mutable=[attention.NORMS]
    )
    norms = decoder_lm.attention_norms(variables, last_layers)
    batch, k, s = self._passages[0].shape
    if self.joined:
      own = norms[:, norms.shape[1] - length - (target_mask.shape[1] - 1) - k * s :][:, : k * s]
      return own.reshape(batch, k, s)
    keys = norms[:, norms.shape[1] - length - (target_mask.shape[1] - 1) :][:, :length]
    return packing.passage_values(prompt.of_segments(keys)[:, : k * s], k, self.order)

  def choice_log_probs(
    self, choices: ChoiceTokens, *, of_each: bool = False
  ) -> Float[Array, 'b n options t']:
    """log p of the options' tokens, of the passages together (n = 1) or each alone.

    What stands before the options is read once.
    """
    contexts, prompt = self.each() if of_each else self.together()
    _, before = self._read(prompt.tokens[:, :-1], prompt.mask[:, :-1], contexts, logits=0)
    targets = jnp.asarray(choices.tokens)
    rows = len(prompt.tokens)

    def of(target: Int[Array, ' t']) -> Float[Array, 'rows t']:
      inputs = jnp.concatenate(
        [prompt.tokens[:, -1:], jnp.broadcast_to(target[:-1], (rows, len(target) - 1))], axis=1
      )
      seen = jnp.ones_like(inputs, bool)
      logits, _ = self._read(inputs, seen, (*contexts, before), logits=len(target))
      return sequence.token_log_probs(logits, target[None])

    log_probs = jax.lax.map(of, targets)  # [options, rows, t]
    return jnp.moveaxis(log_probs, 0, 1).reshape(len(self.batch.target_mask), -1, *targets.shape)


@dataclasses.dataclass(frozen=True)
class PromptedPassages:
  """What a reading decodes from, as `prediction.ReadPassages`."""

  passes: PromptPasses
  generation: Generation
  prefix: Prefix | None = None

  def together(self) -> DecoderStepper:
    """Decodes from all passages of an example."""
    return self._stepper(*self.passes.together(), None)

  def each(self, log_prior: Float[Array, 'b k'] | None) -> DecoderStepper:
    """Decodes from every passage, and by the marginal over them."""
    return self._stepper(*self.passes.each(), log_prior)

  def _stepper(
    self, contexts: tuple[Context, ...], prompt: Prompt, log_prior: Array | None
  ) -> DecoderStepper:
    return DecoderStepper(
      self.passes.reader,
      self.passes.params,
      contexts,
      prompt.tokens,
      prompt.mask,
      self.generation.max_length,
      log_prior=log_prior,
      prefix=self.prefix,
      prefill_chunk=self.generation.prefill_chunk,
      stop_ids=self.generation.stop_ids,
    )
