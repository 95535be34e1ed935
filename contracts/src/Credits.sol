// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";
import {IArtifactRegistry} from "./interfaces/IArtifactRegistry.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {CreditPool, ISettlement} from "./interfaces/ISettlement.sol";
import {Leaf} from "./lib/Leaf.sol";

/// @title Credits: dataset income divided by use
/// @notice A node counts which contributors' data its responses drew on and posts cumulative credits for a dataset. Only
/// redeemed value is divided: a post decides the pool of (node, dataset) up to a point it names, and what it does not
/// credit goes to static shares. The dataset's owner may veto within a timelock; a veto, or no post in time, sends the
/// amount to static shares. The worst that a dishonest node can do is divide its own pool wrongly among contributors.
contract Credits is ReentrancyGuard {
    /// @notice The credits in force for a (node, dataset).
    /// @param root Merkle root over (contributor, cumulative wei).
    /// @param totalCredited Wei that this root and its predecessors credit, cumulative.
    /// @param mustReach A post must decide at least what had accrued when the last decision fell, in wei.
    /// @param epoch Last epoch that was decided.
    struct Active {
        bytes32 root;
        uint128 totalCredited;
        uint128 mustReach;
        uint64 epoch;
    }

    /// @notice Credits in their timelock. `activatesAt` is 0 where there are none.
    struct Pending {
        bytes32 root;
        uint128 totalCredited;
        uint128 accruedThrough;
        uint64 epoch;
        uint64 activatesAt;
    }

    /// @notice Holds the money and pays it.
    ISettlement public immutable SETTLEMENT;

    /// @notice Knows who speaks for a node.
    INodeRegistry public immutable NODES;

    /// @notice Knows datasets' owners and share tables.
    IArtifactRegistry public immutable ARTIFACTS;

    /// @notice How long a post can be vetoed, in seconds.
    uint64 public immutable TIMELOCK;

    /// @notice How long a pool waits for a post before anyone may send it to static shares, in seconds.
    uint64 public immutable POST_WINDOW;

    /// @notice Credits that a contributor was paid, in wei, cumulative.
    mapping(bytes32 node => mapping(bytes32 dataset => mapping(address contributor => uint256))) public paidTo;

    mapping(bytes32 node => mapping(bytes32 dataset => Active)) private _active;
    mapping(bytes32 node => mapping(bytes32 dataset => Pending)) private _pending;

    /// @notice Credits were posted or replaced. `leaves` is the digest under which the tree's leaves are fetched.
    event CreditsPosted(
        bytes32 indexed node,
        bytes32 indexed dataset,
        uint64 indexed epoch,
        bytes32 root,
        bytes32 leaves,
        uint128 totalCredited,
        uint128 accruedThrough,
        uint64 activatesAt
    );
    /// @notice The dataset's owner refused a post; the amount went to static shares.
    event CreditsVetoed(bytes32 indexed node, bytes32 indexed dataset, uint64 indexed epoch, uint256 toShares);
    /// @notice Credits came into force; what they left over went to static shares.
    event CreditsActivated(
        bytes32 indexed node, bytes32 indexed dataset, uint64 indexed epoch, uint256 credited, uint256 toShares
    );
    /// @notice Nobody posted in time; the amount went to static shares.
    event CreditsLapsed(bytes32 indexed node, bytes32 indexed dataset, uint256 toShares);

    /// @notice Only the node's owner or key may post.
    error NotNode(bytes32 node, address caller);
    /// @notice Only the dataset's owner may veto.
    error NotDatasetOwner(bytes32 dataset, address caller);
    /// @notice An epoch is newer than the last decided one; a replacement keeps the epoch it replaces.
    error BadEpoch(uint64 epoch);
    /// @notice A post has a root, decides all that had to wait, at most what accrued, and credits at most that.
    error BadAmounts();
    /// @notice The window for a post passed, or there is nothing to decide.
    error TooLate();
    /// @notice Nothing is posted, or its timelock is over.
    error NothingPending();
    /// @notice The timelock or the window is not over.
    error TooEarly();
    /// @notice A proof does not lead to the credits in force or to the dataset's share table.
    error BadProof();
    /// @notice There is nothing to pay.
    error NothingToPay();
    /// @notice A constructor argument is outside its bounds.
    error BadParameter();

    /// @param settlement Holds the money.
    /// @param nodes The node registry.
    /// @param artifacts The artifact registry.
    /// @param timelock How long a post can be vetoed, in seconds.
    /// @param postWindow How long a pool waits for a post, in seconds.
    constructor(
        ISettlement settlement,
        INodeRegistry nodes,
        IArtifactRegistry artifacts,
        uint64 timelock,
        uint64 postWindow
    ) {
        if (timelock == 0 || postWindow == 0) revert BadParameter();
        SETTLEMENT = settlement;
        NODES = nodes;
        ARTIFACTS = artifacts;
        TIMELOCK = timelock;
        POST_WINDOW = postWindow;
    }

    /// @notice Posts credits, or replaces a post in its timelock, which starts anew.
    /// @param epoch Newer than the last decided epoch; of a replacement, the epoch it replaces.
    /// @param root Merkle root over (contributor, cumulative wei).
    /// @param leaves Digest under which the tree's leaves are fetched. Leaves that nobody can fetch are a ground to veto.
    /// @param totalCredited Sum of the leaves, in wei.
    /// @param accruedThrough Up to where of the pool's accrued wei this post decides.
    function post(
        bytes32 node,
        bytes32 dataset,
        uint64 epoch,
        bytes32 root,
        bytes32 leaves,
        uint128 totalCredited,
        uint128 accruedThrough
    ) external {
        if (!NODES.mayActFor(node, msg.sender)) revert NotNode(node, msg.sender);
        Active storage active = _active[node][dataset];
        Pending storage pending = _pending[node][dataset];
        if (pending.activatesAt == 0 ? epoch <= active.epoch : epoch != pending.epoch) revert BadEpoch(epoch);
        if (pending.activatesAt != 0 && block.timestamp >= pending.activatesAt) revert TooLate();
        CreditPool memory pool = SETTLEMENT.creditPool(node, dataset);
        if (pool.accrued == pool.settled || block.timestamp > pool.waitingSince + POST_WINDOW) revert TooLate();
        bool decides =
            accruedThrough > pool.settled && accruedThrough <= pool.accrued && accruedThrough >= active.mustReach;
        if (root == 0 || !decides || totalCredited < active.totalCredited) revert BadAmounts();
        if (totalCredited - active.totalCredited > accruedThrough - pool.settled) revert BadAmounts();
        uint64 activatesAt = uint64(block.timestamp) + TIMELOCK;
        _pending[node][dataset] = Pending(root, totalCredited, accruedThrough, epoch, activatesAt);
        emit CreditsPosted(node, dataset, epoch, root, leaves, totalCredited, accruedThrough, activatesAt);
    }

    /// @notice Refuses a post in its timelock: what it would have decided goes to static shares.
    function veto(bytes32 node, bytes32 dataset) external {
        if (msg.sender != ARTIFACTS.ownerOf(dataset)) revert NotDatasetOwner(dataset, msg.sender);
        Pending memory pending = _pending[node][dataset];
        if (block.timestamp >= pending.activatesAt) revert NothingPending();
        delete _pending[node][dataset];
        _active[node][dataset].epoch = pending.epoch;
        uint128 toShares = _decide(node, dataset, pending.accruedThrough, 0);
        emit CreditsVetoed(node, dataset, pending.epoch, toShares);
    }

    /// @notice Brings a post into force after its timelock. Anyone may.
    function activate(bytes32 node, bytes32 dataset) external {
        Pending memory pending = _pending[node][dataset];
        if (pending.activatesAt == 0) revert NothingPending();
        if (block.timestamp < pending.activatesAt) revert TooEarly();
        delete _pending[node][dataset];
        Active storage active = _active[node][dataset];
        uint128 credited = pending.totalCredited - active.totalCredited;
        active.root = pending.root;
        active.totalCredited = pending.totalCredited;
        active.epoch = pending.epoch;
        uint128 toShares = _decide(node, dataset, pending.accruedThrough, credited);
        emit CreditsActivated(node, dataset, pending.epoch, credited, toShares);
    }

    /// @notice Sends a pool for which nobody posted in time to static shares. Anyone may.
    function lapse(bytes32 node, bytes32 dataset) external {
        if (_pending[node][dataset].activatesAt != 0) revert TooEarly();
        CreditPool memory pool = SETTLEMENT.creditPool(node, dataset);
        if (pool.accrued == pool.settled) revert NothingToPay();
        if (block.timestamp <= pool.waitingSince + POST_WINDOW) revert TooEarly();
        uint128 toShares = _decide(node, dataset, pool.accrued, 0);
        emit CreditsLapsed(node, dataset, toShares);
    }

    /// @notice Pays a contributor's credits to its recipient. Anyone may call it.
    /// @param cumulative The contributor's wei in the credits in force.
    /// @param creditProof Merkle proof of leaf (contributor, cumulative).
    /// @param bps The contributor's basis points in the dataset's share table: only its members earn credits.
    /// @param shareProof Merkle proof of leaf (contributor, bps).
    function claim(
        bytes32 node,
        bytes32 dataset,
        address contributor,
        uint256 cumulative,
        bytes32[] calldata creditProof,
        uint256 bps,
        bytes32[] calldata shareProof
    ) external nonReentrant returns (uint256 amount) {
        _requireLeaf(_active[node][dataset].root, contributor, cumulative, creditProof);
        _requireLeaf(_sharesRootOf(dataset), contributor, bps, shareProof);
        uint256 paid = paidTo[node][dataset][contributor];
        if (cumulative <= paid) revert NothingToPay();
        // Leaves that sum to more than their total are paid first come, first served, out of this pool alone.
        amount = Math.min(cumulative - paid, SETTLEMENT.creditPool(node, dataset).credited);
        paidTo[node][dataset][contributor] = paid + amount;
        SETTLEMENT.payCredits(node, dataset, contributor, uint128(amount));
    }

    /// @notice The credits in force.
    function activeOf(bytes32 node, bytes32 dataset) external view returns (Active memory) {
        return _active[node][dataset];
    }

    /// @notice The credits in their timelock.
    function pendingOf(bytes32 node, bytes32 dataset) external view returns (Pending memory) {
        return _pending[node][dataset];
    }

    /// @dev The next post must reach what has accrued by now, so that no wei can be put off for ever by small posts.
    function _decide(bytes32 node, bytes32 dataset, uint128 through, uint128 credited)
        private
        returns (uint128 toShares)
    {
        CreditPool memory pool = SETTLEMENT.creditPool(node, dataset);
        _active[node][dataset].mustReach = pool.accrued;
        SETTLEMENT.settleCredits(node, dataset, through, credited);
        return through - pool.settled - credited;
    }

    function _sharesRootOf(bytes32 dataset) private view returns (bytes32 root) {
        (, root,) = ARTIFACTS.datasetOf(dataset);
    }

    function _requireLeaf(bytes32 root, address account, uint256 value, bytes32[] calldata proof) private pure {
        if (!MerkleProof.verifyCalldata(proof, root, Leaf.amount(account, value))) revert BadProof();
    }
}
