"""Algorithms: signals measure, estimators assign, losses learn."""

import agents  # noqa: F401 -- before torch: sets how its threads wait
