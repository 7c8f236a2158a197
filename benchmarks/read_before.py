"""What does it save to keep what a decoder-only reader has read?

  python benchmarks/read_before.py                     # a CPU, about 5 minutes
  python benchmarks/read_before.py --reader tiny --repetitions 2

Greedy answers of a SmolLM2-135M with random weights, a batch of questions at a
time and one by one, demonstrations in front of three passages and the question:

- the demonstrations read once and kept (`ReaderBatch.head_context`, as the
  evaluator does it), against read anew with each prompt;
- `parallel` whose passages have been read before (`--passage_cache_mib`, the
  look-up and the assembly of keys and values included), against `in_context`
  of the same passages behind the same kept demonstrations.

Answers of the first pair must be equal; the second are two ways of reading.
Calls of all sides alternate. Needs jax and flax alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import types

import numpy as np

SIZES = {
  'tiny': dict(vocab_size=2000, emb_dim=128, num_heads=4, num_kv_heads=2, head_dim=32)
  | dict(num_decoder_layers=2, mlp_dim=256),
  'smollm2_135m': dict(vocab_size=49152, emb_dim=576, num_heads=9, num_kv_heads=3, head_dim=64)
  | dict(num_decoder_layers=30, mlp_dim=1536),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--reader', choices=SIZES, default='smollm2_135m')
  parser.add_argument('--batches', type=int, nargs='+', default=[1, 4])
  parser.add_argument('--head_length', type=int, default=600, help='4 demonstrations, in tokens')
  parser.add_argument('--passages', type=int, default=3)
  parser.add_argument('--length', type=int, default=150, help='of a passage, in tokens')
  parser.add_argument('--tail_length', type=int, default=24, help='of the question')
  parser.add_argument('--answer_length', type=int, default=8)
  parser.add_argument('--repetitions', type=int, default=5)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--name', default='read_before', help='of the result file')
  return parser.parse_args(arguments)


class Reader:
  """A reader with random weights, in both readings."""

  def __init__(self, flags: argparse.Namespace):
    from flax import linen as nn  # pylint: disable=g-import-not-at-top
    import jax
    import jax.numpy as jnp

    from ralm_jax.evaluation import read_contexts
    from ralm_jax.evaluation.task import ReadingOptions
    from ralm_jax.models import bert, decoder_config, retrieval_lm
    from ralm_jax.training import partitioning

    self.flags = flags
    config = decoder_config.DecoderConfig(
      **SIZES[flags.reader], max_positions=8192, rope_base=1e5, logits_via_embedding=True
    )
    small = bert.BertConfig(vocab_size=256, emb_dim=16, num_heads=2, num_layers=1, mlp_dim=32)
    self.model = retrieval_lm.RetrievalLM(
      reader_config=config, retriever_config=small, reading='in_context', train_retriever=False
    )
    self.partitioner = partitioning.Partitioner(devices=jax.devices()[:1])
    tokens = jnp.ones((1, 2), jnp.int32)
    init = self.model.reader.init(jax.random.key(0), tokens, tokens)['params']
    self.params = jax.device_put({'reader': nn.meta.unbox(init)}, self.partitioner.replicated)
    # All that `ReadContexts` asks of a specification is its model, and that prompts are read.
    spec = types.SimpleNamespace(model=self.model, tokenizer=types.SimpleNamespace(prompts=True))
    parallel = dataclasses.replace(self.model, reading='parallel')
    in_parallel = types.SimpleNamespace(model=parallel, tokenizer=spec.tokenizer)
    keep = ReadingOptions(passage_cache_mib=4096)
    self.heads = read_contexts.ReadContexts(spec, self.partitioner, ReadingOptions())
    self.passages = read_contexts.ReadContexts(in_parallel, self.partitioner, keep)
    self._predict = {kind.reading: self._predictor(kind) for kind in (self.model, parallel)}

  def _predictor(self, model):
    from ralm_jax.decoding import options  # pylint: disable=g-import-not-at-top

    length = self.flags.answer_length
    choices = options.DecodingOptions(min_length=length)
    return self.partitioner.partition(
      lambda params, batch: model.predict(params, batch, max_length=length, options=choices).tokens
    )

  def batch(self, size: int):
    """Random questions and passages behind one head, on the host."""
    from ralm_jax.models import retrieval_lm  # pylint: disable=g-import-not-at-top

    flags, rng = self.flags, np.random.default_rng(0)
    shapes = {
      'head': (1, flags.head_length),
      'reader': (size, flags.passages, flags.length),
      'tail': (size, flags.tail_length),
      'target': (size, flags.answer_length),
    }
    arrays = {'passage_mask': np.ones((size, flags.passages), bool)}
    for name, shape in shapes.items():
      tokens = rng.integers(3, self.model.reader_config.vocab_size, shape).astype(np.int32)
      tokens = np.broadcast_to(tokens, (size, *shape[1:]))
      arrays |= {f'{name}_tokens': tokens, f'{name}_mask': np.ones(tokens.shape, bool)}
    length = flags.passages * flags.length + flags.tail_length
    return retrieval_lm.ReaderBatch(**arrays, head_is_shared=True, prompt_length=length)

  def predict(self, reading: str, batch) -> np.ndarray:
    """Answers, int [batch, 1, answer_length]."""
    return np.asarray(self._predict[reading](self.params, self.partitioner.put_batch(batch)))


def measure(reader: Reader, size: int) -> dict:
  """All ways of answering one batch of questions."""
  import timing  # pylint: disable=g-import-not-at-top

  batch = reader.batch(size)
  alone = dataclasses.replace(batch, head_is_shared=False)
  add = {'heads': reader.heads.add, 'passages': reader.passages.add}
  sides = {
    'none': lambda: reader.predict('in_context', alone),
    'demonstrations': lambda: reader.predict('in_context', add['heads'](reader.params, batch)),
    'parallel': lambda: reader.predict('parallel', add['passages'](reader.params, batch)),
  }
  if (sides['none']() != sides['demonstrations']()).any():
    raise SystemExit('Answers differ: what is kept is not what was read.')
  sides['parallel']()
  medians = timing.compare(sides, repetitions=reader.flags.repetitions, warm_up=0)
  for name, seconds in medians.items():
    print(
      f'{size} questions: {name:16s} {seconds.wall / size * 1e3:9.1f} ms a question '
      f'({seconds.cpu / size * 1e3:.1f} ms of CPU)'
    )
  ratios = {}
  for name, peer in (('demonstrations', 'none'), ('parallel', 'demonstrations')):
    mine, other = medians[name], medians[peer]
    ratios[f'{name} / {peer}'] = {
      'ratio': other.wall / mine.wall,
      'cpu_time_ratio': other.cpu / mine.cpu,
    }
    print(
      f'{size} questions: {name} kept against {peer}: ratio {other.wall / mine.wall:.2f}, of CPU '
      f'time {other.cpu / mine.cpu:.2f} (above 1: keeping is faster)'
    )
  seconds = {name: {'wall': s.wall, 'cpu': s.cpu} for name, s in medians.items()}
  return {'questions': size, 'seconds': seconds, 'ratios': ratios}


def main(arguments: list[str] | None = None) -> None:
  flags = parse_arguments(arguments)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import timing  # pylint: disable=g-import-not-at-top

  timing.use_cores(flags.cores)
  import reporting

  reader = Reader(flags)
  measured = [measure(reader, size) for size in flags.batches]
  settings = {k: v for k, v in vars(flags).items() if k != 'name'}
  reporting.write_result(flags.name, {**settings, 'measured': measured})


if __name__ == '__main__':
  main()
