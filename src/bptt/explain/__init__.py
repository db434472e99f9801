"""The tutorial's worked example, `dE_3/dW` of a four-word sentence, with real numbers.

`worked_example` computes it; the command `bptt explain` prints it.
"""

from bptt.explain.example import Differences as Differences
from bptt.explain.example import Step as Step
from bptt.explain.example import Term as Term
from bptt.explain.example import Truncated as Truncated
from bptt.explain.example import WorkedExample as WorkedExample
from bptt.explain.network import Network as Network
from bptt.explain.reading import MAX_WORDS as MAX_WORDS
from bptt.explain.reading import Reading as Reading
from bptt.explain.reading import read_by_model as read_by_model
from bptt.explain.reading import read_by_small_network as read_by_small_network
from bptt.explain.terms import worked_example as worked_example
