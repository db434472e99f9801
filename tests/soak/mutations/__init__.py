"""Errors that the tests must see, as data; `soak.mutants` makes them one by one."""

from soak.mutations import cells, core, core_back, engine, modules, own_cells
from soak.mutations.mutation import Mutation as Mutation

ALL = (
    *engine.MUTATIONS,
    *cells.MUTATIONS,
    *modules.MUTATIONS,
    *own_cells.MUTATIONS,
    *core.MUTATIONS,
    *core_back.MUTATIONS,
)
