// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice A node's part of a dataset's royalties that waits for credits by use. Wei, cumulative where not said.
/// @param accrued Harvested so far.
/// @param settled How much of `accrued` was decided: credited to contributors or sent to static shares.
/// @param credited Decided for contributors and not yet paid (not cumulative).
/// @param waitingSince When the oldest undecided wei arrived, or the last decision if it left some undecided.
struct CreditPool {
    uint128 accrued;
    uint128 settled;
    uint128 credited;
    uint64 waitingSince;
}

/// @title What the other contracts ask of the settlement
interface ISettlement {
    /// @notice The credit pool of (node, dataset).
    function creditPool(bytes32 node, bytes32 dataset) external view returns (CreditPool memory);

    /// @notice Decides a pool up to `through`: `credited` of it for contributors, the rest to static shares.
    function settleCredits(bytes32 node, bytes32 dataset, uint128 through, uint128 credited) external;

    /// @notice Pays a contributor's credits out of what was decided; reverts where that falls short.
    function payCredits(bytes32 node, bytes32 dataset, address contributor, uint128 amount) external;

    /// @notice Who receives the protocol's part and what slashing takes.
    function treasury() external view returns (address);
}
