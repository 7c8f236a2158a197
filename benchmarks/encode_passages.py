"""How fast do we encode passages beside PyTorch doing the same work?

  python benchmarks/encode_passages.py                  # a CPU, about 1 minute
  python benchmarks/encode_passages.py --device gpu --dtype bfloat16 --batch 512

BERT-base (Contriever's size) and MiniLM with mean pooling; token ids on the
host in, float32 embeddings on the host out. Weights, batches and device are the
same, weights are held in `--dtype`, and the embeddings must agree first. Calls
of the two sides alternate. Needs jax, flax, optax, torch and transformers.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import numpy as np


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument(
    '--encoders', nargs='+', default=['minilm', 'base'], help='of: tiny, mini, minilm, base'
  )
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--length', type=int, default=128)
  parser.add_argument('--repetitions', type=int, default=7)
  parser.add_argument('--cores', type=int, help='CPU cores to use; default all')
  parser.add_argument('--scan_layers', action='store_true')
  parser.add_argument(
    '--compile_peer', action='store_true', help='run the peer under torch.compile'
  )
  parser.add_argument('--name', default='encode_passages', help='of the result file')
  return parser.parse_args(arguments)


class OurEncoder:
  """The project's passage encoder on one device, from a saved BERT."""

  def __init__(self, folder: str, flags: argparse.Namespace):
    import jax  # pylint: disable=g-import-not-at-top

    from ralm_jax.interop import huggingface
    from ralm_jax.models import dual_encoder
    from ralm_jax.training import partitioning

    config, params = huggingface.load_bert(
      folder, dtype=flags.dtype, param_dtype=flags.dtype, scan_layers=flags.scan_layers
    )
    if flags.scan_layers:
      rows = [params.pop(f'layers_{i}') for i in range(config.num_layers)]
      params['layers'] = jax.tree.map(lambda *x: np.stack(x), *rows)
    model = dual_encoder.DualEncoder(config)
    self.partitioner = partitioning.Partitioner(devices=jax.devices()[:1])
    self.params = jax.device_put(
      jax.tree.map(lambda x: x.astype(flags.dtype), params), self.partitioner.replicated
    )
    self.encode = self.partitioner.partition(
      lambda params, tokens, mask: model.apply(
        {'params': params}, tokens, mask, method='encode_passages'
      )
    )

  def __call__(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.asarray(self.encode(self.params, *self.partitioner.put_batch((tokens, mask))))


def compare(name: str, flags: argparse.Namespace) -> dict[str, float]:
  """Checks and times one size of encoder."""
  import timing  # pylint: disable=g-import-not-at-top
  import torch_peer

  model = torch_peer.make_encoder(torch_peer.ENCODERS[name])
  with tempfile.TemporaryDirectory() as folder:
    torch_peer.save(model, folder)
    ours = OurEncoder(folder, flags)
  theirs = torch_peer.PassageEncoder(
    model,
    dtype=flags.dtype,
    compile_models=flags.compile_peer,
    device='cpu' if flags.device == 'cpu' else 'cuda',
  )
  rng = np.random.default_rng(0)
  shape = (flags.batch, flags.length)
  lengths = rng.integers(flags.length // 2, flags.length + 1, shape[:1])
  mask = np.arange(flags.length) < lengths[:, None]
  tokens = rng.integers(3, model.config.vocab_size, shape).astype(np.int32)
  tokens = np.where(mask, tokens, 0)

  difference = np.abs(ours(tokens, mask) - theirs(tokens, mask)).max()
  print(f'{name}: embeddings differ by at most {difference:.1e}')
  if difference > (1e-4 if flags.dtype == 'float32' else 1e-1):
    raise SystemExit('The embeddings differ: the two sides differ in work.')
  medians = timing.compare(
    {'ours': lambda: ours(tokens, mask), 'pytorch': lambda: theirs(tokens, mask)},
    repetitions=flags.repetitions,
  )
  rates = {side: flags.batch / x.wall for side, x in medians.items()}
  ratio = rates['ours'] / rates['pytorch']
  cpu_ratio = medians['pytorch'].cpu / medians['ours'].cpu
  for side, seconds in medians.items():
    print(
      f'{name}: {side:8s} {rates[side]:9.1f} passages/s '
      f'{seconds.wall * 1e3:9.1f} ms per batch '
      f'({seconds.cpu * 1e3:.1f} ms of CPU)'
    )
  print(f'{name}: ratio {ratio:.2f}, of CPU time {cpu_ratio:.2f} (above 1: ours is faster)')
  return {
    'passages_per_second': rates['ours'],
    'pytorch_passages_per_second': rates['pytorch'],
    'ratio': ratio,
    'cpu_time_ratio': cpu_ratio,
    'largest_difference': float(difference),
  }


def main(arguments: list[str] | None = None) -> None:
  flags = parse_arguments(arguments)
  # Before JAX starts: both sides share one GPU, so JAX must not take all of
  # its memory.
  os.environ['JAX_PLATFORMS'] = 'cpu' if flags.device == 'cpu' else 'cuda'
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  import timing  # pylint: disable=g-import-not-at-top

  timing.use_cores(flags.cores)
  import reporting

  results = {name: compare(name, flags) for name in flags.encoders}
  reporting.write_result(
    flags.name,
    {**{k: v for k, v in vars(flags).items() if k not in ('name', 'encoders')}, **results},
  )


if __name__ == '__main__':
  main()
