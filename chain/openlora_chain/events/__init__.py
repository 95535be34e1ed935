"""Event logs into typed values, by the ABIs of our contracts. Pure.

An event is a hint: caches are invalidated by it, money never hangs on one. Fields stand in the order of the ABI; ids
are 32 bytes, addresses 20 bytes, amounts wei, times unix seconds.
"""

from .artifact_registry import ArtifactRegistered as ArtifactRegistered
from .artifact_registry import LicenceBought as LicenceBought
from .artifact_registry import ListingChanged as ListingChanged
from .artifact_registry import OwnerChanged as OwnerChanged
from .artifact_registry import PolicyChanged as PolicyChanged
from .artifact_registry import TermsChanged as TermsChanged
from .credits import CreditsActivated as CreditsActivated
from .credits import CreditsLapsed as CreditsLapsed
from .credits import CreditsPosted as CreditsPosted
from .credits import CreditsVetoed as CreditsVetoed
from .node_registry import EndpointChanged as EndpointChanged
from .node_registry import KeyRotated as KeyRotated
from .node_registry import NodeDeregistered as NodeDeregistered
from .node_registry import NodeRegistered as NodeRegistered
from .node_registry import NodeSlashed as NodeSlashed
from .node_registry import RecipientChanged as RecipientChanged
from .node_registry import StakeAdded as StakeAdded
from .receipt_anchor import Anchored as Anchored
from .settlement import CreditPaid as CreditPaid
from .settlement import DebtCollected as DebtCollected
from .settlement import Harvested as Harvested
from .settlement import OperatorPaid as OperatorPaid
from .settlement import OwnerPaid as OwnerPaid
from .settlement import PipelineRegistered as PipelineRegistered
from .settlement import PipelineSkipped as PipelineSkipped
from .settlement import SharePaid as SharePaid
from .settlement import SignerAuthorized as SignerAuthorized
from .settlement import SignerThawing as SignerThawing
from .settlement import ThawStarted as ThawStarted
from .settlement import VoucherRedeemed as VoucherRedeemed
from .settlement import VoucherSkipped as VoucherSkipped
from .table import CONTRACT_EVENTS as CONTRACT_EVENTS
from .table import Event as Event
from .table import EventTable as EventTable
