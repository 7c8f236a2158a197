"""The quickstart's sizes and phases: everything a reader may want to change."""

from __future__ import annotations

import dataclasses
from typing import Any

from ralm_jax.data.pretext.crops import CropConfig
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.models.t5 import T5Config
from ralm_jax.training import crop_training as warm_start

READER_FORMAT = '{query} title: {title} context: {text}'
# Pieces of their own: the parts of qualified names, and the format's words.
SYMBOLS = ('title:', 'context:', '.', '_')


@dataclasses.dataclass(frozen=True)
class Phase:
  """One stretch of reader training."""

  steps: int
  batch_size: int
  reader_format: str = READER_FORMAT  # What the reader sees of a passage.
  query_length: int = 24
  title_length: int = 19
  passage_length: int = 48
  random_titles: float = 0.15  # Share of titles made of random pieces.
  learning_rate: float = 3e-3  # The reader's, held for half of the phase.
  final_rate: float = 0.05  # What it decays to, as a share.
  n_passages: int = 0  # Passages scored for distillation; 0 does not distil.


# On short inputs without text.
_TITLES_ALONE: Any = dict(reader_format='{query} title: {title}', query_length=4, passage_length=24)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The whole quickstart.

  The reader reads the first passage retrieved. It is trained on the answer's passage under titles
  drawn anew in every batch: first on short inputs without text until it copies, then on whole ones,
  and at last while its likelihoods of every retrieved passage train the retriever.
  """

  vocabulary_size: int = 2000  # SentencePiece pieces, shared by reader and retriever.
  max_docstrings: int | None = None  # At most so many objects; None for all.
  emb_dim: int = 128
  num_heads: int = 4
  mlp_dim: int = 256
  num_encoder_layers: int = 2
  num_decoder_layers: int = 1
  # Attention layers of the retriever. None (0) is a bag of words with positions, which finds
  # documentation best for its cost.
  retriever_layers: int = 0
  warm_start: warm_start.WarmStartConfig = warm_start.WarmStartConfig(
    steps=700,
    batch_size=128,
    query_length=17,
    passage_length=41,
    # 0.1 on the plain inner product of 128 dimensions.
    temperature=0.1 / 128**0.5,
    symmetric=True,
    query_crops=CropConfig(0.1, 0.6, 0.1, 4, 16),
    passage_crops=CropConfig(0.5, 1.0, 0.1, 16, 40),
  )
  warm_start_learning_rate: float = 1e-2
  phases: tuple[Phase, ...] = (
    Phase(220, 64, title_length=13, random_titles=0.5, final_rate=1.0, **_TITLES_ALONE),
    Phase(900, 32, final_rate=0.3),
    Phase(300, 32, passage_length=64, query_length=32, n_passages=5, learning_rate=1e-3),
  )
  retriever_learning_rate: float = 1e-3
  n_passages: int = 5  # Passages retrieved at evaluation; the reader reads n_context.
  n_context: int = 1
  passage_length: int = 64  # Reader tokens of question and passage at evaluation.
  test_questions: int = 600  # At most so many unseen objects are asked about.
  seed: int = 0

  def model(self, vocab_size: int) -> RetrievalLM:
    """The model of this recipe for a vocabulary."""
    return RetrievalLM(
      reader_config=T5Config(
        vocab_size=vocab_size,
        emb_dim=self.emb_dim,
        num_heads=self.num_heads,
        head_dim=self.emb_dim // self.num_heads,
        mlp_dim=self.mlp_dim,
        num_encoder_layers=self.num_encoder_layers,
        num_decoder_layers=self.num_decoder_layers,
        logits_via_embedding=True,
      ),
      retriever_config=BertConfig(
        vocab_size=vocab_size,
        emb_dim=self.emb_dim,
        num_heads=4,
        num_layers=self.retriever_layers,
        mlp_dim=2 * self.emb_dim,
        max_positions=128,
      ),
      n_context=self.n_context,
      temperature_score=0.1 / self.emb_dim**0.5,
      temperature_gold=1.0,
    )


# Ends in about a minute and learns next to nothing: for tests.
SMOKE = Recipe(
  vocabulary_size=400,
  max_docstrings=150,
  emb_dim=32,
  mlp_dim=64,
  num_encoder_layers=1,
  warm_start=dataclasses.replace(Recipe.warm_start, steps=30, batch_size=32),
  phases=(
    Phase(6, 8, title_length=8, **_TITLES_ALONE),
    Phase(6, 8, n_passages=3, passage_length=64),
  ),
  test_questions=10,
)
