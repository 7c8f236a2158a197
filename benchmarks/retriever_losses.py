"""What does each retriever loss cost beside a step without gold scores?

  python benchmarks/retriever_losses.py                 # a CPU, about 15 minutes
  python benchmarks/retriever_losses.py --device gpu --dtype bfloat16 \\
      --reader base --retriever base --batch 8 --length 256

The peer is the same step with constant gold scores: reader and retriever,
forward and backward, but no word of the reader about single passages. Every
loss then adds its own passes over the shared encoder states. Calls alternate,
so that a busy machine slows all of them. With --dropout the gold scores are
computed apart (`gold_encoder = 'separate'`), which costs an encoder pass.
Needs jax, flax and optax.
"""

from __future__ import annotations

import argparse
import dataclasses
import os

import train_step as train_step_benchmark

LOSSES = ('perplexity', 'emdr2', 'attention', 'leave_one_out')
AIMS = {'perplexity': 1.15, 'emdr2': 1.15, 'attention': 1.10, 'leave_one_out': 1.3}
READERS = {
  'tiny': dict(
    vocab_size=1024,
    emb_dim=64,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=32,
    mlp_dim=128,
  ),
  'small': dict(),
  'base': dict(
    emb_dim=768, num_heads=12, num_encoder_layers=12, num_decoder_layers=12, mlp_dim=2048
  ),
}
RETRIEVERS = {
  'tiny': dict(vocab_size=1024, emb_dim=64, num_heads=2, num_layers=2, mlp_dim=128),
  'mini': dict(emb_dim=384, num_heads=12, num_layers=4, mlp_dim=1536),
  'base': dict(),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--reader', choices=READERS, default='small')
  parser.add_argument('--retriever', choices=RETRIEVERS, default='mini')
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('--passages', type=int, nargs='+', default=[20, 40])
  parser.add_argument('--length', type=int, default=128)
  parser.add_argument('--target_length', type=int, default=16)
  parser.add_argument('--query_length', type=int, default=32)
  parser.add_argument('--dropout', type=float, default=0.0)
  parser.add_argument('--gold_chunk', type=int)
  parser.add_argument('--remat_policy', default='none')
  parser.add_argument('--repetitions', type=int, default=5)
  parser.add_argument('--name', default='retriever_losses', help='of the result')
  return parser.parse_args(arguments)


def make_steps(flags: argparse.Namespace, passages: int):
  """Gradient functions by name, 'none' being the peer's."""
  from flax import linen as nn
  import jax
  import jax.numpy as jnp

  from ralm_jax.models import bert, retrieval_lm, t5

  class WithoutGoldScores(retrieval_lm.RetrievalLM):
    """The peer: every passage is as good as any other."""

    def gold_scores(self, passes, batch):
      return {'perplexity': jnp.zeros(batch.passage_mask.shape, jnp.float32)}

  overrides = dict(dtype=flags.dtype, remat_policy=flags.remat_policy, dropout_rate=flags.dropout)
  config = dict(
    reader_config=t5.T5Config(**READERS[flags.reader], **overrides),
    retriever_config=bert.BertConfig(**RETRIEVERS[flags.retriever], **overrides),
    gold_chunk=flags.gold_chunk,
  )
  models = {'none': WithoutGoldScores(**config)} | {
    name: retrieval_lm.RetrievalLM(**config, gold_score=name) for name in LOSSES
  }
  params = nn.meta.unbox(jax.jit(models['none'].init)(jax.random.key(0)))
  batch = train_step_benchmark.make_batch(
    argparse.Namespace(**{**vars(flags), 'passages': passages}),
    config['reader_config'].vocab_size,
    config['retriever_config'].vocab_size,
  )
  batch = jax.tree.map(jnp.asarray, retrieval_lm.ReaderBatch(**batch))
  rng = jax.random.key(0) if flags.dropout else None

  def step(model):
    def loss(params):
      output = model.loss_fn(params, batch, rng)
      return output.reader.mean + output.retriever.mean

    gradient = jax.jit(jax.grad(loss))
    return lambda: jax.block_until_ready(gradient(params))

  return {name: step(model) for name, model in models.items()}


def main(arguments: list[str] | None = None) -> None:
  flags = parse_arguments(arguments)
  os.environ['JAX_PLATFORMS'] = 'cpu' if flags.device == 'cpu' else 'cuda'
  import reporting
  import timing

  results = {}
  for passages in flags.passages:
    medians = timing.compare(make_steps(flags, passages), repetitions=flags.repetitions)
    peer = medians['none']
    print(f'{passages} passages: {peer.wall * 1e3:.0f} ms without gold scores')
    results[passages] = {'none': dataclasses.asdict(peer)}
    for name in LOSSES:
      ratio = medians[name].wall / peer.wall
      of_cpu = medians[name].cpu / peer.cpu
      results[passages][name] = {
        **dataclasses.asdict(medians[name]),
        'ratio': ratio,
        'cpu_time_ratio': of_cpu,
        'aim': AIMS[name],
      }
      print(
        f'  {name:14s} {medians[name].wall * 1e3:8.0f} ms  ratio '
        f'{ratio:.3f}, of CPU time {of_cpu:.3f} (aim: {AIMS[name]:.2f})'
      )
  reporting.write_result(
    flags.name,
    {**{k: v for k, v in vars(flags).items() if k != 'name'}, 'seconds_per_step': results},
  )


if __name__ == '__main__':
  main()
