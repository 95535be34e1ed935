-- What the ids in the other tables stand for. A pipeline's terms are immutable versions, so its royalty rates never change.
CREATE TABLE pipelines (
  id     BLOB PRIMARY KEY CHECK (length(id) = 32),
  packed BLOB NOT NULL,
  rates  BLOB NOT NULL CHECK (length(rates) % 16 = 0)
) STRICT, WITHOUT ROWID;

-- The leaves behind a receipt's attributionRoot and commitmentRoot, as `attribution.evidence` packs them.
CREATE TABLE evidence (
  node BLOB NOT NULL,
  seq  INTEGER NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (node, seq),
  FOREIGN KEY (node, seq) REFERENCES receipts
) STRICT;
