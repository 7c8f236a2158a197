"""How fast is our beam search beside Hugging Face's on the same reader?

  python benchmarks/decoding.py                        # a CPU, about 2 minutes
  python benchmarks/decoding.py --device gpu --dtype bfloat16 --batch 16 \\
      --passages 40 --length 256

Fusion-in-Decoder with a T5 1.1 of random weights: a batch of questions with
their passages as token ids on the host goes in, answers come out. Both sides
encode every passage once and search with the same options; answers cannot end
early, so that both produce the same number of tokens. Weights, batch and device
are the same, and in float32 the ids must be. Hugging Face holds the passages'
keys and values once for every beam, ours once for all beams of an example.
Calls of the two sides alternate. Needs jax, flax, optax, torch, transformers.
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
  parser.add_argument('--reader', default='small', help='tiny, small, base, large')
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--passages', type=int, default=8)
  parser.add_argument('--length', type=int, default=128, help='of a passage')
  parser.add_argument('--target_length', type=int, default=16)
  parser.add_argument('--num_beams', type=int, nargs='+', default=[1, 4])
  parser.add_argument('--repetitions', type=int, default=5)
  parser.add_argument('--cores', type=int, help='CPU cores to use; default all')
  parser.add_argument('--scan_layers', action='store_true')
  parser.add_argument('--name', default='decoding', help='of the result file')
  return parser.parse_args(arguments)


def make_passages(flags: argparse.Namespace, vocab: int) -> tuple[np.ndarray, np.ndarray]:
  """int32 and bool [batch, passages, length]; passages fill half to all."""
  rng = np.random.default_rng(0)
  shape = (flags.batch, flags.passages, flags.length)
  lengths = rng.integers(flags.length // 2, flags.length + 1, shape[:-1])
  mask = np.arange(flags.length) < lengths[..., None]
  tokens = rng.integers(3, vocab, shape).astype(np.int32)
  return np.where(mask, tokens, 0), mask


class OurReader:
  """The project's Fusion-in-Decoder on one device, from a saved T5."""

  def __init__(self, folder: str, flags: argparse.Namespace):
    import jax  # pylint: disable=g-import-not-at-top

    from ralm_jax.interop import huggingface, initial_weights
    from ralm_jax.models import fid
    from ralm_jax.training import partitioning

    config, params = huggingface.load_t5(
      folder, dtype=flags.dtype, param_dtype=flags.dtype, scan_layers=flags.scan_layers
    )
    if flags.scan_layers:
      params = params | {
        stack: initial_weights.stack_layers(params[stack]) for stack in ('encoder', 'decoder')
      }
    self.length = flags.target_length
    self.reader = fid.FusionInDecoder(config)
    self.partitioner = partitioning.Partitioner(devices=jax.devices()[:1])
    self.params = jax.device_put(
      jax.tree.map(lambda x: x.astype(flags.dtype), params), self.partitioner.replicated
    )

  def prepare(self, tokens: np.ndarray, mask: np.ndarray, num_beams: int):
    """-> a function that decodes: int32 [batch, target_length]."""
    from ralm_jax.decoding import options  # pylint: disable=g-import-not-at-top
    from ralm_jax.models.generation import Generation
    from ralm_jax.models.prediction import ReadPassages
    from ralm_jax.models.readings import Fusion

    choices = options.DecodingOptions(num_beams=num_beams, min_length=self.length)
    generation = Generation(self.length, choices)
    run = self.partitioner.partition(
      lambda params, tokens, mask: (
        Fusion().predict(ReadPassages(self.reader, params, tokens, mask, generation)).tokens[:, 0]
      )
    )
    return lambda: np.asarray(run(self.params, *self.partitioner.put_batch((tokens, mask))))


class TheirReader:
  """Hugging Face's T5 over the concatenated encoder states of the passages."""

  def __init__(self, model, flags: argparse.Namespace):
    import torch  # pylint: disable=g-import-not-at-top

    self.device = 'cpu' if flags.device == 'cpu' else 'cuda'
    self.length = flags.target_length
    self.model = model.to(self.device, getattr(torch, flags.dtype)).eval()

  def prepare(self, tokens: np.ndarray, mask: np.ndarray, num_beams: int):
    """-> a function that decodes: int32 [batch, target_length]."""
    import torch  # pylint: disable=g-import-not-at-top
    from transformers.modeling_outputs import BaseModelOutput

    size, n_passages, length = tokens.shape

    def run() -> np.ndarray:
      with torch.inference_mode():
        put = lambda array: torch.as_tensor(array).long().to(self.device)
        attended = put(mask)
        encoded = self.model.encoder(
          input_ids=put(tokens).view(-1, length), attention_mask=attended.view(-1, length)
        ).last_hidden_state
        ids = self.model.generate(
          encoder_outputs=BaseModelOutput(
            last_hidden_state=encoded.view(size, n_passages * length, -1)
          ),
          attention_mask=attended.view(size, -1),
          do_sample=False,
          num_beams=num_beams,
          min_new_tokens=self.length,
          max_new_tokens=self.length,
        )
      return ids[:, 1:].cpu().numpy()

    return run


def compare(
  ours: OurReader,
  theirs: TheirReader,
  tokens: np.ndarray,
  mask: np.ndarray,
  num_beams: int,
  flags: argparse.Namespace,
) -> dict[str, float]:
  """Checks and times one width of the search."""
  import timing  # pylint: disable=g-import-not-at-top

  sides = {
    'ours': ours.prepare(tokens, mask, num_beams),
    'pytorch': theirs.prepare(tokens, mask, num_beams),
  }
  equal = float(np.mean(sides['ours']() == sides['pytorch']()))
  print(f'{num_beams} beams: {equal:.1%} of the ids are equal')
  if flags.dtype == 'float32' and equal < 1:
    raise SystemExit('The ids differ: the two sides differ in work.')
  medians = timing.compare(sides, repetitions=flags.repetitions)
  produced = flags.batch * flags.target_length
  rates = {side: produced / x.wall for side, x in medians.items()}
  ratio = rates['ours'] / rates['pytorch']
  cpu_ratio = medians['pytorch'].cpu / medians['ours'].cpu
  for side, seconds in medians.items():
    print(
      f'{num_beams} beams: {side:8s} {rates[side]:9.1f} tokens/s '
      f'{seconds.wall * 1e3:9.1f} ms per batch '
      f'({seconds.cpu * 1e3:.1f} ms of CPU)'
    )
  print(
    f'{num_beams} beams: ratio {ratio:.2f}, of CPU time {cpu_ratio:.2f} (above 1: ours is faster)'
  )
  return {
    'num_beams': num_beams,
    'tokens_per_second': rates['ours'],
    'pytorch_tokens_per_second': rates['pytorch'],
    'ratio': ratio,
    'cpu_time_ratio': cpu_ratio,
    'equal_ids': equal,
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
  import torch_peer

  model = torch_peer.make_reader(torch_peer.READERS[flags.reader])
  with tempfile.TemporaryDirectory() as folder:
    torch_peer.save(model, folder)
    ours = OurReader(folder, flags)
  theirs = TheirReader(model, flags)
  tokens, mask = make_passages(flags, model.config.vocab_size)
  searches = [
    compare(ours, theirs, tokens, mask, num_beams, flags) for num_beams in flags.num_beams
  ]
  reporting.write_result(
    flags.name,
    {
      **{k: v for k, v in vars(flags).items() if k not in ('name', 'num_beams')},
      'searches': searches,
    },
  )


if __name__ == '__main__':
  main()
