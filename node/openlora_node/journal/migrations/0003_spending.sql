-- What a payer's gateway may still have to pay and what it paid: one row a signed request. `amount` counts against the
-- caps: the request's maxFee while it is open, its receipt's fee once it is paid, and once it is lost `given`: what the
-- vouchers signed for it were worth beyond those that the node held before.
-- Quote, pipeline and counts stay, so that a receipt that comes late is checked as one that comes at once.
CREATE TABLE spends (
  request_digest BLOB PRIMARY KEY CHECK (length(request_digest) = 32),
  node           BLOB NOT NULL CHECK (length(node) = 32),
  signer         BLOB NOT NULL CHECK (length(signer) = 20),
  pipeline       BLOB NOT NULL CHECK (length(pipeline) = 32),
  at             INTEGER NOT NULL,
  state          TEXT NOT NULL CHECK (state IN ('open', 'paid', 'lost')),
  amount         BLOB NOT NULL CHECK (length(amount) = 16),
  given          BLOB NOT NULL CHECK (length(given) = 16),
  model          TEXT NOT NULL,
  prompt_tokens  INTEGER NOT NULL CHECK (prompt_tokens >= 0),
  quote          BLOB NOT NULL,
  preimage       BLOB NOT NULL,
  charged        INTEGER NOT NULL DEFAULT 0 CHECK (charged IN (0, 1)),
  received       BLOB,
  note           TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX spends_by_time ON spends (at);
CREATE INDEX spends_by_ledger ON spends (node, signer, pipeline, charged);
CREATE INDEX spends_unsettled ON spends (node, state) WHERE state <> 'paid';

-- Where a ledger goes on after a payer lost its journal: what it had signed for by then, as the node showed it.
CREATE TABLE baselines (
  node     BLOB NOT NULL CHECK (length(node) = 32),
  signer   BLOB NOT NULL CHECK (length(signer) = 20),
  pipeline BLOB NOT NULL CHECK (length(pipeline) = 32),
  tokens   INTEGER NOT NULL CHECK (tokens >= 0),
  compute  BLOB NOT NULL CHECK (length(compute) = 16),
  PRIMARY KEY (node, signer, pipeline)
) STRICT, WITHOUT ROWID;
