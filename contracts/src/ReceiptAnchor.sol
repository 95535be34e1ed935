// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {Leaf} from "./lib/Leaf.sol";
import {SettlementDomain} from "./lib/SettlementDomain.sol";
import {Receipt, StructHash} from "./lib/Types.sol";

/// @title Anchors of receipts, and the one thing that is slashed: equivocation
/// @notice A node anchors the Merkle root of an epoch's receipts, so that none can be made up or dropped later. Money
/// never depends on it. Two different receipts of one (node, seq) prove that a node keeps two stories.
contract ReceiptAnchor is SettlementDomain {
    /// @notice What an epoch's receipts come to. Amounts in wei.
    struct Totals {
        uint64 count;
        uint64 firstSeq;
        uint64 lastSeq;
        uint128 tokens;
        uint128 compute;
        uint128 royalties;
    }

    /// @notice The registry that knows nodes' keys and holds their stake.
    INodeRegistry public immutable NODES;

    /// @notice Root of an epoch's receipts; zero while it is not anchored.
    mapping(bytes32 node => mapping(uint64 epoch => bytes32)) public rootOf;

    /// @notice Whether a node was slashed for a sequence number.
    mapping(bytes32 node => mapping(uint64 seq => bool)) public isProven;

    /// @notice An epoch's receipts were anchored.
    event Anchored(bytes32 indexed node, uint64 indexed epoch, bytes32 root, Totals totals);
    /// @notice Two receipts of one (node, seq) were shown.
    event EquivocationProven(
        bytes32 indexed node,
        uint64 indexed seq,
        address indexed challenger,
        bytes32 digestA,
        bytes32 digestB,
        uint256 slashed,
        uint256 bounty
    );

    /// @notice Only the node's owner or key may anchor.
    error NotNode(bytes32 node, address caller);
    /// @notice An epoch has one root.
    error AlreadyAnchored(bytes32 node, uint64 epoch);
    /// @notice An anchor has a root, at least one receipt, and room for all between its first and last number.
    error BadAnchor();
    /// @notice The receipts are not two different ones of one (node, seq).
    error NoEquivocation();
    /// @notice The node was slashed for this number already.
    error AlreadyProven(bytes32 node, uint64 seq);
    /// @notice The signature is not by a key of the node that was valid when the receipt says it finished.
    error BadReceiptSignature(bytes32 digest);

    /// @param settlement Verifying contract of the EIP-712 domain.
    /// @param nodes The node registry.
    constructor(address settlement, INodeRegistry nodes) SettlementDomain(settlement) {
        NODES = nodes;
    }

    /// @notice Anchors the root of an epoch's receipts. Gaps between sequence numbers are allowed.
    function anchor(bytes32 node, uint64 epoch, bytes32 root, Totals calldata totals) external {
        if (!NODES.mayActFor(node, msg.sender)) revert NotNode(node, msg.sender);
        if (rootOf[node][epoch] != 0) revert AlreadyAnchored(node, epoch);
        if (root == 0 || totals.count == 0 || totals.lastSeq < totals.firstSeq) revert BadAnchor();
        if (totals.count - 1 > totals.lastSeq - totals.firstSeq) revert BadAnchor();
        rootOf[node][epoch] = root;
        emit Anchored(node, epoch, root, totals);
    }

    /// @notice Shows two receipts of one (node, seq) and has the node slashed. The caller earns the bounty.
    function challengeEquivocation(Receipt calldata a, bytes calldata sigA, Receipt calldata b, bytes calldata sigB)
        external
        returns (uint256 bounty)
    {
        bytes32 digestA = receiptDigest(a);
        bytes32 digestB = receiptDigest(b);
        if (a.node != b.node || a.seq != b.seq || digestA == digestB) revert NoEquivocation();
        if (isProven[a.node][a.seq]) revert AlreadyProven(a.node, a.seq);
        _requireSigned(a, digestA, sigA);
        _requireSigned(b, digestB, sigB);
        isProven[a.node][a.seq] = true;
        uint256 slashed;
        (slashed, bounty) = NODES.slash(a.node, msg.sender);
        emit EquivocationProven(a.node, a.seq, msg.sender, digestA, digestB, slashed, bounty);
    }

    /// @notice Whether an epoch's root contains a receipt.
    function isAnchored(bytes32 node, uint64 epoch, bytes32 salt, bytes32 digest, bytes32[] calldata proof)
        external
        view
        returns (bool)
    {
        return MerkleProof.verifyCalldata(proof, rootOf[node][epoch], Leaf.receipt(salt, digest));
    }

    /// @notice The digest that a node's key signs.
    function receiptDigest(Receipt calldata receipt) public view returns (bytes32) {
        return _digest(StructHash.receipt(receipt));
    }

    function _requireSigned(Receipt calldata receipt, bytes32 digest, bytes calldata signature) private view {
        (address key, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (problem != ECDSA.RecoverError.NoError || !NODES.isJudgeable(receipt.node, key, receipt.finishedAt)) {
            revert BadReceiptSignature(digest);
        }
    }
}
