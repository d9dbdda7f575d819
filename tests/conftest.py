"""Settings that every test shares; fixtures live beside the tests that use them."""

from __future__ import annotations

from hypothesis import settings

# No deadlines: a busy machine is not a defect.
# The default run is repeatable; the nightly one explores.
settings.register_profile("default-run", deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile("default-run")
