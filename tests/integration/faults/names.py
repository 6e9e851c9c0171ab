"""x"""

from tests.integration.faults.matrix import Row

ROWS: tuple[Row, ...] = ()
