"""Side-by-side measurements against the peers: `python -m benchmarks.<name>`."""

import agents  # noqa: F401 -- before torch: says how its threads wait
