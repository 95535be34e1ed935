// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Merkle leaves, hashed twice so that no inner node can pass for a leaf
library Leaf {
    /// @notice Leaf (address, uint256): basis points in a share table, cumulative wei in a credits root.
    function amount(address account, uint256 value) internal pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(account, value))));
    }

    /// @notice Leaf (bytes32 salt, bytes32 digest) of an epoch's receipts.
    function receipt(bytes32 salt, bytes32 digest) internal pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(salt, digest))));
    }
}
