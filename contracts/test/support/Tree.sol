// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Leaf} from "../../src/lib/Leaf.sol";

/// @notice Merkle trees with sorted pairs, for tests: any shape whose proofs MerkleProof accepts.
library Tree {
    function root(bytes32[] memory leaves) internal pure returns (bytes32) {
        bytes32[] memory level = leaves;
        while (level.length > 1) level = _parents(level);
        return level[0];
    }

    function proof(bytes32[] memory leaves, uint256 index) internal pure returns (bytes32[] memory path) {
        bytes32[] memory level = leaves;
        bytes32[] memory found = new bytes32[](64);
        uint256 depth;
        while (level.length > 1) {
            uint256 sibling = index ^ 1;
            if (sibling < level.length) found[depth++] = level[sibling];
            index /= 2;
            level = _parents(level);
        }
        path = new bytes32[](depth);
        for (uint256 i; i < depth; ++i) {
            path[i] = found[i];
        }
    }

    /// @notice Leaves of (account, amount) pairs.
    function leavesOf(address[] memory accounts, uint256[] memory amounts)
        internal
        pure
        returns (bytes32[] memory all)
    {
        all = new bytes32[](accounts.length);
        for (uint256 i; i < all.length; ++i) {
            all[i] = Leaf.amount(accounts[i], amounts[i]);
        }
    }

    function _parents(bytes32[] memory level) private pure returns (bytes32[] memory up) {
        up = new bytes32[]((level.length + 1) / 2);
        for (uint256 i; i < up.length; ++i) {
            up[i] = 2 * i + 1 < level.length ? _pair(level[2 * i], level[2 * i + 1]) : level[2 * i];
        }
    }

    function _pair(bytes32 a, bytes32 b) private pure returns (bytes32) {
        return a < b ? keccak256(bytes.concat(a, b)) : keccak256(bytes.concat(b, a));
    }
}
