-- Amounts in wei are 16-byte big-endian blobs (uint128), sums and micro-wei 32-byte ones: both sort as numbers do.
-- Rows carry the node, because a payer's journal holds its dealings with many.

CREATE TABLE meta (
  id             INTEGER PRIMARY KEY CHECK (id = 1),
  chain_id       TEXT NOT NULL,
  contract       BLOB NOT NULL CHECK (length(contract) = 20),
  domain_name    TEXT NOT NULL,
  domain_version TEXT NOT NULL,
  role           TEXT NOT NULL CHECK (role IN ('node', 'payer')),
  owner          BLOB NOT NULL CHECK (length(owner) = CASE role WHEN 'node' THEN 32 ELSE 20 END)
) STRICT;

-- What one signer owes one node for one pipeline. `reserved` is the sum of max_fee over the running requests.
CREATE TABLE ledgers (
  payer             BLOB NOT NULL CHECK (length(payer) = 20),
  node              BLOB NOT NULL CHECK (length(node) = 32),
  signer            BLOB NOT NULL CHECK (length(signer) = 20),
  pipeline          BLOB NOT NULL CHECK (length(pipeline) = 32),
  tokens            INTEGER NOT NULL CHECK (tokens >= 0),
  compute_micro_wei BLOB NOT NULL CHECK (length(compute_micro_wei) = 32),
  fee               BLOB NOT NULL CHECK (length(fee) = 16),
  reserved          BLOB NOT NULL CHECK (length(reserved) = 16),
  voucher           BLOB,
  voucher_value     BLOB NOT NULL CHECK (length(voucher_value) = 16),
  redeemed          BLOB NOT NULL CHECK (length(redeemed) = 16),
  PRIMARY KEY (payer, node, signer, pipeline)
) STRICT, WITHOUT ROWID;

-- Sums over a payer's ledgers with one node, so that the door reads one row however many pipelines the payer uses.
CREATE TABLE accounts (
  payer    BLOB NOT NULL,
  node     BLOB NOT NULL,
  exposure BLOB NOT NULL CHECK (length(exposure) = 32),
  owed     BLOB NOT NULL CHECK (length(owed) = 32),
  PRIMARY KEY (payer, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
  digest      BLOB PRIMARY KEY CHECK (length(digest) = 32),
  payer       BLOB NOT NULL,
  node        BLOB NOT NULL,
  signer      BLOB NOT NULL,
  pipeline    BLOB NOT NULL,
  nonce       BLOB NOT NULL CHECK (length(nonce) = 32),
  max_fee     BLOB NOT NULL CHECK (length(max_fee) = 16),
  expires_at  INTEGER NOT NULL,
  admitted_at INTEGER NOT NULL,
  state       TEXT NOT NULL CHECK (state IN ('running', 'interrupted', 'done')),
  signed      BLOB NOT NULL,
  UNIQUE (payer, nonce),
  FOREIGN KEY (payer, node, signer, pipeline) REFERENCES ledgers
) STRICT;

CREATE INDEX requests_by_signer ON requests (signer, expires_at);
CREATE INDEX requests_open ON requests (state, expires_at) WHERE state <> 'done';

CREATE TABLE receipts (
  node           BLOB NOT NULL,
  seq            INTEGER NOT NULL CHECK (seq >= 0),
  digest         BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
  previous       BLOB NOT NULL CHECK (length(previous) = 32),
  request_digest BLOB NOT NULL UNIQUE REFERENCES requests,
  payer          BLOB NOT NULL,
  signer         BLOB NOT NULL,
  pipeline       BLOB NOT NULL,
  status         INTEGER NOT NULL,
  tokens         INTEGER NOT NULL CHECK (tokens >= 0),
  compute        BLOB NOT NULL CHECK (length(compute) = 16),
  royalties      BLOB NOT NULL CHECK (length(royalties) = 16),
  salt           BLOB NOT NULL CHECK (length(salt) = 32),
  signed         BLOB NOT NULL,
  PRIMARY KEY (node, seq),
  FOREIGN KEY (payer, node, signer, pipeline) REFERENCES ledgers
) STRICT, WITHOUT ROWID;

CREATE INDEX receipts_by_ledger ON receipts (payer, node, signer, pipeline, seq);
