// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Component, Kind} from "../interfaces/IArtifactRegistry.sol";
import {CreditPool, ISettlement} from "../interfaces/ISettlement.sol";
import {Coin} from "../lib/Coin.sol";
import {Leaf} from "../lib/Leaf.sol";
import {Escrow} from "./Escrow.sol";
import {Pipelines} from "./Pipelines.sol";

/// @title Revenue: what was redeemed, until everyone took their part
/// @notice Redeeming writes two sums: the node's and the (node, pipeline)'s. Harvesting divides the latter among owners
/// and datasets when somebody cares to. Unharvested royalties follow an artifact; harvested balances stay with the
/// account they were credited to. Every claim pays the beneficiary's recipient, whoever calls it.
abstract contract Revenue is ISettlement, Escrow, Pipelines {
    /// @notice What a node earned and did not claim, and what the protocol has of it, in wei.
    struct NodeLedger {
        uint128 operator;
        uint128 protocol;
    }

    /// @notice Royalties of a (node, pipeline), in wei, cumulative: redeemed, and divided among artifacts.
    struct Accumulator {
        uint128 accrued;
        uint128 harvested;
    }

    /// @notice A dataset's income under its static share table, in wei, cumulative.
    struct SharePool {
        uint128 total;
        uint128 claimed;
    }

    /// @notice Names an accumulator.
    struct Source {
        bytes32 node;
        bytes32 pipelineId;
    }

    uint256 internal constant BPS = 10_000;

    /// @notice The contract that decides credit pools.
    address public immutable CREDITS;

    /// @notice What a node and the protocol have from a node's compute.
    mapping(bytes32 node => NodeLedger) public ledgerOf;

    /// @notice Royalties of a (node, pipeline).
    mapping(bytes32 node => mapping(bytes32 pipelineId => Accumulator)) public accumulatorOf;

    /// @notice Harvested royalties that an artifact owner can claim, in wei.
    mapping(address owner => uint256) public claimable;

    /// @notice A dataset's static share pool, under its share table's root. No other root of the dataset has income.
    mapping(bytes32 dataset => mapping(bytes32 root => SharePool)) public sharePoolOf;

    /// @notice What was paid for one leaf of a dataset's share table, in wei.
    mapping(bytes32 dataset => mapping(bytes32 leaf => uint256)) public paidForLeaf;

    mapping(bytes32 node => mapping(bytes32 dataset => CreditPool)) private _creditPools;

    /// @notice An accumulator was divided up to `harvested`.
    event Harvested(bytes32 indexed node, bytes32 indexed pipelineId, uint256 harvested);
    /// @notice An owner can claim more, because of `artifact`.
    event OwnerCredited(address indexed owner, bytes32 indexed artifact, uint256 amount);
    /// @notice A dataset's static shares grew.
    event SharesCredited(bytes32 indexed dataset, uint256 amount);
    /// @notice A credit pool grew.
    event CreditsAccrued(bytes32 indexed node, bytes32 indexed dataset, uint256 amount);
    /// @notice A credit pool was decided up to `through`.
    event CreditsSettled(bytes32 indexed node, bytes32 indexed dataset, uint256 through, uint256 credited);
    /// @notice A node's earnings were paid.
    event OperatorPaid(bytes32 indexed node, address indexed recipient, uint256 amount);
    /// @notice An artifact owner was paid.
    event OwnerPaid(address indexed owner, uint256 amount);
    /// @notice A contributor was paid out of static shares.
    event SharePaid(bytes32 indexed dataset, address indexed contributor, uint256 bps, uint256 amount);
    /// @notice A contributor was paid credits.
    event CreditPaid(bytes32 indexed node, bytes32 indexed dataset, address indexed contributor, uint256 amount);
    /// @notice The protocol's part of a node's compute was paid.
    event ProtocolPaid(bytes32 indexed node, address indexed treasury, uint256 amount);

    /// @notice The proof does not lead from this share to the dataset's share table, or the table had no income yet.
    error BadProof();
    /// @notice Only the credits contract decides pools.
    error NotCredits(address caller);
    /// @notice A pool is decided forwards, within what it accrued.
    error BadSettlement();

    modifier onlyCredits() {
        if (msg.sender != CREDITS) revert NotCredits(msg.sender);
        _;
    }

    constructor(address credits) {
        CREDITS = credits;
    }

    /// @notice Divides the royalties of accumulators among owners and datasets. Anyone may call it.
    function harvestMany(Source[] calldata sources) external nonReentrant {
        for (uint256 i; i < sources.length; ++i) {
            _harvest(sources[i].node, sources[i].pipelineId);
        }
    }

    /// @notice Pays a node's earnings to its recipient.
    function claimOperator(bytes32 node) external nonReentrant returns (uint256 amount) {
        amount = ledgerOf[node].operator;
        if (amount == 0) revert NothingToPay();
        ledgerOf[node].operator = 0;
        address recipient = NODES.recipientOf(node);
        emit OperatorPaid(node, recipient, amount);
        Coin.send(recipient, amount);
    }

    /// @notice Pays an artifact owner's harvested royalties.
    function claimOwner(address owner) external nonReentrant returns (uint256 amount) {
        amount = claimable[owner];
        if (amount == 0) revert NothingToPay();
        claimable[owner] = 0;
        emit OwnerPaid(owner, amount);
        _pay(owner, amount);
    }

    /// @notice Pays a contributor its static share of a dataset's income.
    /// @param bps The contributor's basis points in the dataset's share table.
    /// @param proof Merkle proof of leaf (contributor, bps).
    function claimShare(bytes32 dataset, address contributor, uint256 bps, bytes32[] calldata proof)
        external
        nonReentrant
        returns (uint256 amount)
    {
        bytes32 leaf = Leaf.amount(contributor, bps);
        // A proof that leads elsewhere than to the dataset's own root leads to a pool that never had income.
        SharePool storage pool = sharePoolOf[dataset][MerkleProof.processProofCalldata(proof, leaf)];
        uint256 total = pool.total;
        if (total == 0) revert BadProof();
        uint256 claimed = pool.claimed;
        uint256 paid = paidForLeaf[dataset][leaf];
        // A table whose shares exceed the whole is its dataset's own affair: it never reaches other money.
        amount = Math.min(total * bps / BPS - paid, total - claimed);
        if (amount == 0) revert NothingToPay();
        paidForLeaf[dataset][leaf] = paid + amount;
        pool.claimed = uint128(claimed + amount);
        emit SharePaid(dataset, contributor, bps, amount);
        _pay(contributor, amount);
    }

    /// @notice Pays the protocol's part of nodes' compute to the treasury. Nodes without any are passed over.
    function claimProtocol(bytes32[] calldata nodes) external nonReentrant returns (uint256 amount) {
        address recipient = treasury();
        for (uint256 i; i < nodes.length; ++i) {
            uint256 part = ledgerOf[nodes[i]].protocol;
            if (part == 0) continue;
            ledgerOf[nodes[i]].protocol = 0;
            amount += part;
            emit ProtocolPaid(nodes[i], recipient, part);
        }
        if (amount == 0) revert NothingToPay();
        Coin.send(recipient, amount);
    }

    /// @inheritdoc ISettlement
    function settleCredits(bytes32 node, bytes32 dataset, uint128 through, uint128 credited) external onlyCredits {
        CreditPool storage pool = _creditPools[node][dataset];
        if (through <= pool.settled || through > pool.accrued) revert BadSettlement();
        uint128 amount = through - pool.settled;
        if (credited > amount) revert BadSettlement();
        pool.settled = through;
        pool.credited += credited;
        pool.waitingSince = uint64(block.timestamp);
        emit CreditsSettled(node, dataset, through, credited);
        if (amount == credited) return;
        (, bytes32 root,) = ARTIFACTS.datasetOf(dataset);
        _creditShares(dataset, root, amount - credited);
    }

    /// @inheritdoc ISettlement
    function payCredits(bytes32 node, bytes32 dataset, address contributor, uint128 amount)
        external
        onlyCredits
        nonReentrant
    {
        CreditPool storage pool = _creditPools[node][dataset];
        if (amount == 0 || amount > pool.credited) revert NothingToPay();
        pool.credited -= amount;
        emit CreditPaid(node, dataset, contributor, amount);
        _pay(contributor, amount);
    }

    /// @inheritdoc ISettlement
    function creditPool(bytes32 node, bytes32 dataset) external view returns (CreditPool memory) {
        return _creditPools[node][dataset];
    }

    /// @inheritdoc ISettlement
    function treasury() public view virtual override returns (address);

    /// @dev Writes down what a redeem took out of escrow.
    function _book(bytes32 node, bytes32 pipelineId, uint256 operator, uint256 protocol, uint256 royalties) internal {
        if (operator + protocol != 0) {
            NodeLedger memory ledger = ledgerOf[node];
            ledger.operator += uint128(operator);
            ledger.protocol += uint128(protocol);
            ledgerOf[node] = ledger; // one write of the slot that they share
        }
        if (royalties != 0) accumulatorOf[node][pipelineId].accrued += uint128(royalties);
    }

    /// @dev Each part's share is the difference of two floors, so that harvesting often or once pays the same.
    function _harvest(bytes32 node, bytes32 pipelineId) private {
        Accumulator memory sum = accumulatorOf[node][pipelineId];
        if (sum.accrued == sum.harvested) return;
        accumulatorOf[node][pipelineId].harvested = sum.accrued;
        emit Harvested(node, pipelineId, sum.accrued);
        Header memory header = _headerOf(pipelineId);
        Part[] memory parts = _partsOf(pipelineId, header.partCount);
        for (uint256 i; i < parts.length; ++i) {
            // 128 + 113 bits: cannot overflow.
            uint256 numerator = parts[i].numerator;
            uint256 share =
                sum.accrued * numerator / header.numeratorSum - sum.harvested * numerator / header.numeratorSum;
            if (share != 0) _divide(node, parts[i], share);
        }
    }

    /// @dev An artifact's share: parts to its components, the rest to its owner.
    function _divide(bytes32 node, Part memory part, uint256 share) private {
        (address owner, Component[] memory components) = ARTIFACTS.sharingOf(part.artifact, part.termsVersion);
        uint256 rest = share;
        for (uint256 i; i < components.length; ++i) {
            uint256 amount = share * components[i].bps / BPS;
            if (amount == 0) continue;
            rest -= amount;
            if (ARTIFACTS.kindOf(components[i].artifact) == Kind.Dataset) {
                _creditDataset(node, components[i].artifact, amount);
            } else {
                _creditOwner(ARTIFACTS.ownerOf(components[i].artifact), components[i].artifact, amount);
            }
        }
        if (rest != 0) _creditOwner(owner, part.artifact, rest);
    }

    function _creditDataset(bytes32 node, bytes32 dataset, uint256 amount) private {
        (address owner, bytes32 root, uint16 creditsBps) = ARTIFACTS.datasetOf(dataset);
        if (root == 0) return _creditOwner(owner, dataset, amount);
        uint256 byUse = amount * creditsBps / BPS;
        if (byUse != 0) {
            CreditPool storage pool = _creditPools[node][dataset];
            if (pool.accrued == pool.settled) pool.waitingSince = uint64(block.timestamp);
            pool.accrued += uint128(byUse);
            emit CreditsAccrued(node, dataset, byUse);
        }
        if (byUse != amount) _creditShares(dataset, root, amount - byUse);
    }

    function _creditShares(bytes32 dataset, bytes32 root, uint256 amount) private {
        sharePoolOf[dataset][root].total += uint128(amount);
        emit SharesCredited(dataset, amount);
    }

    function _creditOwner(address owner, bytes32 artifact, uint256 amount) private {
        claimable[owner] += amount;
        emit OwnerCredited(owner, artifact, amount);
    }
}
