"""Compiles a train step for a TPU v5e:2x4 without one; prints JSON.

  tpu_compile_worker.py tiny|base

Started by test_tpu_compiler. The environment tells libtpu which machine to
compile for, so it is set in this process alone and before JAX starts.
"""

import os
import sys

os.environ.update(
  {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    # No TPU is opened, so the lock that guards one is not wanted.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }
)

import json  # pylint: disable=g-import-not-at-top
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from ralm_jax.models.bert import BertConfig
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.models.t5 import T5Config
from ralm_jax.training import optimizers as optimizers_lib, partitioning, train_state, train_step
from ralm_jax.training.partitioning import Partitioner

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


def abstract_batch(
  partitioner: Partitioner, *, batch: int, passages: int, length: int
) -> ReaderBatch:
  def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=partitioner.data_sharding(shape))

  fields = {'passage_mask': array(jnp.bool_, batch, passages)}
  for name, shape in (
    ('reader', (batch, passages, length)),
    ('target', (batch, 32)),
    ('query', (batch, 64)),
    ('retriever', (batch, passages, length)),
  ):
    fields[f'{name}_tokens'] = array(jnp.int32, *shape)
    fields[f'{name}_mask'] = array(jnp.bool_, *shape)
  return ReaderBatch(**fields)


def main(name: str) -> None:
  reader, retriever, sizes = MODELS[name]
  topology = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x4')
  # Moments and parameters over all chips, as a user short of memory has them.
  partitioner = Partitioner(
    devices=topology.devices,
    logical_axis_rules=partitioning.standard_logical_axis_rules(parameter_partitioning_dims=2),
  )
  model = RetrievalLM(reader_config=reader, retriever_config=retriever)
  optimizers = {module: optimizers_lib.adamw() for module in ('reader', 'retriever')}
  state = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    jax.eval_shape(
      lambda rng: train_state.create(model, model.init(rng), optimizers, 0), jax.random.key(0)
    ),
    train_state.shardings(model, optimizers, partitioner),
  )
  step = train_step.partition_train_step(model, optimizers, partitioner)
  lowered = step.lower(state, abstract_batch(partitioner, **sizes))
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
  main(sys.argv[1])
