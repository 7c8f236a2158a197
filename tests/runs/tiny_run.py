"""A tiny model, batches for it and a few steps, shared by the training tests."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from ralm_jax.models.bert import BertConfig
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.models.t5 import T5Config
from ralm_jax.training import optimizers as optimizers_lib, train_state, train_step
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import PartitionedFunction, Partitioner
from ralm_jax.training.train_state import TrainState
from ralm_jax.training.train_step import StepOptions

READER = T5Config(
  vocab_size=64,
  emb_dim=32,
  num_heads=8,
  head_dim=4,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_dim=64,
)
DECODER = DecoderConfig(
  vocab_size=64,
  emb_dim=32,
  num_heads=8,
  num_kv_heads=4,
  head_dim=4,
  num_decoder_layers=2,
  mlp_dim=64,
  max_positions=128,
)
RETRIEVER = BertConfig(
  vocab_size=64,
  emb_dim=32,
  num_heads=8,
  num_layers=1,
  mlp_dim=64,
  max_positions=16,
  embedding_init_stddev=0.5,
)


def make_model(
  reader: dict[str, Any] | None = None, retriever: dict[str, Any] | None = None, **kwargs: Any
) -> RetrievalLM:
  """A RetrievalLM of a few thousand parameters; dicts replace sizes."""
  return RetrievalLM(
    reader_config=dataclasses.replace(READER, **(reader or {})),
    retriever_config=dataclasses.replace(RETRIEVER, **(retriever or {})),
    **{'temperature_gold': 1.0, 'temperature_score': 1.0, **kwargs},
  )


def make_decoder_model(
  reader: dict[str, Any] | None = None, retriever: dict[str, Any] | None = None, **kwargs: Any
) -> RetrievalLM:
  """The same with a decoder-only reader; a marginal reading has no gold score."""
  reading = kwargs.setdefault('reading', 'in_context')
  if reading.startswith('rag'):
    kwargs.setdefault('gold_score', 'none')
  return RetrievalLM(
    reader_config=dataclasses.replace(DECODER, **(reader or {})),
    retriever_config=dataclasses.replace(RETRIEVER, **(retriever or {})),
    **{'temperature_gold': 1.0, 'temperature_score': 1.0, **kwargs},
  )


@functools.lru_cache
def make_params(model: RetrievalLM) -> Any:
  """Random parameters on the host."""
  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1)))
  return jax.tree.map(np.asarray, params)


def make_batch(size: int = 8, passages: int = 4, length: int = 12, seed: int = 0) -> ReaderBatch:
  """Random NumPy arrays; texts of different lengths, all passages valid."""
  rng = np.random.default_rng(seed)

  def texts(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = rng.integers(shape[-1] // 2, shape[-1] + 1, shape[:-1])
    mask = np.arange(shape[-1]) < lengths[..., None]
    tokens = rng.integers(3, 64, shape).astype(np.int32)
    return np.where(mask, tokens, 0), mask

  arrays = {'passage_mask': np.ones((size, passages), bool)}
  for name, shape in (
    ('reader', (size, passages, length)),
    ('target', (size, 5)),
    ('query', (size, 6)),
    ('retriever', (size, passages, length - 2)),
  ):
    arrays[f'{name}_tokens'], arrays[f'{name}_mask'] = texts(*shape)
  return ReaderBatch(**arrays)


def make_prompt_batch(size: int = 8, passages: int = 4, seed: int = 0, **changes) -> ReaderBatch:
  """The same for decoder-only readers: one head for all, and a tail each."""
  rng = np.random.default_rng(seed)
  batch = make_batch(size, passages, seed=seed)
  tails = rng.integers(3, 64, (size, 6)).astype(np.int32)
  arrays = {
    'head_tokens': np.tile(np.array([5, 9, 7, 0], np.int32), (size, 1)),
    'head_mask': np.tile(np.arange(4) < 3, (size, 1)),
    'tail_tokens': tails,
    'tail_mask': np.arange(6) < rng.integers(3, 7, (size, 1)),
    'head_is_shared': True,
    'prompt_length': 60,
  }
  return batch.replace(**arrays | changes)


def adamw(learning_rate: float = 1e-3) -> dict[str, Optimizer]:
  """AdamW for both modules, with an epsilon that hides rounding noise.

  Where a gradient is zero but for rounding, Adam divides noise by noise; the
  order of a sum over devices would then decide the sign of an update.
  """
  return {name: optimizers_lib.adamw(learning_rate, eps=1e-4) for name in ('reader', 'retriever')}


# Less optimised code compiles twice as fast; the tests are about the program.
QUICK_COMPILE = {'xla_backend_optimization_level': 0}


@dataclasses.dataclass
class Run:
  """What a few steps left.

  Attributes:
    losses: of each step, [steps, (reader, retriever)].
    state: after the last step.
    step: the partitioned train step.
    batch: the last batch on the devices.
  """

  losses: np.ndarray
  state: TrainState
  step: PartitionedFunction
  batch: ReaderBatch


def run_steps(
  partitioner: Partitioner,
  model: RetrievalLM,
  batches: list[ReaderBatch],
  optimizers: dict[str, Optimizer] | None = None,
  num_microbatches: int = 1,
) -> Run:
  """Initialises and takes one step a batch, with a donated state.

  The steps run under a transfer guard, so that anything they would copy to or
  from the host unasked fails.
  """
  optimizers = optimizers or adamw()
  state = train_state.initialize(model, optimizers, partitioner, seed=1, params=make_params(model))
  step = train_step.partition_train_step(
    model, optimizers, partitioner, StepOptions(num_microbatches), compiler_options=QUICK_COMPILE
  )
  losses = []
  for batch in batches:
    batch = partitioner.put_batch(batch)
    with jax.transfer_guard('disallow'):
      state, metrics = step(state, batch)
    losses.append([float(metrics['loss/reader']), float(metrics['loss/retriever'])])
  return Run(np.asarray(losses), state, step, batch)


def one_device() -> Partitioner:
  return Partitioner(devices=jax.devices()[:1])
