"""Tiny generators and batches for the tests of BART and RAG."""

import functools

import jax
import numpy as np
import torch
import transformers

from ralm_jax.models import fid

VOCAB = 31
BATCH, PASSAGES, LENGTH, TARGET = 2, 3, 7, 5
# Less optimised code compiles twice as fast; the tests are about the program.
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
long = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)


def _randomize(model: torch.nn.Module, spread: float) -> None:
  """Weights large enough that outputs differ visibly between inputs."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0.0, spread, generator=generator)


def bart_peer(**overrides) -> transformers.BartForConditionalGeneration:
  sizes = dict(
    vocab_size=VOCAB,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=20,
    max_position_embeddings=40,
    dropout=0.0,
    decoder_start_token_id=2,
  )
  config = transformers.BartConfig(**{**sizes, **overrides})
  model = transformers.BartForConditionalGeneration(config).eval()
  _randomize(model, 0.4)
  with torch.no_grad():
    # A tied head prefers what was just read; this lets sequences move and end.
    model.final_logits_bias.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(1))
    model.final_logits_bias[:, 2] += 2.0
  return model


def t5_peer() -> transformers.T5ForConditionalGeneration:
  config = transformers.T5Config(
    vocab_size=VOCAB,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=1,
    num_heads=2,
    decoder_start_token_id=0,
    dropout_rate=0.0,
    feed_forward_proj='relu',
  )
  model = transformers.T5ForConditionalGeneration(config).eval()
  _randomize(model, 0.5)
  return model


def passages(batch: int = BATCH, full: bool = False):
  """Tokens [batch, PASSAGES, LENGTH] and their mask."""
  rng = np.random.default_rng(5)
  tokens = rng.integers(4, VOCAB, (batch, PASSAGES, LENGTH)).astype(np.int32)
  lengths = rng.integers(3, LENGTH + 1, (batch, PASSAGES))
  mask = np.arange(LENGTH) < (LENGTH if full else lengths[..., None])
  mask = np.broadcast_to(mask, tokens.shape)
  return np.where(mask, tokens, 1).astype(np.int32), mask


def scores(batch: int = BATCH) -> np.ndarray:
  return np.random.default_rng(6).normal(0.0, 1.5, (batch, PASSAGES)).astype(np.float32)


def log_softmax(x: np.ndarray) -> np.ndarray:
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
  best = np.max(x, axis=axis, keepdims=True)
  return np.squeeze(best + np.log(np.exp(x - best).sum(axis=axis, keepdims=True)), axis)


class Enumeration:
  """Log-probabilities of any continuation, by whole passes without a cache."""

  def __init__(self, config, params, tokens, mask):
    self.config = config
    reader = fid.make_reader(config)
    encoded = reader.apply({'params': params}, tokens, mask, method='encode_passages')
    self._decode = quick_jit(
      lambda inputs: reader.apply({'params': params}, encoded, mask, inputs, method='decode_each')
    )

  def token_log_probs(self, prefix, sequence) -> np.ndarray:
    """[PASSAGES, len(sequence)] of the only example, behind a prefix."""
    # One shape for all, so that it is compiled once.
    inputs = [self.config.decoder_start_id, *prefix, *sequence]
    padded = np.full((1, 24), self.config.pad_id, np.int32)
    padded[0, : len(inputs)] = inputs
    log_probs = log_softmax(self._decode(padded))[0]
    at = len(prefix) + np.arange(len(sequence))
    return log_probs[:, at, list(sequence)]

  def next_log_probs(self, prefix, sequence) -> np.ndarray:
    """[PASSAGES, VOCAB] of the token that follows."""
    inputs = [self.config.decoder_start_id, *prefix, *sequence]
    padded = np.full((1, 24), self.config.pad_id, np.int32)
    padded[0, : len(inputs)] = inputs
    return log_softmax(self._decode(padded))[0, :, len(inputs) - 1]
