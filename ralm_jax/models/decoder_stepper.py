"""A decoder-only reader behind `decoding.decode`: prompts read once, keys shared by beams."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ralm_jax.losses import sequence
from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree, Shaped
from ralm_jax.models import decoder_cache, decoder_lm, layers, rag
from ralm_jax.models.decoder_lm import Context, DecoderLM
from ralm_jax.models.generation import Prefix


@flax.struct.dataclass
class Continuations:
  """The prompts, which all rows of an example share, and what each row has produced.

  Attributes:
    prompt: layers with a window hold its last `window` tokens alone.
    logits: behind the prompts.
    produced: tokens that have been produced and read; `count` of them.
  """

  prompt: Context
  logits: Float[Array, 'prompts v']
  produced: Context
  count: Int[Array, '']


@dataclasses.dataclass(frozen=True)
class DecoderStepper:
  """A stepper over b * k prompts: `n` rows an example share the keys of what has been read.

  With `log_prior` there are k prompts an example, one for each passage, and the next token's
  distribution is RAG-Token's marginal over them; without, one.

  Attributes:
    contexts: what has been read before the prompts, each dividing b * k.
    prompt_tokens: read behind the contexts; the last slot is a token.
    max_length: tokens to produce at most.
    prefix: of every answer, behind the prompts.
    prefill_chunk: positions of prompt and prefix that are computed at a time.
    stop_ids: tokens that end an answer as the end of sequence does, which speaks for all of them:
      its probability is theirs together, and they are impossible themselves.
  """

  reader: DecoderLM
  params: PyTree
  contexts: Sequence[Context]
  prompt_tokens: Int[Array, 'prompts t']
  prompt_mask: Shaped[Array, 'prompts t']
  max_length: int
  log_prior: Float[Array, 'b k'] | None = None
  prefix: Prefix | None = None
  prefill_chunk: int = 128
  stop_ids: tuple[int, ...] = ()

  @property
  def _n_passages(self) -> int:
    return 1 if self.log_prior is None else self.log_prior.shape[1]

  @property
  def _batch(self) -> int:
    return len(self.prompt_tokens) // self._n_passages

  def _rows(self, array: Shaped[Array, 'b n *rest']) -> Shaped[Array, ' rows *rest']:
    """[batch, n, ...] -> [batch * k * n, ...], the same for every passage."""
    shape = (self._batch, self._n_passages, *array.shape[1:])
    return jnp.broadcast_to(array[:, None], shape).reshape(-1, *array.shape[2:])

  def _read(
    self,
    tokens: Int[Array, 'rows t'],
    mask: Bool[Array, 'rows t'],
    contexts: tuple[Context, ...],
    **options: Any,
  ) -> tuple[Float[Array, 'rows last v'], Context]:
    tokens = layers.constrain(tokens, 'batch', 'length')
    contexts = (*self.contexts, *contexts)
    return layers.call(self.reader, self.params, tokens, mask, contexts, method='read', **options)

  def _prompts(self) -> tuple[Int[Array, 'prompts t'], Bool[Array, 'prompts t']]:
    """Prompts with prefixes, padded on the left alone, so that tokens of all rows end together."""
    tokens, mask = self.prompt_tokens.astype(jnp.int32), self.prompt_mask.astype(bool)
    if self.prefix is not None:
      prefix = self.prefix.tokens.astype(jnp.int32)
      padding = prefix.shape[1] - self.prefix.lengths
      there = jnp.arange(prefix.shape[1]) >= padding[:, None]
      tokens = jnp.concatenate([tokens, self._rows(prefix[:, None])], axis=1)
      mask = jnp.concatenate([mask, self._rows(there[:, None])], axis=1)
    order = jnp.argsort(mask, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=1), jnp.take_along_axis(mask, order, axis=1)

  def start(self) -> tuple[Float[Array, 'b v'], Continuations]:
    """Reads the prompts chunk by chunk: logits of the first token to produce."""
    config = self.reader.config
    tokens, mask = self._prompts()
    rows, length = tokens.shape
    lengths = decoder_lm.first_positions(self.contexts, rows) + jnp.sum(mask, axis=1)
    # A first part that makes the rest a whole number of chunks.
    chunk = min(self.prefill_chunk, length)
    first = length % chunk or chunk
    logits, prompt = self._read(tokens[:, :first], mask[:, :first], (), logits=1, lengths=lengths)
    produced = decoder_cache.empty(config, prompt, max(self.max_length - 1, 1))
    prompt = decoder_cache.make_room(config, prompt, length)
    if first < length:

      def read_on(logits, prompt, offset, tokens, mask):
        logits, read = self._read(tokens, mask, (prompt,), logits=1, lengths=lengths)
        return logits, decoder_cache.append(config, prompt, read, offset)

      def fill(carry, part):
        # Where all prompts are short, whole chunks are padding, which takes no time.
        logits, prompt, offset = carry
        logits, prompt = jax.lax.cond(
          jnp.any(part[1]), read_on, lambda *held: held[:2], logits, prompt, offset, *part
        )
        return (logits, prompt, offset + chunk), None

      parts = [
        jnp.swapaxes(array[:, first:].reshape(rows, -1, chunk), 0, 1) for array in (tokens, mask)
      ]
      (logits, prompt, _), _ = jax.lax.scan(fill, (logits, prompt, jnp.asarray(first)), parts)
    cache = Continuations(prompt, logits[:, 0], produced, jnp.zeros((), jnp.int32))
    return self._distribution(logits)[:, 0], cache

  def _ending(self, logits: Float[Array, '*rows v']) -> Float[Array, '*rows v']:
    """Normalised log-probabilities with one token for all that end, if others than one do."""
    if not self.stop_ids:
      return logits
    eos, ids = self.reader.config.eos_id, jnp.arange(logits.shape[-1])
    ends = jnp.zeros(ids.shape, bool).at[jnp.asarray((eos, *self.stop_ids))].set(True)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    ending = jax.nn.logsumexp(jnp.where(ends, log_probs, -jnp.inf), axis=-1, keepdims=True)
    log_probs = jnp.where(ids == eos, ending, log_probs)
    return jnp.where(ends & (ids != eos), -jnp.inf, log_probs)

  def _distribution(self, logits: Float[Array, 'rows 1 v']) -> Float[Array, 'b n v']:
    logits = self._ending(logits).reshape(self._batch, self._n_passages, -1, logits.shape[-1])
    if self.log_prior is None:
      return logits[:, 0]
    return rag.marginal_log_probs(self.log_prior, logits)

  def step(
    self, tokens: Int[Array, 'b rows'], cache: Continuations
  ) -> tuple[Float[Array, 'b rows v'], Continuations]:
    """Logits of the next token."""
    tokens = self._rows(tokens)[:, None]
    contexts = (cache.prompt, cache.produced)
    logits, read = self._read(tokens, jnp.ones(tokens.shape, bool), contexts)
    produced = decoder_cache.roll_in(self.reader.config, cache.produced, read, cache.count)
    cache = dataclasses.replace(cache, produced=produced, count=cache.count + 1)
    return self._distribution(logits), cache

  def expand(self, cache: Continuations, n: int) -> Continuations:
    """The cache of one row an example -> of n equal rows."""
    return dataclasses.replace(cache, produced=decoder_cache.repeat(cache.produced, n))

  def reorder(self, cache: Continuations, parents: Int[Array, 'b rows']) -> Continuations:
    """The cache whose row j of an example continues row `parents[:, j]`."""
    index = self._rows(parents[:, None])
    return dataclasses.replace(cache, produced=decoder_cache.take(cache.produced, index))

  def score(
    self, candidates: Int[Array, 'b c t'], mask: Bool[Array, 'b c t'], cache: Continuations
  ) -> Float[Array, 'b k c']:
    """log p(candidate | x, z) of every candidate under every passage.

    Args:
      candidates: what follows the prefix.
      mask: true on tokens that count.
      cache: any of this reader, for its prompts.
    """
    n, length = candidates.shape[1:]
    tokens, mask = self._rows(candidates), self._rows(mask)
    logits = jnp.repeat(cache.logits[:, None], n, axis=0)
    if length > 1:
      rest, _ = self._read(tokens[:, :-1], jnp.ones_like(mask[:, 1:]), (cache.prompt,))
      logits = jnp.concatenate([logits, rest], axis=1)
    log_probs = sequence.token_log_probs(self._ending(logits), tokens)
    log_probs = jnp.sum(jnp.where(mask, log_probs, 0.0), axis=-1)
    return log_probs.reshape(self._batch, -1, n)
