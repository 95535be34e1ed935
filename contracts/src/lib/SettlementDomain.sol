// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @title The Settlement's EIP-712 domain, for the contracts around it
/// @notice Every signed struct of the system stands under one domain, so a wallet shows one contract for all of them.
abstract contract SettlementDomain {
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    /// @notice The Settlement: the verifying contract of the domain.
    address public immutable SETTLEMENT;

    uint256 private immutable CACHED_CHAIN_ID;
    bytes32 private immutable CACHED_SEPARATOR;

    constructor(address settlement) {
        SETTLEMENT = settlement;
        CACHED_CHAIN_ID = block.chainid;
        CACHED_SEPARATOR = _buildSeparator(settlement);
    }

    /// @dev The digest that is signed for `structHash`. Rebuilt after a chain split, so no signature crosses it.
    function _digest(bytes32 structHash) internal view returns (bytes32) {
        bytes32 separator = block.chainid == CACHED_CHAIN_ID ? CACHED_SEPARATOR : _buildSeparator(SETTLEMENT);
        return MessageHashUtils.toTypedDataHash(separator, structHash);
    }

    function _buildSeparator(address settlement) private view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, keccak256("OpenLoRA"), keccak256("1"), block.chainid, settlement));
    }
}
