"""Tables in, matrices and targets out."""

from likely.data.encoder import CategoricalColumn, Encoder, NumericColumn
from likely.data.tables import as_table, natural_key, read_table, select_columns, write_table
from likely.data.targets import ColumnTarget, distributions, key_of, read_probabilities, read_target, read_weights

__all__ = [
    "CategoricalColumn",
    "ColumnTarget",
    "Encoder",
    "NumericColumn",
    "as_table",
    "distributions",
    "key_of",
    "natural_key",
    "read_probabilities",
    "read_table",
    "read_target",
    "read_weights",
    "select_columns",
    "write_table",
]
