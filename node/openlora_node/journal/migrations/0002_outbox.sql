-- Transactions that somebody wants sent, once per (kind, subject). Amounts in wei are 32-byte big-endian blobs.
-- `seq` is the queue's order; a closed intent keeps its row, so that wanting it again finds it.
CREATE TABLE intents (
  seq          INTEGER PRIMARY KEY,
  id           BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
  kind         TEXT NOT NULL,
  subject      BLOB NOT NULL,
  chain_id     TEXT NOT NULL,
  sender       BLOB NOT NULL CHECK (length(sender) = 20),
  recipient    BLOB NOT NULL CHECK (length(recipient) = 20),
  data         BLOB NOT NULL,
  value        BLOB NOT NULL CHECK (length(value) = 32),
  gas_limit    INTEGER CHECK (gas_limit > 0),
  state        TEXT NOT NULL CHECK (state IN ('queued', 'signed', 'sent', 'mined', 'final', 'failed', 'cancelled')),
  nonce        INTEGER CHECK (nonce >= 0),
  request      TEXT CHECK (request IN ('bump', 'cancel', 'resend')),
  note         TEXT,
  reverts      INTEGER NOT NULL DEFAULT 0,
  tx_hash      BLOB,
  block_number INTEGER,
  block_hash   BLOB,
  succeeded    INTEGER CHECK (succeeded IN (0, 1)),
  created_at   INTEGER NOT NULL,
  updated_at   INTEGER NOT NULL,
  UNIQUE (kind, subject),
  CHECK (state IN ('final', 'failed', 'cancelled') OR (nonce IS NULL) = (state = 'queued')),
  CHECK (state <> 'mined' OR (tx_hash IS NOT NULL AND block_number IS NOT NULL AND block_hash IS NOT NULL))
) STRICT;

CREATE INDEX intents_open ON intents (sender, chain_id, seq)
  WHERE state IN ('queued', 'signed', 'sent', 'mined') OR request IS NOT NULL;
-- No two transactions that could still execute share a nonce.
CREATE UNIQUE INDEX intents_nonce ON intents (sender, chain_id, nonce) WHERE state IN ('signed', 'sent', 'mined');

-- Every transaction ever signed, written before any node sees it.
CREATE TABLE attempts (
  hash         BLOB PRIMARY KEY CHECK (length(hash) = 32),
  intent       INTEGER NOT NULL REFERENCES intents,
  number       INTEGER NOT NULL CHECK (number >= 0),
  nonce        INTEGER NOT NULL CHECK (nonce >= 0),
  raw          BLOB NOT NULL,
  gas          INTEGER NOT NULL,
  max_fee      BLOB NOT NULL CHECK (length(max_fee) = 32),
  priority_fee BLOB NOT NULL CHECK (length(priority_fee) = 32),
  signed_at    INTEGER NOT NULL,
  signed_block INTEGER NOT NULL,
  cancels      INTEGER NOT NULL CHECK (cancels IN (0, 1)),
  UNIQUE (intent, number)
) STRICT, WITHOUT ROWID;

-- How far each log follower has read, and what it has handed on, within reach of a reorg.
CREATE TABLE followed_blocks (
  follower TEXT NOT NULL,
  number   INTEGER NOT NULL CHECK (number >= 0),
  hash     BLOB NOT NULL CHECK (length(hash) = 32),
  PRIMARY KEY (follower, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE followed_logs (
  follower   TEXT NOT NULL,
  number     INTEGER NOT NULL CHECK (number >= 0),
  log_index  INTEGER NOT NULL CHECK (log_index >= 0),
  block_hash BLOB NOT NULL CHECK (length(block_hash) = 32),
  tx_hash    BLOB NOT NULL CHECK (length(tx_hash) = 32),
  address    BLOB NOT NULL CHECK (length(address) = 20),
  topics     BLOB NOT NULL CHECK (length(topics) % 32 = 0),
  data       BLOB NOT NULL,
  PRIMARY KEY (follower, number, log_index)
) STRICT, WITHOUT ROWID;
