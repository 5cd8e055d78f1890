"""Commands: `python -m scripts.<name>`."""

import agents  # noqa: F401 -- before torch: says how its threads wait
