"""How fast is our train step beside PyTorch doing the same work?

  python benchmarks/train_step.py                       # a CPU, about 2 minutes
  python benchmarks/train_step.py --device gpu --dtype bfloat16 \\
      --reader base --retriever base --batch 8 --passages 20 --length 256

One step of either side: encode every passage, fuse and decode, reader loss;
score each passage by the reader's likelihood from the same encoder states;
embed queries and passages with the retriever, KL distillation; gradients,
clipping and AdamW for both models. Sizes, weights, batch and device are the
same, and so must be the first step's losses. Steps of the two sides alternate, so
that a busy machine slows both. Needs jax, flax, optax, torch, transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time

import numpy as np


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--reader', default='small', help='tiny, small, base, large')
  parser.add_argument('--retriever', default='mini', help='tiny, mini, minilm, base')
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--passages', type=int, default=4)
  parser.add_argument(
    '--length', type=int, default=128, help='of reader and retriever passages, in tokens'
  )
  parser.add_argument('--target_length', type=int, default=16)
  parser.add_argument('--query_length', type=int, default=32)
  parser.add_argument('--repetitions', type=int, default=7)
  parser.add_argument('--cores', type=int, help='CPU cores to use; default all')
  parser.add_argument('--scan_layers', action='store_true')
  parser.add_argument('--remat_policy', default='none')
  parser.add_argument(
    '--compile_peer', action='store_true', help='run the peer under torch.compile'
  )
  parser.add_argument('--name', default='train_step', help='of the result file')
  return parser.parse_args(arguments)


def make_batch(
  flags: argparse.Namespace, reader_vocab: int, retriever_vocab: int
) -> dict[str, np.ndarray]:
  """Random arrays named as in `ReaderBatch`; passages fill half to all."""
  rng = np.random.default_rng(0)
  slots = (flags.batch, flags.passages)

  def texts(vocab: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = rng.integers(shape[-1] // 2, shape[-1] + 1, shape[:-1])
    mask = np.arange(shape[-1]) < lengths[..., None]
    tokens = rng.integers(3, vocab, shape).astype(np.int32)
    return np.where(mask, tokens, 0), mask

  batch = {'passage_mask': np.ones(slots, bool)}
  for name, vocab, shape in (
    ('reader', reader_vocab, (*slots, flags.length)),
    ('target', reader_vocab, (flags.batch, flags.target_length)),
    ('query', retriever_vocab, (flags.batch, flags.query_length)),
    ('retriever', retriever_vocab, (*slots, flags.length)),
  ):
    batch[f'{name}_tokens'], batch[f'{name}_mask'] = texts(vocab, *shape)
  return batch


class OurTrainStep:
  """The project's own step on one device, from a pair of saved models."""

  def __init__(self, reader_folder: str, retriever_folder: str, flags: argparse.Namespace):
    import jax  # pylint: disable=g-import-not-at-top

    from ralm_jax.interop import huggingface
    from ralm_jax.models import retrieval_lm
    from ralm_jax.training import optimizers, partitioning, train_state, train_step

    self.jax = jax
    overrides = dict(
      dtype=flags.dtype, scan_layers=flags.scan_layers, remat_policy=flags.remat_policy
    )
    reader_config, reader = huggingface.load_t5(reader_folder)
    retriever_config, retriever = huggingface.load_bert(retriever_folder)
    if flags.scan_layers:
      for stack in (reader['encoder'], reader['decoder'], retriever):
        self._stack_layers(stack)
    model = retrieval_lm.RetrievalLM(
      reader_config=dataclasses.replace(reader_config, **overrides),
      retriever_config=dataclasses.replace(retriever_config, **overrides),
    )
    self.partitioner = partitioning.Partitioner(devices=jax.devices()[:1])
    # The defaults of our AdamW are those that torch_peer.TrainStep is given.
    updates = {name: optimizers.adamw() for name in ('reader', 'retriever')}
    self.state = train_state.initialize(
      model, updates, self.partitioner, params={'reader': reader, 'retriever': retriever}
    )
    self.step = train_step.partition_train_step(model, updates, self.partitioner)
    self.batch_type = retrieval_lm.ReaderBatch

  def _stack_layers(self, stack: dict) -> None:
    names = [name for name in stack if name.startswith('layers_')]
    names.sort(key=lambda name: int(name.removeprefix('layers_')))
    stack['layers'] = self.jax.tree.map(
      lambda *x: np.stack(x), *[stack.pop(name) for name in names]
    )

  def put(self, batch: dict[str, np.ndarray]):
    return self.partitioner.put_batch(self.batch_type(**batch))

  def __call__(self, batch) -> dict[str, float]:
    """One step; returns its metrics once it is done."""
    self.state, metrics = self.step(self.state, batch)
    return {name: float(x) for name, x in self.jax.block_until_ready(metrics).items()}


def main(arguments: list[str] | None = None) -> None:
  flags = parse_arguments(arguments)
  # Both sides share one GPU, so JAX must not take all of its memory; before
  # JAX starts, and for this process alone.
  os.environ['JAX_PLATFORMS'] = 'cpu' if flags.device == 'cpu' else 'cuda'
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  import timing  # pylint: disable=g-import-not-at-top

  timing.use_cores(flags.cores)
  import reporting
  import torch_peer

  reader = torch_peer.make_reader(torch_peer.READERS[flags.reader])
  retriever = torch_peer.make_encoder(torch_peer.ENCODERS[flags.retriever])
  with tempfile.TemporaryDirectory() as folder:
    folders = [os.path.join(folder, name) for name in ('reader', 'retriever')]
    for model, path in zip((reader, retriever), folders):
      os.mkdir(path)
      torch_peer.save(model, path)
    ours = OurTrainStep(*folders, flags)
  theirs = torch_peer.TrainStep(
    reader,
    retriever,
    dtype=flags.dtype,
    compile_models=flags.compile_peer,
    device='cpu' if flags.device == 'cpu' else 'cuda',
  )
  batch = make_batch(flags, reader.config.vocab_size, retriever.config.vocab_size)
  our_batch, their_batch = ours.put(batch), theirs.put(batch)

  start = time.perf_counter()
  first = ours(our_batch)
  compile_seconds = time.perf_counter() - start
  expected = theirs(their_batch)
  tolerance = 1e-3 if flags.dtype == 'float32' else 5e-2
  for name, value in dataclasses.asdict(expected).items():
    found = first[f'loss/{name}']
    print(f'first {name} loss: ours {found:.6f}, PyTorch {value:.6f}')
    if abs(found - value) > tolerance * max(1.0, abs(value)):
      raise SystemExit(f'The {name} losses differ: the two sides differ in work.')

  medians = timing.compare(
    {'ours': lambda: ours(our_batch), 'pytorch': lambda: theirs(their_batch)},
    repetitions=flags.repetitions,
  )
  tokens = int(batch['reader_mask'].sum())
  for name, seconds in medians.items():
    print(
      f'{name:8s} {seconds.wall * 1e3:9.1f} ms per step '
      f'({seconds.cpu * 1e3:.1f} ms of CPU) '
      f'{tokens / seconds.wall:9.0f} reader tokens/s'
    )
  mine, peer = medians['ours'], medians['pytorch']
  ratio = peer.wall / mine.wall
  print(
    f'ratio {ratio:.2f}, of CPU time {peer.cpu / mine.cpu:.2f} (above 1: '
    f'ours is faster); compiling took {compile_seconds:.1f} s, not counted'
  )
  reporting.write_result(
    flags.name,
    {
      **{k: v for k, v in vars(flags).items() if k != 'name'},
      'ms_per_step': mine.wall * 1e3,
      'pytorch_ms_per_step': peer.wall * 1e3,
      'reader_tokens_per_second': tokens / mine.wall,
      'pytorch_reader_tokens_per_second': tokens / peer.wall,
      'ratio': ratio,
      'cpu_time_ratio': peer.cpu / mine.cpu,
      'compile_seconds': compile_seconds,
      'first_losses': {k: first[f'loss/{k}'] for k in ('reader', 'retriever')},
      'pytorch_first_losses': dataclasses.asdict(expected),
    },
  )


if __name__ == '__main__':
  main()
