"""Shapes and dtypes of every public function are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("bptt", "typecheck.check")
