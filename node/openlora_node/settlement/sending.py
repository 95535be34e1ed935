"""The outbox of a key whose intents live in the journal, as the configuration asks for it."""

from __future__ import annotations

from collections.abc import Callable

from openlora_chain.compiled import error_table
from openlora_chain.outbox import Outbox
from openlora_chain.policy import Rules
from openlora_chain.transaction import TransactionSigner

from ..chainview import ChainParts
from ..config.schema import Chain
from ..journal import Journal
from ..journal.outbox import JournalOutbox


def make_outbox(
    journal: Journal, parts: ChainParts, signer: TransactionSigner, options: Chain, clock: Callable[[], int]
) -> Outbox:
    """The only sender of this key; its `run` is a task of its own, beside the one that submits to it."""
    return Outbox(
        parts.rpc,
        JournalOutbox(journal),
        signer,
        parts.deployment.chain_id,
        error_table().explain,
        Rules(confirmations=options.confirmations + 1, fee_cap=options.max_fee_per_gas),
        clock=clock,
        poll_s=options.poll_interval.total_seconds(),
    )
