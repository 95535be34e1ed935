"""The contracts as typed classes: reads ask the chain, writes give a `Calldata` for the outbox or a cold wallet.

One class a contract, methods named as in Solidity. Amounts are wei, ids 32 bytes, addresses 20 bytes. A read that the
contract refuses raises ChainError REVERTED with the custom error's name in the message.
"""

from .artifact_registry import Artifact as Artifact
from .artifact_registry import ArtifactRegistry as ArtifactRegistry
from .artifact_registry import Policy as Policy
from .artifact_registry import TermsTuple as TermsTuple
from .artifact_registry import TermsVersion as TermsVersion
from .contract import Calldata as Calldata
from .credits import ActiveCredits as ActiveCredits
from .credits import Credits as Credits
from .credits import PendingCredits as PendingCredits
from .node_registry import Node as Node
from .node_registry import NodeKey as NodeKey
from .node_registry import NodeRegistry as NodeRegistry
from .receipt_anchor import ReceiptAnchor as ReceiptAnchor
from .settlement import Channel as Channel
from .settlement import CreditPool as CreditPool
from .settlement import Escrow as Escrow
from .settlement import Part as Part
from .settlement import PipelineTuple as PipelineTuple
from .settlement import Settlement as Settlement
from .settlement import SharePool as SharePool
from .settlement import VoucherTuple as VoucherTuple
