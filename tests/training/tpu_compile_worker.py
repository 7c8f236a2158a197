"""Compiles a train step for a TPU without one; prints JSON.

  tpu_compile_worker.py tiny|base|RECIPE.gin TOPOLOGY

Of a recipe, everything that decides on memory is its own: model, batch, lengths, optimisers and
how it is partitioned. Started by test_tpu_compiler. The environment tells libtpu which machine to
compile for, so it is set in this process alone and before JAX starts.
"""

import os
import sys

os.environ.update(
  {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': {'v5e:2x4': 'v5litepod-8', 'v5p:2x2x4': 'v5p-32'}[sys.argv[2]],
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    # No TPU is opened, so the lock that guards one is not wanted.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }
)

from collections.abc import Mapping  # pylint: disable=g-import-not-at-top
import dataclasses
import json
import pathlib
import time
from typing import Any, Literal

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from ralm_jax.models.bert import BertConfig
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.models.t5 import T5Config
from ralm_jax.training import optimizers as optimizers_lib, partitioning, train_state, train_step
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.train_step import StepOptions

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEEP = dict(dtype='bfloat16', scan_layers=True, remat_policy='full')
MODELS = {
  'tiny': (
    T5Config(
      vocab_size=2000,
      emb_dim=128,
      num_heads=4,
      head_dim=32,
      num_encoder_layers=2,
      num_decoder_layers=2,
      mlp_dim=256,
    ),
    BertConfig(vocab_size=2000, emb_dim=128, num_heads=2, num_layers=2, mlp_dim=512),
    dict(batch=8, passages=4, length=64),
  ),
  'base': (
    T5Config(
      emb_dim=768, num_heads=12, num_encoder_layers=12, num_decoder_layers=12, mlp_dim=2048, **DEEP
    ),
    BertConfig(**DEEP),
    dict(batch=8, passages=20, length=256),
  ),
}


@dataclasses.dataclass(frozen=True)
class Setup:
  """What is compiled; `batch` is of arrays that lie nowhere."""

  model: RetrievalLM
  optimizers: Mapping[str, Any]
  batch: ReaderBatch
  num_partitions: int = 1
  # Moments and parameters over all chips, as a user short of memory has them.
  parameter_partitioning_dims: Literal[1, 2] = 2
  options: StepOptions = StepOptions()


def abstract_batch(batch: int, passages: int, lengths: Mapping[str, int], **others) -> ReaderBatch:
  fields = {'passage_mask': jax.ShapeDtypeStruct((batch, passages), jnp.bool_)}
  for name, length in lengths.items():
    shape = (batch, *([passages] if name in ('reader', 'retriever') else []), length)
    fields[f'{name}_tokens'] = jax.ShapeDtypeStruct(shape, jnp.int32)
    fields[f'{name}_mask'] = jax.ShapeDtypeStruct(shape, jnp.bool_)
  return ReaderBatch(**fields, **others)


def of_size(name: str) -> Setup:
  reader, retriever, sizes = MODELS[name]
  lengths = {'reader': sizes['length'], 'target': 32, 'query': 64, 'retriever': sizes['length']}
  return Setup(
    RetrievalLM(reader_config=reader, retriever_config=retriever),
    {module: optimizers_lib.adamw() for module in ('reader', 'retriever')},
    abstract_batch(sizes['batch'], sizes['passages'], lengths),
  )


def of_recipe(path: str) -> Setup:
  """A recipe of a decoder-only reader, as `ralm train` would have it."""
  import gin

  from ralm_jax.runs import gin_config

  required = ('MODEL_DIR', 'TRAIN_QUESTIONS', 'READER_VOCABULARY', 'RETRIEVER_VOCABULARY')
  gin_config.import_tensorflow()
  gin_config.parse([path], [f"{name} = 'x'" for name in required], [str(ROOT)])

  def value(name: str) -> Any:
    found = gin.query_parameter(f'%{name}')
    if isinstance(found, gin.config.ConfigurableReference):
      return (
        value(found.scopes[-1]) if found.selector == 'macro' else found.scoped_configurable_fn()
      )
    return found

  model = value('MODEL')
  text = gin.get_configurable('ralm_jax.data.text_config.TextConfig')()
  positions = model.reader_config.max_positions
  return Setup(
    model,
    {name: value(f'{name.upper()}_OPTIMIZER') for name in ('reader', 'retriever')},
    abstract_batch(
      value('BATCH_SIZE'),
      text.n_passages,
      {
        'reader': text.passage_length,
        'target': text.target_length,
        'query': text.query_length,
        'retriever': text.retriever_passage_length,
        # The beginning of the text alone, up to a multiple (`PromptAssembler`).
        'head': 16,
        'tail': text.reader_query_length,
      },
      head_is_shared=True,
      prompt_length=(text.prompt_length or positions - text.target_length) - 1,
    ),
    value('NUM_PARTITIONS'),
    value('PARAMETER_PARTITIONING_DIMS'),
    StepOptions(value('NUM_MICROBATCHES')),
  )


def main(name: str, topology_name: str) -> None:
  setup = of_recipe(name) if name.endswith('.gin') else of_size(name)
  topology = topologies.get_topology_desc(platform='tpu', topology_name=topology_name)
  rules = partitioning.standard_logical_axis_rules(
    parameter_partitioning_dims=setup.parameter_partitioning_dims
  )
  partitioner = Partitioner(
    setup.num_partitions, logical_axis_rules=rules, devices=topology.devices
  )
  model, optimizers = setup.model, setup.optimizers
  state = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    jax.eval_shape(
      lambda rng: train_state.create(model, model.init(rng), optimizers, 0), jax.random.key(0)
    ),
    train_state.shardings(model, optimizers, partitioner),
  )
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=partitioner.data_sharding(x.shape)),
    setup.batch,
  )
  step = train_step.partition_train_step(model, optimizers, partitioner, setup.options)
  lowered = step.lower(state, batch)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  print(
    json.dumps(
      {
        'devices': partitioner.mesh.size,
        'kind': topology.devices[0].device_kind,
        'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
        'compile_seconds': seconds,
        'argument_bytes': memory.argument_size_in_bytes,
        'output_bytes': memory.output_size_in_bytes,
        'alias_bytes': memory.alias_size_in_bytes,
        'temporary_bytes': memory.temp_size_in_bytes,
        'code_bytes': memory.generated_code_size_in_bytes,
      }
    )
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
