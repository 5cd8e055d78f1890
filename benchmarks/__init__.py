"""Measurements, compared with other projects: `python -m benchmarks.<name>`."""

import agents  # noqa: F401 -- before torch: sets how its threads wait
