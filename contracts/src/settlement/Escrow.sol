// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {INodeRegistry} from "../interfaces/INodeRegistry.sol";
import {Payouts} from "./Payouts.sol";

/// @title Escrow: what a payer set aside for a node
/// @notice Keyed (payer, node), so a node can never reach what lies with another. Money leaves through a thaw, during
/// which vouchers still reach it: a voucher signed before the thaw and redeemed before its end misses nothing by it.
abstract contract Escrow is Payouts, Pausable {
    /// @notice What a payer holds with a node, in wei. `thawing` is part of `balance`.
    struct Account {
        uint104 balance;
        uint104 thawing;
        uint48 thawEnd;
    }

    /// @notice The registry of nodes.
    INodeRegistry public immutable NODES;

    /// @notice How long escrow thaws before it can leave, in seconds.
    uint48 public immutable ESCROW_THAW;

    mapping(address payer => mapping(bytes32 node => Account)) private _accounts;

    /// @notice Escrow grew. `from` paid.
    event Deposited(address indexed payer, bytes32 indexed node, address indexed from, uint256 amount);
    /// @notice Escrow thaws; `thawing` is the new total, all of it until `thawEnd`.
    event ThawStarted(address indexed payer, bytes32 indexed node, uint256 amount, uint256 thawing, uint256 thawEnd);
    /// @notice The thaw was called off.
    event ThawCanceled(address indexed payer, bytes32 indexed node);
    /// @notice Thawed escrow was paid out.
    event Withdrawn(address indexed payer, bytes32 indexed node, uint256 amount);
    /// @notice Thawed escrow went to another node.
    event Moved(address indexed payer, bytes32 indexed fromNode, bytes32 indexed toNode, uint256 amount);

    /// @notice The node is unknown or left service.
    error NodeNotRegistered(bytes32 node);
    /// @notice An amount of zero, or above what there is.
    error BadAmount(uint256 amount, uint256 available);
    /// @notice Thawing escrow leaves after `thawEnd`.
    error StillThawing(uint256 thawEnd);

    constructor(INodeRegistry nodes, uint48 escrowThaw) {
        NODES = nodes;
        ESCROW_THAW = escrowThaw;
    }

    /// @notice Adds the sent wei to the caller's escrow with `node`.
    function deposit(bytes32 node) external payable {
        _deposit(msg.sender, node);
    }

    /// @notice Adds the sent wei to another payer's escrow with `node`.
    function depositFor(address payer, bytes32 node) external payable {
        if (payer == address(0)) revert ZeroAddress();
        _deposit(payer, node);
    }

    /// @notice Starts the thaw of `amount` wei on top of what thaws already. All of it waits anew.
    function thaw(bytes32 node, uint256 amount) external {
        Account storage a = _accounts[msg.sender][node];
        uint256 available = a.balance - a.thawing;
        if (amount == 0 || amount > available) revert BadAmount(amount, available);
        a.thawing += uint104(amount);
        a.thawEnd = uint48(block.timestamp) + ESCROW_THAW;
        emit ThawStarted(msg.sender, node, amount, a.thawing, a.thawEnd);
    }

    /// @notice Calls the thaw off.
    function cancelThaw(bytes32 node) external {
        Account storage a = _accounts[msg.sender][node];
        if (a.thawing == 0) revert NothingToPay();
        a.thawing = 0;
        a.thawEnd = 0;
        emit ThawCanceled(msg.sender, node);
    }

    /// @notice Pays thawed escrow to the caller's recipient.
    function withdraw(bytes32 node) external nonReentrant returns (uint256 amount) {
        amount = _accounts[msg.sender][node].thawing;
        _takeThawed(node, amount);
        emit Withdrawn(msg.sender, node, amount);
        _pay(msg.sender, amount);
    }

    /// @notice Moves `amount` wei of thawed escrow to another node.
    function move(bytes32 fromNode, bytes32 toNode, uint256 amount) external whenNotPaused {
        _requireRegistered(toNode);
        _takeThawed(fromNode, amount);
        _accounts[msg.sender][toNode].balance += uint104(amount);
        emit Moved(msg.sender, fromNode, toNode, amount);
    }

    /// @notice What a payer holds with a node. Spendable is `balance - thawing`.
    function accountOf(address payer, bytes32 node) external view returns (Account memory) {
        return _accounts[payer][node];
    }

    /// @dev Takes up to `amount` wei, thawing wei included; returns what there was.
    function _draw(address payer, bytes32 node, uint256 amount) internal returns (uint256 drawn) {
        Account memory a = _accounts[payer][node];
        drawn = amount < a.balance ? amount : a.balance;
        if (drawn == 0) return 0;
        a.balance -= uint104(drawn);
        if (a.thawing > a.balance) a.thawing = a.balance;
        _accounts[payer][node] = a;
    }

    function _deposit(address payer, bytes32 node) private whenNotPaused {
        if (msg.value == 0) revert BadAmount(0, 0);
        _requireRegistered(node);
        Account storage a = _accounts[payer][node];
        a.balance = SafeCast.toUint104(a.balance + msg.value);
        emit Deposited(payer, node, msg.sender, msg.value);
    }

    function _takeThawed(bytes32 node, uint256 amount) private {
        Account storage a = _accounts[msg.sender][node];
        if (amount == 0 || amount > a.thawing) revert BadAmount(amount, a.thawing);
        if (block.timestamp < a.thawEnd) revert StillThawing(a.thawEnd);
        a.balance -= uint104(amount);
        a.thawing -= uint104(amount);
    }

    function _requireRegistered(bytes32 node) private view {
        if (!NODES.isRegistered(node)) revert NodeNotRegistered(node);
    }
}
