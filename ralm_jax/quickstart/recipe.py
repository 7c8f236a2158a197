"""The quickstart's sizes and phases: everything a reader may want to change."""
from __future__ import annotations

import dataclasses

from ralm_jax.data import crops
from ralm_jax.models import bert
from ralm_jax.models import retrieval_lm
from ralm_jax.models import t5
from ralm_jax.training import warm_start


@dataclasses.dataclass(frozen=True)
class Phase:
  """One stretch of reader training.

  Attributes:
    steps: of this phase.
    batch_size: questions a step.
    n_passages: passages shown with each, the answer's among them.
    passage_length: reader tokens of question and passage.
    learning_rate: peak of the reader's.
    warmup_steps: until the peak.
    distils: whether the reader's likelihoods train the retriever.
  """

  steps: int
  batch_size: int
  n_passages: int
  passage_length: int
  learning_rate: float = 3e-3
  warmup_steps: int = 30
  distils: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The whole quickstart.

  Attributes:
    vocabulary_size: SentencePiece pieces, shared by reader and retriever.
    max_docstrings: at most so many objects; None for all.
    emb_dim: of the reader.
    retriever_dim: of the retriever, which is also the embedding size.
    retriever_layers: of the retriever.
    warm_start: the retriever's contrastive training.
    warm_start_learning_rate: its peak.
    phases: the reader's training.
    retriever_learning_rate: peak while distilling.
    search: passages searched for each training question.
    n_passages: passages the reader gets at evaluation.
    passage_length: reader tokens of question and passage at evaluation.
    test_questions: at most so many unseen objects are asked about.
    seed: of everything.
  """

  vocabulary_size: int = 2000
  max_docstrings: int | None = None
  emb_dim: int = 128
  num_heads: int = 4
  mlp_dim: int = 256
  num_encoder_layers: int = 2
  num_decoder_layers: int = 2
  retriever_dim: int = 128
  retriever_layers: int = 2
  warm_start: warm_start.WarmStartConfig = warm_start.WarmStartConfig(
      steps=500, batch_size=128, query_length=24, passage_length=40,
      temperature=0.1, crops=crops.CropConfig(0.2, 0.6, 0.1),
  )
  warm_start_learning_rate: float = 1e-3
  phases: tuple[Phase, ...] = (
      Phase(700, 128, 1, 72),
      Phase(900, 32, 4, 72, distils=True),
  )
  retriever_learning_rate: float = 1e-4
  n_passages: int = 4
  passage_length: int = 72
  test_questions: int = 500
  seed: int = 0

  def model(self, vocab_size: int) -> retrieval_lm.RetrievalLM:
    """The model of this recipe for a vocabulary."""
    return retrieval_lm.RetrievalLM(
        reader_config=t5.T5Config(
            vocab_size=vocab_size,
            emb_dim=self.emb_dim,
            num_heads=self.num_heads,
            head_dim=self.emb_dim // self.num_heads,
            mlp_dim=self.mlp_dim,
            num_encoder_layers=self.num_encoder_layers,
            num_decoder_layers=self.num_decoder_layers,
            logits_via_embedding=True,
        ),
        retriever_config=bert.BertConfig(
            vocab_size=vocab_size,
            emb_dim=self.retriever_dim,
            num_heads=4,
            num_layers=self.retriever_layers,
            mlp_dim=2 * self.retriever_dim,
            max_positions=128,
        ),
        temperature_score=0.1,
        temperature_gold=1.0,
    )


# Ends in about a minute and learns next to nothing: for tests.
SMOKE = Recipe(
    vocabulary_size=400,
    max_docstrings=150,
    emb_dim=32,
    mlp_dim=64,
    retriever_dim=32,
    retriever_layers=1,
    warm_start=warm_start.WarmStartConfig(
        steps=20, batch_size=32, query_length=24, passage_length=40,
        temperature=0.1,
    ),
    phases=(Phase(8, 8, 1, 48), Phase(6, 8, 2, 48, distils=True)),
    n_passages=5,
    test_questions=10,
)
