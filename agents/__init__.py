"""Agents, policies and rollouts."""

import os

# Idle threads should sleep. By default they spin and occupy a core that other runs, the environments' workers and the
# policy itself need. OpenMP reads these variables when torch is imported, so they are set here: the packages above this
# one import it first.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
