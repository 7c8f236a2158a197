"""Warm start: train a retriever on unlabelled crops of a corpus.

`ralm warm_start --gin_file=… --gin.MODEL_DIR=…` writes a checkpoint that
`ralm train` starts from with INITIAL_CHECKPOINT_PATH.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
from typing import Any

import jax

from ralm_jax.checkpoints import specification
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.losses.option_types import Count, Seed
from ralm_jax.models import copying_init
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.runs import gin_config
from ralm_jax.training import crop_training, train_state
from ralm_jax.training.crop_training import CropSampler, WarmStartConfig
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import Partitioner


def warm_start(
  *,
  model: RetrievalLM,
  text: TextConfig,
  model_dir: str,
  corpus: str,
  config: WarmStartConfig,
  optimizer: Optimizer,
  partitioner: Partitioner | None = None,
  initial_params: Callable[[], Any] | None = None,
  reader_init: str = 'random',
  checkpoint_period: Count = 1000,
  random_seed: Seed = 0,
) -> Any:
  """Trains the retriever on crops; resumes where it was stopped.

  Args:
    reader_init: 'random' is T5's own, 'copying' suits a small reader that
      learns from scratch (`models/copying_init.py`).
  """
  if reader_init not in ('random', 'copying'):
    raise ValueError(f"reader_init {reader_init!r} is unknown; choose 'random' or 'copying'.")
  store = PassageStore.open(corpus)
  tokenizer = QueryTokenizer(text, store.reader_vocabulary, store.retriever_vocabulary)
  model = specification.with_ids_of(model, tokenizer.reader_vocabulary)
  spec = Specification(model, tokenizer)
  spec.check()
  partitioner = partitioner or Partitioner()
  params = train_state.initialize(
    model, {}, partitioner, random_seed, initial_params() if initial_params is not None else None
  ).params
  if reader_init == 'copying':
    reader = copying_init.copying_init(params['reader'], jax.random.key(random_seed))
    params = {**params, 'reader': reader}
  about = {'corpus': store.fingerprint[:16]}
  with contextlib.closing(Checkpoints(model_dir)) as checkpoints:
    newest = checkpoints.latest_step()
    if newest is not None:
      crop_training.check_same(checkpoints, newest, config, about)
      spec.check_same_vocabularies(model_dir)
      gin_config.tell_changes(model_dir)
    spec.save(model_dir)
    gin_config.save_config(model_dir)
    return crop_training.warm_start(
      model,
      params,
      CropSampler(store, config),
      optimizer,
      config,
      partitioner=partitioner,
      checkpoints=checkpoints,
      checkpoint_period=checkpoint_period,
      metadata=about,
      progress=jax.process_index() == 0,
    )
