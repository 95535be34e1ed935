-- What the requests of each five minutes count against the caps, so that a day is added up from a few hundred rows and
-- not from every request. `amount` is 32-byte big-endian. Slot -1 says that the spends of older versions are counted.
CREATE TABLE spent_slots (
  slot   INTEGER PRIMARY KEY,
  amount BLOB NOT NULL CHECK (length(amount) = 32)
) STRICT;
