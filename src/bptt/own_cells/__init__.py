"""The loop through time for users' cells, of which nothing but the call is known."""

from bptt.own_cells.budget import kept_bytes as kept_bytes
from bptt.own_cells.budget import segment_steps as segment_steps
from bptt.own_cells.run import run as run
