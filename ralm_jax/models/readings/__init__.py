"""How a reader reads its passages: losses, likelihoods and answers.

A reading is a class in the table `READINGS`, whose keys are the values of
`RetrievalLM.reading`. Another one needs no change here:

  readings.READINGS['mine'] = MyReading
"""

from ralm_jax.models.readings.fusion import Fusion
from ralm_jax.models.readings.marginal import Marginal, RagSequence, RagToken
from ralm_jax.models.readings.prompted import InContext, Parallel
from ralm_jax.models.readings.reading import Reading

READINGS: dict[str, type[Reading]] = {
  'fusion': Fusion,
  'rag_sequence': RagSequence,
  'rag_token': RagToken,
  'in_context': InContext,
  'parallel': Parallel,
}

__all__ = [
  'READINGS',
  'Fusion',
  'InContext',
  'Marginal',
  'Parallel',
  'RagSequence',
  'RagToken',
  'Reading',
]
