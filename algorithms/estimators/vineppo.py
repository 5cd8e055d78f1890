"""VinePPO: the value of a state is what fresh attempts from it earn.

    A_t = r_t + V_{t+1} - V_t,  V: signal `mc_value`; 0 after the last turn

A turn whose state was not measured (NaN) takes r_t + V_{t+1}, so that its advantage is 0 and the turns before it see
through it. The authors' code allows that at the end of an episode only; here it may happen anywhere.

Paper: Kazemnejad et al., arXiv 2410.01679; the answers are those of the authors' `_compute_step_advantages`.

Published settings: 9 fresh attempts per state, gamma 1, no critic, clip 0.2. Left out: nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.timeline import turns
from algorithms.turn_table import TurnTable


def vineppo(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `mc_value`."""
    measured, line = table.signal("mc_value"), turns(table)
    known = np.isfinite(measured)
    # V_t is the measured value, and otherwise r_t + V_{t+1}: a recursion that a measured value cuts off.
    values = line.accumulate(np.where(known, measured, table.paid()), np.where(known, 0.0, 1.0))
    return np.where(known, table.paid() + line.following(values) - values, 0.0)
