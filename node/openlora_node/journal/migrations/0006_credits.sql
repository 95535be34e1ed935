-- Datasets whose pools this node decides: how much the chain had settled when last seen, and the epoch through which
-- everything is decided, whether it was credited, vetoed or lapsed.
CREATE TABLE credit_pools (
  node    BLOB NOT NULL CHECK (length(node) = 32),
  dataset BLOB NOT NULL CHECK (length(dataset) = 32),
  settled BLOB NOT NULL CHECK (length(settled) = 16),
  epoch   INTEGER NOT NULL,
  PRIMARY KEY (node, dataset)
) STRICT, WITHOUT ROWID;

-- What was posted, or is about to be: the cumulative table behind each root, as JSON, and the id that it is fetched by.
-- It adds the receipts past epoch `after`, through `epoch`, to the table of root `base` (zeros for none), at most
-- `available` wei of them. Rows are kept: who audits a root begins with the first.
CREATE TABLE credit_posts (
  node    BLOB NOT NULL CHECK (length(node) = 32),
  dataset BLOB NOT NULL CHECK (length(dataset) = 32),
  epoch   INTEGER NOT NULL,
  root    BLOB NOT NULL CHECK (length(root) = 32),
  base    BLOB NOT NULL CHECK (length(base) = 32),
  after   INTEGER NOT NULL,
  available BLOB NOT NULL CHECK (length(available) = 16),
  leaves  BLOB NOT NULL CHECK (length(leaves) = 32),
  credits BLOB NOT NULL,
  at      INTEGER NOT NULL,
  PRIMARY KEY (node, dataset, epoch, root)
) STRICT, WITHOUT ROWID;
