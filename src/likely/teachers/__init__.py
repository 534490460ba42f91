"""A teacher's record: what it said of each row, with what it was asked and how much of it was kept."""
