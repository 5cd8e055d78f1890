"""Agents, policies and rollouts."""

import os

# Threads that have nothing to do sleep. By default they spin, which takes a core from whoever could use it: other runs,
# the workers of the environments, and by them the policy itself. OpenMP reads this when torch is imported, so it stands
# here: the packages above this one import it first.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
