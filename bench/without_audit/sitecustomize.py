"""Python reads this first in each process whose PYTHONPATH names this folder: calls leave no audit records.

Nobody but a bench wants that, so that the product has no switch for it.
"""

from meshkit import audit


def _nothing(method: str) -> bool:
    return False


audit.is_recorded = _nothing
