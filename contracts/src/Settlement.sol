// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {IArtifactRegistry} from "./interfaces/IArtifactRegistry.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ISettlement} from "./interfaces/ISettlement.sol";
import {SettlementDomain} from "./lib/SettlementDomain.sol";
import {Pipeline, StructHash, Voucher} from "./lib/Types.sol";
import {Escrow} from "./settlement/Escrow.sol";
import {Pipelines} from "./settlement/Pipelines.sol";
import {Revenue} from "./settlement/Revenue.sol";
import {Signers} from "./settlement/Signers.sol";

/// @title Settlement: turns payers' cumulative vouchers into what everyone earned
/// @notice One channel is (payer, signer, node, pipeline); its newest voucher says what it owes in all. Redeeming pays
/// the difference out of the payer's escrow with that node, and never touches other escrow. Only the node redeems: a
/// payer that presented vouchers of its own could overtake those the node holds, or pay its escrow out to itself. Where
/// escrow falls short, every part is paid pro rata and the rest is written down as the channel's debt, to be collected
/// when escrow grows: neither superseded terms nor a revoked signer voids what was once accepted.
contract Settlement is Revenue, Signers, Ownable2Step {
    /// @notice The newest accepted voucher of a channel.
    struct Channel {
        uint128 compute;
        uint64 tokens;
        bool indebted;
    }

    /// @notice Two sums in wei: what is due, what was paid, or what a channel still owes.
    struct Amounts {
        uint128 compute;
        uint128 royalties;
    }

    /// @dev What the vouchers of a batch so far taught: whom the caller acts for, and the last one's pipeline.
    struct Lookup {
        bytes32 node;
        bytes32 pipelineId;
        Header header;
        uint64 until;
    }

    /// @notice The protocol's part of compute never exceeds 10 %.
    uint16 public constant MAX_PROTOCOL_BPS = 1_000;

    /// @dev Signed 64-bit integers are what the protocol's other readers have.
    uint64 private constant MAX_TOKENS = uint64(type(int64).max);

    /// @notice The protocol's part of compute, in basis points.
    uint16 public protocolBps;

    address private _treasury;

    /// @notice May pause deposits at once; only the owner ends a pause.
    address public guardian;

    mapping(bytes32 channel => Channel) private _channels;
    mapping(bytes32 channel => Amounts) private _debts;

    /// @notice A voucher was accepted and paid as far as escrow reached.
    event VoucherRedeemed(
        address indexed payer,
        bytes32 indexed node,
        bytes32 indexed pipelineId,
        address signer,
        uint64 cumulativeTokens,
        uint128 cumulativeCompute,
        uint256 operatorPaid,
        uint256 protocolPaid,
        uint256 royaltiesPaid,
        bytes32 referenceDigest
    );
    /// @notice A channel's debt was collected as far as escrow reached.
    event DebtCollected(
        address indexed payer,
        bytes32 indexed node,
        bytes32 indexed pipelineId,
        address signer,
        uint256 operatorPaid,
        uint256 protocolPaid,
        uint256 royaltiesPaid
    );
    /// @notice A channel owes this much beyond what was paid; both 0 when a debt is paid off.
    event DebtChanged(
        address indexed payer,
        bytes32 indexed node,
        bytes32 indexed pipelineId,
        address signer,
        uint256 compute,
        uint256 royalties
    );
    /// @notice Item `index` of a batch was left out; `reason` is the selector of the error that redeeming it gives.
    event VoucherSkipped(uint256 indexed index, bytes32 indexed node, bytes4 reason);
    /// @notice Pipeline `index` of a batch was left out; `reason` is the selector of the error.
    event PipelineSkipped(uint256 indexed index, bytes32 indexed pipelineId, bytes4 reason);
    /// @notice The protocol's part of compute changed.
    event ProtocolBpsChanged(uint16 bps);
    /// @notice The treasury changed.
    event TreasuryChanged(address indexed treasury);
    /// @notice The guardian changed.
    event GuardianChanged(address indexed guardian);

    /// @notice The caller is neither the owner nor the key of the voucher's node.
    error NotPayee();
    /// @notice The signature is not 65 bytes r, s, v with low s and v 27 or 28.
    error BadSignature();
    /// @notice The signer is neither the payer nor authorised by it now.
    error UnauthorizedSigner();
    /// @notice A newer voucher was redeemed. Batches skip it; redeeming it alone pays nothing and does not revert.
    error StaleVoucher();
    /// @notice Of tokens and compute one grew and the other fell.
    error ConflictingVoucher();
    /// @notice The grace period of superseded terms passed.
    error TermsSuperseded();
    /// @notice Tokens exceed 2^63 - 1, or compute and royalties together 2^128 - 1 wei.
    error AmountTooLarge();
    /// @notice As many signatures as vouchers.
    error LengthMismatch();
    /// @notice Above `MAX_PROTOCOL_BPS`.
    error ProtocolBpsTooHigh(uint16 bps);
    /// @notice Only the guardian or the owner may pause.
    error NotGuardian(address caller);
    /// @notice The node registry was built for another settlement.
    error WrongDomain();

    /// @param governance Owner: a timelock.
    /// @param treasury_ Who receives the protocol's part.
    /// @param guardian_ Who may pause deposits at once; zero for nobody.
    /// @param nodes The node registry.
    /// @param artifacts The artifact registry.
    /// @param credits The credits contract.
    /// @param escrowThaw Thaw of escrow, in seconds.
    /// @param signerThaw Thaw of signers, in seconds.
    /// @param bps The protocol's part of compute.
    constructor(
        address governance,
        address treasury_,
        address guardian_,
        INodeRegistry nodes,
        IArtifactRegistry artifacts,
        address credits,
        uint48 escrowThaw,
        uint64 signerThaw,
        uint16 bps
    )
        EIP712("OpenLoRA", "1")
        Ownable(governance)
        Escrow(nodes, escrowThaw)
        Pipelines(artifacts)
        Revenue(credits)
        Signers(signerThaw)
    {
        if (SettlementDomain(address(nodes)).SETTLEMENT() != address(this)) revert WrongDomain();
        _setTreasury(treasury_);
        _setGuardian(guardian_);
        _setProtocolBps(bps);
    }

    /// @notice Registers a pipeline from its parts. Anyone may; a second time changes nothing.
    function registerPipeline(Pipeline calldata pipeline) public returns (bytes32 pipelineId) {
        bytes4 problem;
        (problem, pipelineId) = _registerPipeline(pipeline);
        _require(problem);
    }

    /// @notice Redeems a voucher of the caller's node. A stale one pays at most the channel's debt and does not revert.
    /// @dev Redeeming only moves sums within this contract and asks the registry by static calls: no guard is needed.
    /// @return paid Wei that left the payer's escrow.
    function redeem(Voucher calldata voucher, bytes calldata signature) external returns (uint256 paid) {
        Lookup memory lookup;
        bytes4 problem;
        (problem, paid) = _redeem(voucher, signature, lookup);
        if (problem != StaleVoucher.selector) _require(problem);
    }

    /// @notice Registers the pipelines that are new, then redeems vouchers of the caller's nodes. What cannot be, is
    /// skipped with an event.
    /// @dev Vouchers of one node, and of one pipeline, side by side share a look-up. Callers bound the batch by gas.
    /// @return paid Wei that left escrow in all.
    function redeemMany(Pipeline[] calldata pipelines, Voucher[] calldata vouchers, bytes[] calldata signatures)
        external
        returns (uint256 paid)
    {
        if (vouchers.length != signatures.length) revert LengthMismatch();
        for (uint256 i; i < pipelines.length; ++i) {
            (bytes4 problem, bytes32 pipelineId) = _registerPipeline(pipelines[i]);
            if (problem != 0) emit PipelineSkipped(i, pipelineId, problem);
        }
        Lookup memory lookup;
        for (uint256 i; i < vouchers.length; ++i) {
            (bytes4 problem, uint256 amount) = _redeem(vouchers[i], signatures[i], lookup);
            if (problem != 0) emit VoucherSkipped(i, vouchers[i].node, problem);
            paid += amount;
        }
    }

    /// @notice Pays a channel's debt as far as escrow reaches. Needs no voucher: it was accepted before.
    /// @return paid Wei that left the payer's escrow.
    function collect(address payer, address signer, bytes32 node, bytes32 pipelineId) external returns (uint256 paid) {
        paid = _collect(payer, signer, node, pipelineId);
        if (paid == 0) revert NothingToPay();
    }

    /// @notice Sets the protocol's part of compute, for all that is redeemed from now on.
    function setProtocolBps(uint16 bps) external onlyOwner {
        _setProtocolBps(bps);
    }

    /// @notice Sets who receives the protocol's part.
    function setTreasury(address newTreasury) external onlyOwner {
        _setTreasury(newTreasury);
    }

    /// @notice Sets who may pause deposits at once.
    function setGuardian(address newGuardian) external onlyOwner {
        _setGuardian(newGuardian);
    }

    /// @notice Stops deposits and moves. Redeeming, claims and withdrawals never stop.
    function pause() external {
        if (msg.sender != guardian && msg.sender != owner()) revert NotGuardian(msg.sender);
        _pause();
    }

    /// @notice Lets deposits and moves go on.
    function unpause() external onlyOwner {
        _unpause();
    }

    /// @inheritdoc ISettlement
    function treasury() public view override returns (address) {
        return _treasury;
    }

    /// @notice The digest that a payer or its signer signs.
    function voucherDigest(Voucher calldata voucher) external view returns (bytes32) {
        return _hashTypedDataV4(StructHash.voucher(voucher));
    }

    /// @notice The newest accepted voucher of a channel and its debt.
    function channelOf(address payer, address signer, bytes32 node, bytes32 pipelineId)
        external
        view
        returns (Channel memory channel, Amounts memory debt)
    {
        bytes32 id = _channelId(payer, signer, node, pipelineId);
        return (_channels[id], _debts[id]);
    }

    /// @dev The order of the checks is the order of the reasons. Returns a reason instead of reverting.
    function _redeem(Voucher calldata voucher, bytes calldata signature, Lookup memory lookup)
        private
        returns (bytes4 problem, uint256 paid)
    {
        if (voucher.node == 0 || voucher.node != lookup.node) {
            if (!NODES.mayActFor(voucher.node, msg.sender)) return (NotPayee.selector, 0);
            lookup.node = voucher.node;
        }
        (address signer, ECDSA.RecoverError failure,) =
            ECDSA.tryRecoverCalldata(_hashTypedDataV4(StructHash.voucher(voucher)), signature);
        if (failure != ECDSA.RecoverError.NoError) return (BadSignature.selector, 0);
        if (!maySign(voucher.payer, signer)) return (UnauthorizedSigner.selector, 0);
        bytes32 id = _channelId(voucher.payer, signer, voucher.node, voucher.pipelineId);
        Channel memory channel = _channels[id];
        if (voucher.cumulativeTokens <= channel.tokens && voucher.cumulativeCompute <= channel.compute) {
            if (channel.indebted) paid = _collect(voucher.payer, signer, voucher.node, voucher.pipelineId);
            return (paid == 0 ? StaleVoucher.selector : bytes4(0), paid);
        }
        if (voucher.cumulativeTokens < channel.tokens || voucher.cumulativeCompute < channel.compute) {
            return (ConflictingVoucher.selector, 0);
        }
        if (voucher.cumulativeTokens > MAX_TOKENS) return (AmountTooLarge.selector, 0);
        _lookUp(voucher.pipelineId, lookup);
        if (lookup.header.partCount == 0) return (UnknownPipeline.selector, 0);
        if (block.timestamp > lookup.until) return (TermsSuperseded.selector, 0);
        uint256 royalties = _royalties(lookup.header, voucher.cumulativeTokens);
        if (royalties + voucher.cumulativeCompute > type(uint128).max) return (AmountTooLarge.selector, 0);
        return (0, _accept(voucher, signer, id, channel, royalties - _royalties(lookup.header, channel.tokens)));
    }

    /// @dev Advances the channel, then pays the difference and older debt as far as escrow reaches.
    function _accept(Voucher calldata voucher, address signer, bytes32 id, Channel memory channel, uint256 royaltiesDue)
        private
        returns (uint256)
    {
        Amounts memory due = Amounts(voucher.cumulativeCompute - channel.compute, uint128(royaltiesDue));
        if (channel.indebted) {
            due.compute += _debts[id].compute;
            due.royalties += _debts[id].royalties;
        }
        Amounts memory paid = _take(voucher.payer, voucher.node, due);
        bool indebted = paid.compute != due.compute || paid.royalties != due.royalties;
        _channels[id] = Channel(voucher.cumulativeCompute, voucher.cumulativeTokens, indebted);
        uint256 protocol = _distribute(voucher.node, voucher.pipelineId, paid);
        _announce(voucher, signer, paid, protocol);
        if (indebted || channel.indebted) {
            Amounts memory debt = Amounts(due.compute - paid.compute, due.royalties - paid.royalties);
            _debts[id] = debt;
            emit DebtChanged(voucher.payer, voucher.node, voucher.pipelineId, signer, debt.compute, debt.royalties);
        }
        return _sum(paid);
    }

    function _announce(Voucher calldata voucher, address signer, Amounts memory paid, uint256 protocol) private {
        emit VoucherRedeemed(
            voucher.payer,
            voucher.node,
            voucher.pipelineId,
            signer,
            voucher.cumulativeTokens,
            voucher.cumulativeCompute,
            paid.compute - protocol,
            protocol,
            paid.royalties,
            voucher.referenceDigest
        );
    }

    function _collect(address payer, address signer, bytes32 node, bytes32 pipelineId) private returns (uint256) {
        bytes32 id = _channelId(payer, signer, node, pipelineId);
        Amounts memory debt = _debts[id];
        Amounts memory paid = _take(payer, node, debt);
        if (_sum(paid) == 0) return 0;
        debt.compute -= paid.compute;
        debt.royalties -= paid.royalties;
        _debts[id] = debt;
        if (_sum(debt) == 0) _channels[id].indebted = false;
        uint256 protocol = _distribute(node, pipelineId, paid);
        emit DebtCollected(payer, node, pipelineId, signer, paid.compute - protocol, protocol, paid.royalties);
        emit DebtChanged(payer, node, pipelineId, signer, debt.compute, debt.royalties);
        return _sum(paid);
    }

    /// @dev Takes what is due out of escrow, both parts pro rata where it falls short; their sum is what left escrow.
    function _take(address payer, bytes32 node, Amounts memory due) private returns (Amounts memory paid) {
        uint256 total = _sum(due);
        uint256 drawn = _draw(payer, node, total);
        if (drawn == total) return Amounts(due.compute, due.royalties);
        paid.compute = uint128(drawn * due.compute / total);
        paid.royalties = uint128(drawn - paid.compute);
    }

    function _distribute(bytes32 node, bytes32 pipelineId, Amounts memory paid) private returns (uint256 protocol) {
        protocol = uint256(paid.compute) * protocolBps / BPS;
        _book(node, pipelineId, paid.compute - protocol, protocol, paid.royalties);
    }

    function _sum(Amounts memory amounts) private pure returns (uint256) {
        return uint256(amounts.compute) + amounts.royalties;
    }

    function _lookUp(bytes32 pipelineId, Lookup memory lookup) private view {
        if (lookup.pipelineId == pipelineId && lookup.header.partCount != 0) return;
        lookup.pipelineId = pipelineId;
        lookup.header = _headerOf(pipelineId);
        lookup.until = _redeemableUntil(pipelineId, lookup.header.partCount);
    }

    function _channelId(address payer, address signer, bytes32 node, bytes32 pipelineId)
        private
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(payer, signer, node, pipelineId));
    }

    function _setProtocolBps(uint16 bps) private {
        if (bps > MAX_PROTOCOL_BPS) revert ProtocolBpsTooHigh(bps);
        protocolBps = bps;
        emit ProtocolBpsChanged(bps);
    }

    function _setTreasury(address newTreasury) private {
        if (newTreasury == address(0)) revert ZeroAddress();
        _treasury = newTreasury;
        emit TreasuryChanged(newTreasury);
    }

    function _setGuardian(address newGuardian) private {
        guardian = newGuardian;
        emit GuardianChanged(newGuardian);
    }

    /// @dev Reverts with the error that `problem` selects.
    function _require(bytes4 problem) private pure {
        if (problem == 0) return;
        assembly ("memory-safe") {
            mstore(0, problem)
            revert(0, 4)
        }
    }
}
