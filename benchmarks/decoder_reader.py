"""How fast is a decoder-only reader beside Hugging Face's Llama?

  python benchmarks/decoder_reader.py                  # a CPU, about 10 minutes
  python benchmarks/decoder_reader.py --reader tiny --repetitions 2 --parts decoding

SmolLM2-135M's shapes with random weights, the same on both sides. Training: a
step with the loss on the answer alone behind passages and question (forward,
backward, clipping, AdamW); the peer computes logits of the answer alone, too.
Decoding: greedy, a fixed number of tokens behind prompts of different lengths.
The peer has scaled-dot-product attention, and runs as it is, under
`torch.compile` (with a static cache where it decodes), and in bfloat16; ratios
are of each, and the aim is against the fastest. In float32 losses and ids must
be equal. Calls of all sides alternate. Needs jax, flax, optax, torch, transformers.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import tempfile

import numpy as np

PASSAGES = 3


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--reader', default='smollm2_135m', help='or tiny')
  parser.add_argument('--parts', nargs='+', default=['training', 'decoding'])
  parser.add_argument('--dtypes', nargs='+', default=['float32'], help='of our side')
  parser.add_argument(
    '--peers', nargs='+', default=['float32', 'float32+compile', 'bfloat16', 'bfloat16+compile']
  )
  parser.add_argument('--batch', type=int, default=4, help='of training')
  parser.add_argument('--length', type=int, default=512, help='of a training example')
  parser.add_argument('--decoding_batches', type=int, nargs='+', default=[1, 8])
  parser.add_argument('--prompt_length', type=int, default=448, help='in decoding')
  parser.add_argument('--answer_length', type=int, default=32)
  parser.add_argument('--repetitions', type=int, default=3)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--name', default='decoder_reader', help='of the result file')
  return parser.parse_args(arguments)


def make_batch(batch: int, prompt: int, answer: int, vocab: int) -> dict[str, np.ndarray]:
  """Arrays named as in `ReaderBatch`; prompts of `prompt` tokens or up to a tenth fewer."""
  rng = np.random.default_rng(0)
  tail = 32
  width = (prompt - tail) // PASSAGES

  def text(lengths: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    mask = np.arange(slots) < lengths[..., None]
    tokens = rng.integers(3, vocab, mask.shape).astype(np.int32)
    return np.where(mask, tokens, 0), mask

  arrays = {'passage_mask': np.ones((batch, PASSAGES), bool)}
  lengths = rng.integers(int(width * 0.9), width + 1, (batch, PASSAGES))
  lengths[0] = width
  for name, of, slots in (
    ('reader', lengths, width),
    ('tail', np.full(batch, tail), tail),
    ('target', np.full(batch, answer), answer),
  ):
    arrays[f'{name}_tokens'], arrays[f'{name}_mask'] = text(of, slots)
  return arrays


def prompts(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """What both sides read, packed, passages best last: tokens and mask, padded on the left."""
  rows = []
  for i in range(len(arrays['tail_tokens'])):
    passages = zip(arrays['reader_tokens'][i, ::-1], arrays['reader_mask'][i, ::-1])
    parts = [tokens[mask] for tokens, mask in passages]
    rows.append(np.concatenate([*parts, arrays['tail_tokens'][i]]))
  longest = max(map(len, rows))
  tokens = np.stack([np.pad(row, (longest - len(row), 0)) for row in rows])
  return tokens, tokens > 0


class Ours:
  """The project's reader on one device, from a saved Llama."""

  def __init__(self, folder: str, dtype: str):
    import jax  # pylint: disable=g-import-not-at-top

    from ralm_jax.interop import huggingface
    from ralm_jax.models import bert, retrieval_lm
    from ralm_jax.training import partitioning

    self.jax = jax
    config, self.params = huggingface.load_decoder(folder, dtype=dtype)
    small = bert.BertConfig(vocab_size=256, emb_dim=16, num_heads=2, num_layers=1, mlp_dim=32)
    self.model = retrieval_lm.RetrievalLM(
      reader_config=config, retriever_config=small, reading='in_context', train_retriever=False
    )
    self.partitioner = partitioning.Partitioner(devices=jax.devices()[:1])

  def _put(self, arrays: dict[str, np.ndarray], prompt_length: int):
    from ralm_jax.models import retrieval_lm  # pylint: disable=g-import-not-at-top

    batch = retrieval_lm.ReaderBatch(**arrays, prompt_length=prompt_length)
    return self.partitioner.put_batch(batch)

  def trainer(self, arrays: dict[str, np.ndarray], prompt_length: int):
    """-> a function that takes a step: the loss."""
    from ralm_jax.training import optimizers, train_state, train_step

    retriever = self.model.init(self.jax.random.key(0))['retriever']
    from flax import linen as nn  # pylint: disable=g-import-not-at-top

    params = {'reader': self.params, 'retriever': nn.meta.unbox(retriever)}
    updates = {'reader': optimizers.adamw()}
    state = [train_state.initialize(self.model, updates, self.partitioner, params=params)]
    step = train_step.partition_train_step(self.model, updates, self.partitioner)
    batch = self._put(arrays, prompt_length)

    def run() -> float:
      state[0], metrics = step(state[0], batch)
      return float(self.jax.block_until_ready(metrics)['loss/reader'])

    return run

  def decoder(self, arrays: dict[str, np.ndarray], prompt_length: int, answer: int):
    """-> a function that decodes: int32 [batch, answer]."""
    from ralm_jax.decoding import options  # pylint: disable=g-import-not-at-top

    choices = options.DecodingOptions(min_length=answer)
    dtype = self.model.reader_config.dtype
    cast = self.jax.tree.map(lambda x: np.asarray(x).astype(dtype), self.params)
    params = self.jax.device_put({'reader': cast}, self.partitioner.replicated)
    run = self.partitioner.partition(
      lambda params, batch: self.model.predict(
        params, batch, max_length=answer, options=choices
      ).tokens[:, 0]
    )
    batch = self._put(arrays, prompt_length)
    return lambda: np.asarray(run(params, batch))


class Theirs:
  """Hugging Face's Llama; `kind` is its dtype, and `+compile`."""

  def __init__(self, model, kind: str):
    self.model = model
    self.dtype, self.compiled = kind.partition('+')[0], kind.endswith('+compile')

  def trainer(self, arrays: dict[str, np.ndarray]):
    """-> a function that takes a step: the loss."""
    import torch  # pylint: disable=g-import-not-at-top
    import torch_peer

    model = copy.deepcopy(self.model).train()
    tokens, mask = prompts(arrays)
    targets = torch.as_tensor(arrays['target_tokens']).long()
    inputs = torch.cat([torch.as_tensor(tokens).long(), targets[:, :-1]], 1)
    attended = torch.cat([torch.as_tensor(mask), torch.ones_like(targets[:, :-1]).bool()], 1)
    positions = (attended.cumsum(1) - 1).clamp(min=0)
    optimizer = torch.optim.AdamW(
      model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True
    )

    def loss_of() -> torch.Tensor:
      logits = model(
        input_ids=inputs,
        attention_mask=attended.long(),
        position_ids=positions,
        logits_to_keep=targets.shape[1],
        use_cache=False,
      ).logits
      return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    forward = torch.compile(loss_of) if self.compiled else loss_of

    def run() -> float:
      optimizer.zero_grad(set_to_none=True)
      with torch_peer.autocast('cpu', self.dtype):
        loss = forward()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
      return loss.item()

    return run

  def decoder(self, arrays: dict[str, np.ndarray], answer: int):
    """-> a function that decodes: int32 [batch, answer]."""
    import torch  # pylint: disable=g-import-not-at-top

    model = copy.deepcopy(self.model).to(getattr(torch, self.dtype)).eval()
    tokens, mask = (torch.as_tensor(array).long() for array in prompts(arrays))
    options = {}
    if self.compiled:
      model.forward = torch.compile(model.forward, dynamic=False)
      options['cache_implementation'] = 'static'

    def run() -> np.ndarray:
      with torch.inference_mode():
        ids = model.generate(
          tokens,
          attention_mask=mask,
          do_sample=False,
          min_new_tokens=answer,
          max_new_tokens=answer,
          **options,
        )
      return ids[:, tokens.shape[1] :].numpy()

    return run


def compare(what: str, sides: dict, tokens: int, flags: argparse.Namespace) -> dict:
  """Checks and times the sides, of which the first is our float32."""
  import timing  # pylint: disable=g-import-not-at-top

  first: dict[str, np.ndarray] = {}
  for name, run in list(sides.items()):
    try:
      first[name] = np.asarray(run())
    except Exception as e:  # pylint: disable=broad-exception-caught
      # What torch.compile cannot do is no peer; it is told.
      print(f'{what}: {name} does not run: {type(e).__name__}: {str(e)[:200]}')
      del sides[name]
  expected = first['pytorch float32']
  for name, found in first.items():
    differ = float(np.mean(np.abs(found - expected) > 1e-3 * np.abs(expected)))
    print(f'{what}: {name} differs from PyTorch float32 in {differ:.1%}')
    if differ and name == 'ours float32':
      raise SystemExit('The two sides differ in work.')
  # The check has warmed up.
  medians = timing.compare(sides, repetitions=flags.repetitions, warm_up=0)
  for name, seconds in medians.items():
    print(
      f'{what}: {name:26s} {seconds.wall * 1e3:9.1f} ms ({seconds.cpu * 1e3:9.1f} ms of CPU) '
      f'{tokens / seconds.wall:9.1f} tokens/s'
    )
  own = {n: s for n, s in medians.items() if n.startswith('ours')}
  best = min(own, key=lambda n: own[n].cpu)
  ratios = {
    name: {'ratio': seconds.wall / own[best].wall, 'cpu_time_ratio': seconds.cpu / own[best].cpu}
    for name, seconds in medians.items()
    if name not in own
  }
  for name, ratio in ratios.items():
    print(
      f'{what}: ratio {ratio["ratio"]:.2f}, of CPU time {ratio["cpu_time_ratio"]:.2f} of {best} '
      f'against {name} (above 1: ours is faster)'
    )
  seconds = {name: {'wall': s.wall, 'cpu': s.cpu} for name, s in medians.items()}
  return {'what': what, 'tokens': tokens, 'ours': best, 'seconds': seconds, 'ratios': ratios}


def main(arguments: list[str] | None = None) -> None:
  flags = parse_arguments(arguments)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import timing  # pylint: disable=g-import-not-at-top

  timing.use_cores(flags.cores)
  import reporting
  import torch
  import torch_peer

  torch.set_num_threads(flags.cores)
  model = torch_peer.make_decoder(torch_peer.DECODERS[flags.reader])
  with tempfile.TemporaryDirectory() as folder:
    torch_peer.save(model, folder)
    ours = {f'ours {dtype}': Ours(folder, dtype) for dtype in flags.dtypes}
  theirs = {f'pytorch {kind}': Theirs(model, kind) for kind in flags.peers}
  make = functools.partial(make_batch, answer=flags.answer_length, vocab=model.config.vocab_size)
  found = []
  if 'training' in flags.parts:
    prompt = flags.length - flags.answer_length
    arrays = make(flags.batch, prompt)
    sides = {name: side.trainer(arrays, prompt) for name, side in ours.items()}
    sides |= {name: side.trainer(arrays) for name, side in theirs.items()}
    tokens = int(sum(arrays[f'{name}_mask'].sum() for name in ('reader', 'tail', 'target')))
    found.append(compare(f'step of {flags.batch} x {flags.length}', sides, tokens, flags))
  for size in flags.decoding_batches if 'decoding' in flags.parts else []:
    arrays = make(size, flags.prompt_length)
    sides = {
      name: side.decoder(arrays, flags.prompt_length, flags.answer_length)
      for name, side in ours.items()
    } | {name: side.decoder(arrays, flags.answer_length) for name, side in theirs.items()}
    found.append(compare(f'decoding of {size}', sides, size * flags.answer_length, flags))
  settings = {k: v for k, v in vars(flags).items() if k != 'name'}
  reporting.write_result(flags.name, {**settings, 'measured': found})


if __name__ == '__main__':
  main()
