// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What the other contracts ask of the node registry
interface INodeRegistry {
    /// @notice Who receives a node's earnings. Reverts for an unknown node; answers for a deregistered one.
    function recipientOf(bytes32 node) external view returns (address);

    /// @notice Whether a node is registered and not deregistered.
    function isRegistered(bytes32 node) external view returns (bool);

    /// @notice Whether `account` is the node's owner or its current key.
    function mayActFor(bytes32 node, address account) external view returns (bool);

    /// @notice Whether a signature by `key` for `node` that claims `time` can still be judged.
    function isJudgeable(bytes32 node, address key, uint64 time) external view returns (bool);

    /// @notice Takes a node's stake, thawing stake included. Only the anchor contract may call it.
    function slash(bytes32 node, address challenger) external returns (uint256 slashed, uint256 bounty);
}
