// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ISettlement} from "./interfaces/ISettlement.sol";
import {Coin} from "./lib/Coin.sol";
import {SettlementDomain} from "./lib/SettlementDomain.sol";
import {StructHash} from "./lib/Types.sol";

/// @title Nodes: who they are, which key speaks for them, what they have at stake
/// @notice A node id is stable: it outlives key rotation and deregistration, so vouchers that name it stay redeemable.
/// A key serves one node for ever. The only ground for slashing is equivocation, which the anchor contract judges.
contract NodeRegistry is INodeRegistry, SettlementDomain, ReentrancyGuard {
    /// @notice What is known of a node.
    /// @param owner Cold wallet: holds the stake, rotates the key, names the recipient.
    /// @param deregistered Whether the owner took the node out of service.
    /// @param recipient Who receives its earnings.
    /// @param key Hot key: libp2p identity, signer of quotes, adverts and receipts.
    struct Node {
        address owner;
        bool deregistered;
        address recipient;
        address key;
        Stake stake;
    }

    /// @notice A node's stake in wei. `thawing` is not part of `staked`.
    struct Stake {
        uint104 staked;
        uint104 thawing;
        uint48 thawEnd;
    }

    /// @notice The life of a key. `validUntil` is 0 while it is current.
    struct Key {
        bytes32 node;
        bytes32 x;
        uint48 validFrom;
        uint48 validUntil;
        bool oddY;
    }

    uint256 private constant BPS = 10_000;

    /// @notice Largest part of slashed stake that a challenger receives: 20 %.
    uint256 public constant MAX_BOUNTY_BPS = 2_000;

    /// @notice Longest endpoint, in bytes.
    uint256 public constant MAX_ENDPOINT_BYTES = 256;

    /// @notice The contract that judges equivocation.
    address public immutable ANCHOR;

    /// @notice Least stake of a node, in wei.
    uint256 public immutable MIN_STAKE;

    /// @notice How long stake thaws, and how long a retired key stays judgeable, in seconds.
    uint48 public immutable THAW_PERIOD;

    /// @notice Part of the whole stake that one proven equivocation takes.
    uint256 public immutable SLASH_BPS;

    /// @notice Part of the slashed stake that the challenger receives.
    uint256 public immutable BOUNTY_BPS;

    /// @notice How many nodes an owner has registered: the seed of its next node id.
    mapping(address owner => uint256) public nodeCount;

    /// @notice Wei that anyone may send to the account with `claim`; what the treasury has is under address zero.
    mapping(address account => uint256) public claimable;

    mapping(bytes32 node => Node) private _nodes;
    mapping(bytes32 node => string) private _endpoints;
    mapping(address key => Key) private _keys;

    /// @notice A node was registered.
    event NodeRegistered(
        bytes32 indexed node,
        address indexed owner,
        address indexed key,
        bytes peerId,
        address recipient,
        string endpoint
    );
    /// @notice Stake was added; `staked` is the new total.
    event StakeAdded(bytes32 indexed node, uint256 amount, uint256 staked);
    /// @notice Stake began to thaw; `thawing` is the new total, all of it until `thawEnd`.
    event StakeThawing(bytes32 indexed node, uint256 amount, uint256 thawing, uint256 thawEnd);
    /// @notice Thawed stake left the contract.
    event StakeWithdrawn(bytes32 indexed node, address indexed owner, uint256 amount);
    /// @notice A new key speaks for the node. The old one was valid until now.
    event KeyRotated(bytes32 indexed node, address indexed oldKey, address indexed newKey, bytes peerId);
    /// @notice Earnings go to a new recipient.
    event RecipientChanged(bytes32 indexed node, address recipient);
    /// @notice The node is reached elsewhere.
    event EndpointChanged(bytes32 indexed node, string endpoint);
    /// @notice The node left service and all its stake thaws.
    event NodeDeregistered(bytes32 indexed node);
    /// @notice Stake was slashed: `bounty` to the challenger, the rest to the treasury.
    event NodeSlashed(bytes32 indexed node, address indexed challenger, uint256 slashed, uint256 bounty);
    /// @notice A bounty or the treasury's part was paid.
    event Claimed(address indexed account, address indexed recipient, uint256 amount);

    /// @notice Only the node's owner may do this.
    error NotNodeOwner(bytes32 node, address caller);
    /// @notice No node has this id.
    error UnknownNode(bytes32 node);
    /// @notice The node left service.
    error NodeIsDeregistered(bytes32 node);
    /// @notice A key serves one node for ever; this one already serves `node`.
    error KeyInUse(address key, bytes32 node);
    /// @notice The proof is not by the key, or for another owner, node, chain or contract.
    error BadKeyProof(address expected);
    /// @notice The proof's deadline passed.
    error ProofExpired(uint64 deadline);
    /// @notice A node stakes at least `minimum` wei.
    error StakeTooLow(uint256 staked, uint256 minimum);
    /// @notice There is nothing of this kind to move.
    error NothingToDo();
    /// @notice Thawing stake leaves after `thawEnd`.
    error StillThawing(uint256 thawEnd);
    /// @notice The endpoint is longer than `MAX_ENDPOINT_BYTES`.
    error EndpointTooLong(uint256 length);
    /// @notice The zero address receives nothing.
    error ZeroAddress();
    /// @notice Only the anchor contract slashes.
    error NotAnchor(address caller);
    /// @notice A constructor argument is outside its bounds.
    error BadParameter();

    modifier onlyNodeOwner(bytes32 node) {
        if (msg.sender != _nodes[node].owner) revert NotNodeOwner(node, msg.sender);
        _;
    }

    /// @param settlement Verifying contract of the EIP-712 domain, and source of the treasury's address.
    /// @param anchor The contract that judges equivocation.
    /// @param minStake Least stake of a node, in wei.
    /// @param thawPeriod Thaw of stake and of retired keys, in seconds.
    /// @param slashBps Part of the whole stake that one equivocation takes.
    /// @param bountyBps Part of the slashed stake that the challenger receives.
    constructor(
        address settlement,
        address anchor,
        uint256 minStake,
        uint48 thawPeriod,
        uint256 slashBps,
        uint256 bountyBps
    ) SettlementDomain(settlement) {
        if (settlement == address(0) || anchor == address(0)) revert ZeroAddress();
        if (slashBps == 0 || slashBps > BPS || bountyBps > MAX_BOUNTY_BPS) revert BadParameter();
        ANCHOR = anchor;
        MIN_STAKE = minStake;
        THAW_PERIOD = thawPeriod;
        SLASH_BPS = slashBps;
        BOUNTY_BPS = bountyBps;
    }

    /// @notice Registers a node of the caller with at least the least stake.
    /// @param x First half of the node key's public key. The peer id follows from it, so nobody can pose as the node.
    /// @param y Second half.
    /// @param recipient Who receives the earnings.
    /// @param endpoint Where the node is reached, for instance an https URL or a multiaddr.
    /// @param deadline Last second at which the proof counts.
    /// @param proof The key's signature over NodeKeyProof(nextNodeId(caller), caller, deadline).
    /// @return node The new node's id.
    function register(
        bytes32 x,
        bytes32 y,
        address recipient,
        string calldata endpoint,
        uint64 deadline,
        bytes calldata proof
    ) external payable returns (bytes32 node) {
        if (msg.value < MIN_STAKE) revert StakeTooLow(msg.value, MIN_STAKE);
        if (recipient == address(0)) revert ZeroAddress();
        node = nextNodeId(msg.sender);
        ++nodeCount[msg.sender];
        address key = _adoptKey(node, x, y, deadline, proof);
        Node storage n = _nodes[node];
        n.owner = msg.sender;
        n.recipient = recipient;
        n.key = key;
        n.stake.staked = SafeCast.toUint104(msg.value);
        _setEndpoint(node, endpoint);
        emit NodeRegistered(node, msg.sender, key, peerIdOf(key), recipient, endpoint);
        emit StakeAdded(node, msg.value, msg.value);
    }

    /// @notice Adds the sent wei to a node's stake. Anyone may.
    function addStake(bytes32 node) external payable {
        Node storage n = _active(node);
        if (msg.value == 0) revert NothingToDo();
        uint256 staked = n.stake.staked + msg.value;
        n.stake.staked = SafeCast.toUint104(staked);
        emit StakeAdded(node, msg.value, staked);
    }

    /// @notice Starts the thaw of stake above the least stake. All thawing stake waits anew.
    /// @param amount Wei to thaw.
    function thawStake(bytes32 node, uint256 amount) external onlyNodeOwner(node) {
        Node storage n = _active(node);
        if (amount == 0) revert NothingToDo();
        uint256 staked = n.stake.staked;
        if (amount > staked || staked - amount < MIN_STAKE) {
            revert StakeTooLow(amount > staked ? 0 : staked - amount, MIN_STAKE);
        }
        _thaw(node, n.stake, amount);
    }

    /// @notice Sends thawed stake to the caller, who owns the node.
    function withdrawStake(bytes32 node) external nonReentrant onlyNodeOwner(node) {
        Stake storage s = _nodes[node].stake;
        uint256 amount = s.thawing;
        if (amount == 0) revert NothingToDo();
        if (block.timestamp < s.thawEnd) revert StillThawing(s.thawEnd);
        s.thawing = 0;
        s.thawEnd = 0;
        emit StakeWithdrawn(node, msg.sender, amount);
        Coin.send(msg.sender, amount);
    }

    /// @notice Lets another key speak for the node. The old one stays judgeable for the thaw period.
    /// @param x First half of the new public key.
    /// @param y Second half.
    /// @param deadline Last second at which the proof counts.
    /// @param proof The new key's signature over NodeKeyProof(node, caller, deadline).
    function rotateKey(bytes32 node, bytes32 x, bytes32 y, uint64 deadline, bytes calldata proof)
        external
        onlyNodeOwner(node)
    {
        Node storage n = _active(node);
        address oldKey = n.key;
        address newKey = _adoptKey(node, x, y, deadline, proof);
        _keys[oldKey].validUntil = uint48(block.timestamp);
        n.key = newKey;
        emit KeyRotated(node, oldKey, newKey, peerIdOf(newKey));
    }

    /// @notice Names who receives the earnings; possible after deregistration too.
    function setRecipient(bytes32 node, address recipient) external onlyNodeOwner(node) {
        if (recipient == address(0)) revert ZeroAddress();
        _nodes[node].recipient = recipient;
        emit RecipientChanged(node, recipient);
    }

    /// @notice Says where the node is reached.
    function setEndpoint(bytes32 node, string calldata endpoint) external onlyNodeOwner(node) {
        _active(node);
        _setEndpoint(node, endpoint);
        emit EndpointChanged(node, endpoint);
    }

    /// @notice Takes the node out of service for good and thaws all its stake. Its vouchers stay redeemable.
    function deregister(bytes32 node) external onlyNodeOwner(node) {
        Node storage n = _active(node);
        n.deregistered = true;
        _keys[n.key].validUntil = uint48(block.timestamp);
        emit NodeDeregistered(node);
        if (n.stake.staked != 0) _thaw(node, n.stake, n.stake.staked);
    }

    /// @inheritdoc INodeRegistry
    function slash(bytes32 node, address challenger) external returns (uint256 slashed, uint256 bounty) {
        if (msg.sender != ANCHOR) revert NotAnchor(msg.sender);
        Stake storage s = _nodes[node].stake;
        uint256 fromStaked = uint256(s.staked) * SLASH_BPS / BPS;
        uint256 fromThawing = uint256(s.thawing) * SLASH_BPS / BPS;
        slashed = fromStaked + fromThawing;
        bounty = slashed * BOUNTY_BPS / BPS;
        s.staked -= uint104(fromStaked);
        s.thawing -= uint104(fromThawing);
        claimable[challenger] += bounty;
        claimable[address(0)] += slashed - bounty;
        emit NodeSlashed(node, challenger, slashed, bounty);
    }

    /// @notice Sends what `account` may claim to it; address zero stands for the treasury. Anyone may call it.
    function claim(address account) external nonReentrant returns (uint256 amount) {
        amount = claimable[account];
        if (amount == 0) revert NothingToDo();
        claimable[account] = 0;
        address recipient = account == address(0) ? ISettlement(SETTLEMENT).treasury() : account;
        emit Claimed(account, recipient, amount);
        Coin.send(recipient, amount);
    }

    /// @notice The id that `owner`'s next node will have; the key's proof names it.
    /// @dev Depends on nothing that a reorganisation of other people's transactions could change.
    function nextNodeId(address owner) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), owner, nodeCount[owner]));
    }

    /// @notice Everything known of a node. Reverts for an unknown one.
    function nodeOf(bytes32 node) external view returns (Node memory) {
        return _known(node);
    }

    /// @notice Where the node is reached.
    function endpointOf(bytes32 node) external view returns (string memory) {
        _known(node);
        return _endpoints[node];
    }

    /// @notice The life of a key; empty for one that was never registered.
    function keyOf(address key) external view returns (Key memory) {
        return _keys[key];
    }

    /// @notice The libp2p peer id of a registered key: identity multihash of its protobuf-encoded public key.
    function peerIdOf(address key) public view returns (bytes memory) {
        Key storage k = _keys[key];
        if (k.node == 0) return "";
        // 0x00 0x25: identity multihash of 37 bytes. 0x08 0x02 0x12 0x21: secp256k1, 33 bytes follow.
        return abi.encodePacked(hex"002508021221", k.oddY ? bytes1(0x03) : bytes1(0x02), k.x);
    }

    /// @notice Whether the node is in service with at least the least stake.
    function isActive(bytes32 node) external view returns (bool) {
        Node storage n = _nodes[node];
        return n.owner != address(0) && !n.deregistered && n.stake.staked >= MIN_STAKE;
    }

    /// @inheritdoc INodeRegistry
    function isRegistered(bytes32 node) external view returns (bool) {
        Node storage n = _nodes[node];
        return n.owner != address(0) && !n.deregistered;
    }

    /// @inheritdoc INodeRegistry
    function recipientOf(bytes32 node) external view returns (address) {
        return _known(node).recipient;
    }

    /// @inheritdoc INodeRegistry
    function mayActFor(bytes32 node, address account) external view returns (bool) {
        Node storage n = _nodes[node];
        return account != address(0) && (account == n.key || account == n.owner);
    }

    /// @inheritdoc INodeRegistry
    /// @dev A retired key is judged for the thaw period only: whoever finds it in an old backup later signs for nothing.
    function isJudgeable(bytes32 node, address key, uint64 time) external view returns (bool) {
        Key storage k = _keys[key];
        if (k.node != node || node == 0 || time < k.validFrom) return false;
        uint256 until = k.validUntil;
        return until == 0 || (time <= until && block.timestamp <= until + THAW_PERIOD);
    }

    function _known(bytes32 node) private view returns (Node storage n) {
        n = _nodes[node];
        if (n.owner == address(0)) revert UnknownNode(node);
    }

    function _active(bytes32 node) private view returns (Node storage n) {
        n = _known(node);
        if (n.deregistered) revert NodeIsDeregistered(node);
    }

    function _thaw(bytes32 node, Stake storage s, uint256 amount) private {
        s.staked -= uint104(amount);
        s.thawing += uint104(amount);
        s.thawEnd = uint48(block.timestamp) + THAW_PERIOD;
        emit StakeThawing(node, amount, s.thawing, s.thawEnd);
    }

    function _adoptKey(bytes32 node, bytes32 x, bytes32 y, uint64 deadline, bytes calldata proof)
        private
        returns (address key)
    {
        if (block.timestamp > deadline) revert ProofExpired(deadline);
        key = address(uint160(uint256(keccak256(abi.encode(x, y)))));
        if (_keys[key].node != 0) revert KeyInUse(key, _keys[key].node);
        bytes32 digest = _digest(StructHash.nodeKeyProof(node, msg.sender, deadline));
        (address signer, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, proof);
        if (problem != ECDSA.RecoverError.NoError || signer != key) revert BadKeyProof(key);
        _keys[key] = Key(node, x, uint48(block.timestamp), 0, uint256(y) & 1 == 1);
    }

    function _setEndpoint(bytes32 node, string calldata endpoint) private {
        uint256 length = bytes(endpoint).length;
        if (length > MAX_ENDPOINT_BYTES) revert EndpointTooLong(length);
        _endpoints[node] = endpoint;
    }
}
