-- Ledgers with value that the chain has not paid yet: since when, and which intent carries which voucher there.
-- `refused` says why the chain did not take the voucher worth `sent_value`, for people.
CREATE TABLE redemptions (
  payer      BLOB NOT NULL CHECK (length(payer) = 20),
  node       BLOB NOT NULL CHECK (length(node) = 32),
  signer     BLOB NOT NULL CHECK (length(signer) = 20),
  pipeline   BLOB NOT NULL CHECK (length(pipeline) = 32),
  due_since  INTEGER NOT NULL,
  intent     BLOB CHECK (length(intent) = 32),
  position   INTEGER,
  sent_value BLOB NOT NULL DEFAULT x'00000000000000000000000000000000' CHECK (length(sent_value) = 16),
  sent_at    INTEGER NOT NULL DEFAULT 0,
  refused    TEXT,
  PRIMARY KEY (payer, node, signer, pipeline)
) STRICT, WITHOUT ROWID;

CREATE INDEX redemptions_by_intent ON redemptions (intent, position);

-- What our transactions cost, final ones only. `wei` is 32-byte big-endian.
CREATE TABLE chain_costs (
  tx_hash   BLOB PRIMARY KEY CHECK (length(tx_hash) = 32),
  kind      TEXT NOT NULL,
  at        INTEGER NOT NULL,
  gas       INTEGER NOT NULL,
  wei       BLOB NOT NULL CHECK (length(wei) = 32),
  succeeded INTEGER NOT NULL CHECK (succeeded IN (0, 1))
) STRICT, WITHOUT ROWID;

-- What they brought, one row an event: 'redeemed' into the contract's books, 'claimed' out of them.
CREATE TABLE earnings (
  tx_hash   BLOB NOT NULL CHECK (length(tx_hash) = 32),
  log_index INTEGER NOT NULL,
  at        INTEGER NOT NULL,
  kind      TEXT NOT NULL CHECK (kind IN ('redeemed', 'collected', 'claimed')),
  payer     BLOB,
  pipeline  BLOB,
  operator  BLOB NOT NULL CHECK (length(operator) = 16),
  protocol  BLOB NOT NULL CHECK (length(protocol) = 16),
  royalties BLOB NOT NULL CHECK (length(royalties) = 16),
  PRIMARY KEY (tx_hash, log_index)
) STRICT, WITHOUT ROWID;

CREATE INDEX earnings_by_time ON earnings (at);
