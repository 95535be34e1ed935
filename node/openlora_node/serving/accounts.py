"""`/openlora/voucher/1`: what a payer holds here, what proves its receipts, vouchers that come late or after a loss."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict

from ..admission import Rates
from ..attribution import Epochs
from ..attribution.epochs import leaf_of
from ..journal import Ledger, LedgerKey, Reader, StoredReceipt
from ..protocol import messages
from ..protocol.crypto import Address
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.merkle import MerkleTree
from ..protocol.structs import CLOCK_SKEW_S, AccountQuery, Voucher
from .desk import Desk

MAX_LEDGERS = 64
MAX_OPEN_RECEIPTS = 256
MAX_READ = 4_096
MAX_TREES = 4
"""Of epochs that proofs were asked of. One of 100,000 receipts takes half a second and 20 MB."""
MAX_ANSWER_BYTES = 480 << 10
"""Leaves room for the message around it."""
COMPUTE_BYTES = 20


class Accounts:
    """Answers a payer about its own account, and nobody else."""

    def __init__(self, desk: Desk, rates: Rates) -> None:
        self._desk = desk
        self._rates = rates
        self._trees: OrderedDict[int, MerkleTree] = OrderedDict()
        self._making = threading.Lock()

    async def account(self, packed: bytes) -> messages.Account:
        """The payer's ledgers and the receipts that no voucher covers, the largest debts first.

        Raises MALFORMED, BAD_SIGNATURE, WRONG_NODE, NOT_YET_VALID, REQUEST_EXPIRED, RATE_LIMITED.
        """
        payer = await self._asking(packed)
        return await asyncio.to_thread(self._read, payer)

    async def proof(self, packed: bytes, receipt: bytes) -> messages.Proof:
        """A receipt of the payer's: its leaves, and once its epoch is over its path to the anchored root.

        Raises as `account`; NOT_FOUND for a receipt that is not the payer's.
        """
        payer = await self._asking(packed)
        return await asyncio.to_thread(self._prove, payer, receipt)

    async def _asking(self, packed: bytes) -> bytes:
        """The payer that a query speaks for."""
        signed = Signed.unpack(AccountQuery, packed)
        query, now = signed.value, self._desk.clock()
        if query.node != self._desk.house.node:
            raise OpenLoraError(ErrorCode.WRONG_NODE)
        if abs(query.issued_at - now) > CLOCK_SKEW_S:
            late = query.issued_at < now
            raise OpenLoraError(
                ErrorCode.REQUEST_EXPIRED if late else ErrorCode.NOT_YET_VALID, "sign the query again, by a right clock"
            )
        await self._authorised(signed.signer(self._desk.house.domain), query.payer)
        return query.payer

    async def voucher(self, packed: bytes) -> messages.VoucherReply:
        """Keep a voucher outside any response; the newest of its key.

        Raises MALFORMED, BAD_SIGNATURE, WRONG_NODE, RATE_LIMITED, VOUCHER_CONFLICT; NOT_FOUND for an unknown ledger.
        """
        signed = Signed.unpack(Voucher, packed)
        voucher = signed.value
        if voucher.node != self._desk.house.node:
            raise OpenLoraError(ErrorCode.WRONG_NODE)
        signer = signed.signer(self._desk.house.domain)
        await self._authorised(signer, voucher.payer)
        key = LedgerKey.of(voucher, signer)
        ledger = await self._desk.ledgers.find(key)
        if ledger is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "nothing was ever served under this payer, signer and pipeline")
        await self._desk.ledgers.pay(ledger, signed)
        assert ledger.signed is not None
        return messages.VoucherReply(voucher=ledger.signed.pack())

    async def _authorised(self, signer: Address, payer: bytes) -> None:
        if refusal := self._rates.signer(signer, self._desk.instant()):
            raise refusal.error()
        if signer != payer and not await self._desk.chain.may_sign(payer, signer):
            raise OpenLoraError(
                ErrorCode.BAD_SIGNATURE, "neither the payer nor a signer that it authorised signed this"
            )

    def _prove(self, payer: bytes, receipt: bytes) -> messages.Proof:
        """In a thread, as `_read`."""
        node = self._desk.house.node
        with Reader(self._desk.journal.path) as reader:
            found = [stored for stored in reader.find_receipts(receipt, 2) if stored.digest == receipt]
            if not found or found[0].receipt.value.payer != payer:
                raise OpenLoraError(ErrorCode.NOT_FOUND, "there is no such receipt of this payer's here")
            (stored,) = found
            value = stored.receipt.value
            epochs = Epochs(reader, node, self._desk.options.epoch_s)
            epoch = epochs.number_at(value.finished_at)
            closed = epoch <= epochs.newest_closed(self._desk.clock())
            return messages.Proof(
                salt=stored.salt,
                evidence=reader.evidence(node, value.seq),
                epoch=epoch,
                closed=closed,
                path=self._tree(epochs, epoch).proof(leaf_of(stored)) if closed else (),
            )

    def _tree(self, epochs: Epochs, epoch: int) -> MerkleTree:
        """A closed epoch's tree: one is made at a time, the newest asked for are kept."""
        with self._making:
            tree = self._trees.pop(epoch, None) or epochs.tree(epoch)
            self._trees[epoch] = tree
            while len(self._trees) > MAX_TREES:
                self._trees.popitem(last=False)
        return tree

    def _read(self, payer: bytes) -> messages.Account:
        """In a thread: SQLite may wait for the disk."""
        node = self._desk.house.node
        with Reader(self._desk.journal.path) as reader:
            found = sorted(reader.ledgers(payer, node, MAX_READ), key=lambda ledger: -ledger.owed)
            ledgers: list[messages.Ledger] = []
            receipts: list[bytes] = []
            room = MAX_ANSWER_BYTES
            for ledger in found[:MAX_LEDGERS]:
                known = reader.pipeline(ledger.key.pipeline)
                if known is None:
                    continue
                shown = _shown(ledger, known.pipeline.pack())
                room -= len(shown.pipeline) + len(shown.voucher) + 128
                if room < 0:
                    break
                ledgers.append(shown)
                for stored in reader.open_receipts(ledger.key, MAX_OPEN_RECEIPTS - len(receipts)):
                    packed = _packed(stored)
                    room -= len(packed) + 8
                    if room >= 0:
                        receipts.append(packed)
        return messages.Account(ledgers=tuple(ledgers), open_receipts=tuple(receipts))


def _packed(stored: StoredReceipt) -> bytes:
    return stored.receipt.pack()


def _shown(ledger: Ledger, pipeline: bytes) -> messages.Ledger:
    return messages.Ledger(
        signer=ledger.key.signer,
        pipeline=pipeline,
        voucher=ledger.voucher or b"",
        tokens=ledger.tally.tokens,
        compute_micro_wei=ledger.tally.compute_micro_wei.to_bytes(COMPUTE_BYTES, "big"),
    )
