"""Algorithms: signals measure, estimators assign, losses learn."""

import agents  # noqa: F401 -- before torch: says how its threads wait
