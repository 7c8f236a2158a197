"""Warm start: train a retriever on unlabelled crops of a corpus.

`ralm warm_start --gin_file=… --gin.MODEL_DIR=…` writes a checkpoint that
`ralm train` starts from with INITIAL_CHECKPOINT_PATH.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
import os
import sys
from typing import Any

import jax

from ralm_jax import gin_utils
from ralm_jax import launch
from ralm_jax import specification
from ralm_jax.data import corpus as corpus_lib
from ralm_jax.data import text_config
from ralm_jax.data import tokenization
from ralm_jax.models import copying_init
from ralm_jax.models import retrieval_lm
from ralm_jax.training import checkpoints as checkpoints_lib
from ralm_jax.training import optimizers as optimizers_lib
from ralm_jax.training import partitioning
from ralm_jax.training import train_state
from ralm_jax.training import warm_start as warm_start_lib


def warm_start(
    *,
    model: retrieval_lm.RetrievalLM,
    text: text_config.TextConfig,
    model_dir: str,
    corpus: str,
    config: warm_start_lib.WarmStartConfig,
    optimizer: optimizers_lib.Optimizer,
    partitioner: partitioning.Partitioner | None = None,
    initial_params: Callable[[], Any] | None = None,
    reader_init: str = 'random',
    checkpoint_period: int = 1000,
    random_seed: int = 0,
) -> Any:
  """Trains the retriever on crops; resumes where it was stopped.

  Args:
    model: reader (saved untrained) and retriever.
    text: formats and lengths, saved with the checkpoint.
    model_dir: the run's folder.
    corpus: CORPUS folder; its vocabularies are the model's.
    config: how long and how.
    optimizer: of the retriever.
    partitioner: None shards over all devices by data.
    initial_params: loads parameters to start from.
    reader_init: 'random' is T5's own, 'copying' suits a small reader that
      learns from scratch (`models/copying_init.py`).
    checkpoint_period: steps between checkpoints.
    random_seed: of initialisation.

  Returns:
    The parameters.
  """
  if reader_init not in ('random', 'copying'):
    raise ValueError(
        f"reader_init {reader_init!r} is unknown; choose 'random' or 'copying'."
    )
  store = corpus_lib.PassageStore.open(corpus)
  tokenizer = tokenization.QueryTokenizer(
      text, store.reader_vocabulary, store.retriever_vocabulary
  )
  spec = specification.Specification(model, tokenizer)
  spec.check()
  partitioner = partitioner or partitioning.Partitioner()
  os.makedirs(model_dir, exist_ok=True)
  spec.save(model_dir)
  gin_utils.save_config(model_dir)
  params = train_state.initialize(
      model, {}, partitioner, random_seed,
      initial_params() if initial_params is not None else None,
  ).params
  if reader_init == 'copying':
    params = {**params, 'reader': copying_init.copying_init(
        params['reader'], jax.random.key(random_seed))}
  checkpoints = checkpoints_lib.Checkpoints(model_dir)
  try:
    return warm_start_lib.warm_start(
        model, params,
        warm_start_lib.CropSampler(store, config), optimizer, config,
        partitioner=partitioner, checkpoints=checkpoints,
        checkpoint_period=checkpoint_period,
        progress=jax.process_index() == 0,
    )
  finally:
    checkpoints.close()


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Parses flags and gin, then trains."""
  launch.run_from_gin(warm_start, argv, prog=prog, description=__doc__)


if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['warm_start', *sys.argv[1:]]))
